"""The import directions of CONTRIBUTING.md, and the sizes of files and functions."""

import ast
from pathlib import Path

import pytest

import hf_sft

ROOT = Path(hf_sft.__file__).parent
LAYERS = """
visible tokens bounded interruption importing
told
errors packed json_text table arms paired
finished report
transferability
component resources recipe_text problems draws source_licence
comparison nonfinite space
layer_blocks exact_copy
mapped_files
layer_order
layer_groups shards
starting_point selection embeddings
weight_space norm_statistics averaging
tent
penalties freezing
rates moved_rows alike_lengths ragged_labels fixed_draws
source_function plan_follower pull features geometry sharded_setup
stored_features step_rows
checkpoint_code loss_scale run_record running_loss renamed_checkpoint tell_epoch tracked step_flags
orderly_stop finite_steps out_of_memory whole_checkpoints
optimizer_setup watch fisher fisher_cache trace row_identity
seam
replay
agreement views chunks feature_cache phase
kept_rows light_steps
prefix
rehearsal prior_data completed
source_pass trainer_memory cached_training
trainer
arrow_columns
csv_files
table_files images on_disk
squad_files
loaders tasks
pretrained
weight_files
model_source heads drawn_anew
backbones
models training_keys
anchor adapter_targets averages early_stopping
adapter
recipe drift_picture
drift model_folder output_folder outlook processes data_identity charts prediction_files
training_arguments plan unlost
outcome
measured report_page
usage side_by_side
card_metadata without_rows retrying
card
hub
source_probe publishing
running
saved rank cells side_processes
reuse results compare_table compare_charts
compare_page
compare
rate_range
rate_sweep step_times
rate_test speed
trial_process study best
search_table
search_page
search
held_out derived
origin blend_page
blend soup adapt
new
reference
cli_numbers cli_recipes
cli_compare cli_explain cli_new cli_push cli_rank cli_search cli_speed cli_weights
cli
__main__ __init__
"""  # a line may import the lines above it, and a folder its own files
RANK = {unit: rank for rank, line in enumerate(LAYERS.split("\n")) for unit in line.split()}
# Folders whose files have layers of their own.
FOLDERS = {"training", "caching", "weights", "ranking", "reporting", "comparing", "searching"}
HEAVY = {"accelerate", "datasets", "evaluate", "huggingface_hub", "matplotlib", "numpy", "pandas",
         "pydantic", "sklearn", "timm", "torch", "transformers", "yaml"}  # fmt: skip
PACKAGES = {"hf_sft", *(f"hf_sft.{folder}" for folder in FOLDERS)}
NEVER = {  # unit -> what none of its lines may import, wherever it stands
    "errors": HEAVY,
    "report": HEAVY,
    "transferability": HEAVY - {"numpy"},
    "component": HEAVY - {"pydantic"},
    "layer_groups": {"transformers", "datasets"},
    "starting_point": {"transformers", "datasets"},
    "weight_space": {"transformers", "datasets", "accelerate"},
    "norm_statistics": {"transformers", "datasets", "accelerate"},
    "tent": {"transformers", "datasets", "accelerate"},
    "penalties": {"transformers", "datasets", "accelerate"},
    "freezing": {"transformers", "datasets", "accelerate"},
    "features": {"transformers", "datasets"},
    "loaders": {"hf_sft.penalties", "hf_sft.freezing", "hf_sft.training", "hf_sft.models",
                "transformers"},
    "tasks": {"hf_sft.penalties", "hf_sft.freezing", "hf_sft.training", "hf_sft.models"},
    "trainer": {"datasets", "hf_sft.tasks", "hf_sft.loaders"},
}  # fmt: skip


def parsed():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


def imports(tree, whole_file=True):
    """Dotted names of the imported modules; without ``whole_file`` those of importing the file."""
    for node in ast.walk(tree) if whole_file else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module in PACKAGES else [node.module]


def unit(path):
    """A file, or the folder of plug-ins it lies in."""
    return path.stem if path.parts[0] in FOLDERS else path.parts[0].removesuffix(".py")


def own(names):
    inner = (name.split(".")[1:] for name in names if name.startswith("hf_sft."))
    return {parts[parts[0] in FOLDERS] for parts in inner}


def upward(path, names):
    here = RANK[unit(path)]
    return sorted(u for u in own(names) if u != unit(path) and RANK[u] >= here)


def forbidden(path, names):
    never = NEVER.get(unit(path), set())
    return sorted(
        n for n in names if n.split(".")[0] in never or ".".join(n.split(".")[:2]) in never
    )


FILES = dict(parsed())
IDS = [str(path) for path in FILES]


def test_every_file_has_its_layer():
    assert {unit(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_down(path):
    names = list(imports(FILES[path]))
    assert upward(path, names) == []
    assert forbidden(path, names) == []


def test_the_commands_load_nothing_heavy_before_they_are_chosen():
    commands = [str(path) for path in FILES if str(path).startswith("cli")]
    for name in ("__init__.py", "__main__.py", "errors.py", *commands):
        names = set(imports(FILES[Path(name)], whole_file=False))
        chosen = {name.removesuffix(".py") for name in commands}
        light = {"errors", "finished", "importing", "interruption", "told", "visible"}
        assert own(names) <= light | chosen, name
        assert not {n.split(".")[0] for n in names} & HEAVY, name


def test_timm_is_imported_where_it_is_needed():
    for path, tree in FILES.items():
        if unit(path) not in ("weight_files",):
            assert "timm" not in {n.split(".")[0] for n in imports(tree, whole_file=False)}, path


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_fits_in_one_reading(path):
    assert len((ROOT / path).read_text("utf-8").splitlines()) <= 250


def functions():
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (str(path), node.name), node.end_lineno - node.lineno + 1


def test_functions_are_short():
    long = {name: lines for name, lines in functions() if lines > 40}
    assert long == {}


def test_the_rules_can_be_broken():
    bad = ast.parse(
        "import transformers.models\nfrom hf_sft import running\nfrom hf_sft.cli import main"
    )
    path = Path("penalties/new.py")
    assert upward(path, imports(bad)) == ["cli", "running"]
    assert forbidden(path, imports(bad)) == ["transformers.models"]
    inner = ast.parse("def f():\n    from hf_sft.reporting.card import render")
    assert upward(Path("loaders/x.py"), imports(inner)) == ["card"]
    assert list(imports(inner, whole_file=False)) == []
