import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import ROWS, picture, text_recipe, write_csv

from hf_sft import cli_recipes
from hf_sft.cli import main


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return text_recipe(tmp_path)


def refused(capsys, *command):
    """One message with exit code 2, and not a file touched."""
    before = files_here()
    assert main([str(word) for word in command]) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    message = output.err[output.err.rindex("hf-sft: ") :]
    assert files_here() == before
    return message


def files_here():
    return {path: path.read_bytes() if path.is_file() else None for path in Path.cwd().rglob("*")}


QUICK = ["--help", "run --help", "list", "copy quickstart DEST"]


@pytest.mark.parametrize("command", QUICK)
def test_help_list_and_copy_answer_at_once(tmp_path, command):
    words = command.replace("DEST", str(tmp_path / "mine.yaml")).split()
    script = (
        "import sys; from hf_sft.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr); sys.exit(code or bool(heavy))"
    )
    took = []
    for attempt in range(3):  # the least of three: the machine may be busy
        (tmp_path / "mine.yaml").unlink(missing_ok=True)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
        )
        took.append(time.perf_counter() - start)
        assert done.returncode == 0, (attempt, done.stderr)
    assert min(took) < 1


def test_what_is_seen_at_once_is_told_before_anything_large_is_imported(tmp_path):
    (tmp_path / "torn.yaml").write_text("task: {type: [\n")
    mistakes = [
        *(f"{command} gone.yaml" for command in ("run", "check", "compare", "search", "lr")),
        "rank gone.yaml --models x", "run torn.yaml", "check quickstart training.=1",
        "compare quickstart data={a", "search quickstart task.type.x=1", "show gone",
        "evaluate gone", "predict gone x", "push gone me/it", "blend gone --output x",
        "soup gone --output x", "adapt gone x --output x --method tent", "run .",
    ]  # fmt: skip
    script = (
        "import sys; from hf_sft.cli import main\n"
        "codes = {words: main(words.split()) for words in sys.argv[1:]}\n"
        "assert set(codes.values()) == {2}, codes\n"
        "print({'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *mistakes],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.stdout, done.stderr.count("hf-sft: ")) == ("set()\n", len(mistakes)), done.stderr


def test_a_run_says_which_recipe_it_reads_before_it_imports(capsys, recipe, monkeypatch):
    capsys.readouterr()
    for rank, told in (("0", f"hf-sft: reading {recipe}\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main(["run", str(recipe), "task.type=none"]) == 2
        assert capsys.readouterr().err.partition("hf-sft: override")[0] == told


def test_list_names_recipes_and_copy_takes_one(capsys, tmp_path):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in listed[:-1]]
    assert max(map(len, listed)) <= 100
    assert set(cli_recipes.recipes()) <= set(names)
    assert "accelerate/cpu_2" in listed[-1]
    for given, name in [
        ("quickstart", "quickstart"),
        ("recipes/quickstart.yaml", "quickstart"),
        ("accelerate/cpu_2", "accelerate/cpu_2"),
    ]:
        target = tmp_path / given.replace("/", "_")
        assert main(["copy", given, str(target)]) == 0
        hint = "accelerate launch --config_file" if "accelerate" in given else "hf-sft check"
        assert f"{hint} {target}" in capsys.readouterr().out
        assert target.read_bytes() == cli_recipes.shipped()[name].read_bytes()


def test_list_shows_the_headline_of_a_recipe_and_no_settings(capsys, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for name, task, model in [("a/one", "t", "x/y"), ("two", "s", "package:p/q/r.pth")]:
        blocks = f"task: {{type: {task}}}\nmodel: {{name: '{model}'}}\n"
        (tmp_path / f"{name}.yaml").write_text(f"# What {name} is.\n# More.\n{blocks}")
    monkeypatch.setattr(cli_recipes, "recipes_folder", lambda: tmp_path)
    assert main(["list"]) == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert listed[:3] == [["s"], ["two", "package:p"], ["What", "two is."]]
    assert listed[3:6] == [["t"], ["a/one", "x/y"], ["What", "a/one is."]]


def test_copy_does_not_overwrite(capsys, recipe, tmp_path):
    assert "exists" in refused(capsys, "copy", "quickstart", recipe)
    assert "does not exist" in refused(capsys, "copy", "quickstart", tmp_path / "no" / "r.yaml")
    assert "Did you mean 'quickstart'" in refused(capsys, "copy", "quickstrat", tmp_path / "x.yaml")
    assert main(["copy", "quickstart", str(tmp_path)]) == 0
    assert (tmp_path / "quickstart.yaml").is_file()


def test_a_recipe_that_is_not_there(capsys, recipe):
    assert "Did you mean 'quickstart'" in refused(capsys, "check", "quickstat")
    assert "accelerate" not in refused(capsys, "run", "nothing").split("Choices")[1]
    meant, _, choices = refused(capsys, "run", "quickstart_txt").partition(" Choices: ")
    assert meant.endswith("Did you mean 'quickstart_text'?")
    assert choices.count(",") <= 4


@pytest.mark.parametrize(
    "words", [["--lr", "3"], ["learning_rate"], ["-x"], ["--overwrit3"], ["a=1", "b"]]
)
def test_words_that_are_no_overrides(capsys, recipe, words):
    assert "is not understood here" in refused(capsys, "run", recipe, *words)


def test_overrides_where_none_are_taken(capsys, recipe):
    assert "'a.b=c' is not understood here" in refused(capsys, "evaluate", ".", "a.b=c")


@pytest.mark.parametrize(
    "words", [[], ["fly"], ["run"], ["predict", "x", "y", "--batch-size", "0"]]
)
def test_a_command_that_is_none_shows_the_usage(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run"])
def test_all_problems_of_a_recipe_in_one_message(capsys, recipe, command):
    message = refused(
        capsys, command, recipe, "data.train=gone.csv", "training.learning_rat=1",
        "model.name=./no", "penalty.lambda=x", "training.seed=x",
    )  # fmt: skip
    words = ["gone.csv", "learning_rat", "./no", "penalty.lambda", "training.seed"]
    assert [word for word in words if word not in message] == []
    assert len(message.splitlines()) == 5


def bad_data(folder):
    """Name -> (content of train.csv, of test.csv, words of the message)."""
    label_only = [("flower",), ("tree",)]
    return {
        "missing column": ((label_only, ("label",)), None, ["task.text[0]", "train has: label"]),
        "other labels": (None, ([("red", "shrub")],), ["data.test", "shrub", "flower, tree"]),
        "empty split": (None, ([],), ["data.test", "empty"]),
        "missing label": (([*ROWS, ("red", "")],), ([("", "tree")],),
                          [f"data.train row {len(ROWS) + 1}", "NaN"]),
        "NaN label": (([("a", 1), ("b", 2), ("c", "nan")],), ([("a", 1), ("b", "nan")],),
                      ["data.train row 3", "data.test row 2", "NaN"]),
        "ragged": (([*ROWS, ("a", "b", "c")],), ([("a",)],), ["data.train", "data.test", "line"]),
        "one class": (([("red", "flower")],), ([("red", "flower")],), ["single class flower"]),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_data(None))
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_data_is_told_before_anything_is_written(capsys, recipe, tmp_path, case, command):
    train, test, words = bad_data(tmp_path)[case]
    for name, content in (("train.csv", train), ("test.csv", test)):
        if content is not None:
            write_csv(tmp_path / name, *content)
    message = refused(capsys, command, recipe)
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [("model.bogus=1", ["model.bogus"]),
     ("model.num_hidden_layers=5", ["model.name", "layer.2"]),
     ("model.fresh=[no.*]", ["model.fresh", "'no.*'"]),
     ("freeze={type: train-only, patterns: [no.such.*]}", ["no.such.*"]),
     ("freeze={type: train-last, count: 99}", ["99"]),
     ("training.save_strategy=no training.load_best_model_at_end=true", ["training"])],
)  # fmt: skip
def test_what_shows_only_with_the_model_leaves_nothing_either(
    capsys, recipe, tmp_path, override, words
):
    message = refused(capsys, "run", recipe, *re.split(" (?=training)", override))
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "out").exists()


def test_check_prints_the_plan_and_writes_nothing(capsys, recipe):
    before = files_here()
    assert (
        main(["check", str(recipe), "training.learning_rate=1e-3", "freeze.type=linear-probe"]) == 0
    )
    shown = capsys.readouterr().out
    for word in ["head", "layer.1", "train 24, test 8", "0.001", "Nothing was written"]:
        assert word in shown
    assert files_here() == before


@pytest.fixture
def finished(recipe, tmp_path):
    assert main(["run", str(recipe)]) == 0
    return tmp_path / "out"


def test_a_run_and_what_is_done_with_it(capsys, finished, recipe, tmp_path):
    capsys.readouterr()
    names = {path.name for path in finished.iterdir()}
    assert {"model", "checkpoints", "recipe.yaml", "report.json"} <= names
    assert json.loads((finished / "report.json").read_text())["metrics"]["test"]["accuracy"] >= 0
    message = refused(capsys, "run", recipe)
    assert "finished" in message
    assert "--overwrite" in message
    assert "different" in refused(capsys, "run", recipe, "training.seed=7")
    # A wrong recipe leaves the run as it is, whatever the flag.
    refused(capsys, "run", recipe, "--overwrite", "penalty.lambda=x")
    refused(capsys, "run", recipe, "--overwrite", "model.num_hidden_layers=9")
    assert main(["show", str(finished)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(finished)]) == 0
    assert "test" in capsys.readouterr().out
    (finished / "notes.txt").write_text("mine")
    assert main(["run", str(recipe), "--overwrite", "training.num_train_epochs=1"]) == 0
    assert (finished / "notes.txt").read_text() == "mine"
    assert "num_train_epochs: 1" in (finished / "recipe.yaml").read_text()


def test_the_same_command_goes_on_from_the_newest_whole_checkpoint(finished, recipe, caplog):
    (finished / "report.json").unlink()
    older, newer = (finished / "checkpoints" / f"checkpoint-{step}" for step in (3, 6))
    (newer / "optimizer.pt").unlink()
    trained = (finished / "model" / "model.safetensors").read_bytes()
    assert main(["run", str(recipe)]) == 0
    assert f"'{newer.name}' is not whole" in caplog.text
    assert f"Going on from {older}" in caplog.text
    assert (finished / "report.json").is_file()
    assert (finished / "model" / "model.safetensors").read_bytes() == trained


@pytest.mark.parametrize("command", [["show"], ["evaluate"], ["predict"], ["push"]])
def test_a_folder_that_is_no_run(capsys, recipe, tmp_path, command):
    rest = {"predict": ["recipe.yaml"], "push": ["me/it"]}.get(command[0], [])
    for folder in (tmp_path / "source", tmp_path / "gone"):
        assert "no finished run" in refused(capsys, *command, folder, *rest)


@pytest.mark.parametrize(("text", "told"), [
    ('{"task":', "is torn"), ("[]", "no report"), ("{}", "no report"),
    ('{"schema": 1}', "no report"),
])  # fmt: skip
def test_a_report_that_is_none(capsys, recipe, tmp_path, text, told):
    (tmp_path / "report.json").write_text(text)
    assert told in refused(capsys, "show", tmp_path)


def test_a_folder_in_the_place_of_the_report(capsys, recipe, tmp_path):
    (tmp_path / "report.json").mkdir()
    assert "report.json is missing" in refused(capsys, "show", tmp_path)


def test_a_place_where_no_run_can_be_is_told_before_a_check_reads_the_data(capsys, recipe):
    for place in ("train.csv", "train.csv/out"):
        message = refused(capsys, "check", recipe, f"training.output_dir={place}", "data.train=no")
        assert "data.train" in message  # the recipe's own problems come first
        message = refused(capsys, "check", recipe, f"training.output_dir={place}", "task.label=no")
        assert f"training.output_dir: '{place}'" in message
        assert "Choose another training.output_dir" in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("adapt r x --output o --method tent --batch-size 0", "at least 1 is wanted, found '0'"),
        ("compare r --jobs two", "a whole number of at least 1 is wanted, found 'two'"),
        ("blend r --output o --alpha 2", "a number from 0 to 1 is wanted, found '2'"),
    ],
)
def test_numbers_that_cannot_be(capsys, words, told):
    with pytest.raises(SystemExit):
        main(words.split())
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.text=sentence", "a list is wanted, found 'sentence'. Write [sentence]."),
        ("cache=true", "cache: a mapping of keys is wanted, found True."),
        ("optimizer=adam", "no such block. Choices: task, data, model,"),
        ("model.name=train.csv", "Name a folder with config.json and weights, a weight file"),
    ],
)
def test_a_value_of_the_wrong_form_says_what_is_wanted(capsys, recipe, override, told):
    message = refused(capsys, "check", recipe, override)
    assert told in message
    assert "more)" not in message


def test_interrupting_and_a_closed_pipe(capsys, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_recipes, "list_recipes", stop)
    assert main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    command = f"{sys.executable} -m hf_sft list | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_images_that_cannot_be_decoded_are_named_with_their_path(capsys, recipe, tmp_path):
    for name in ("cat/1.png", "dog/1.png"):
        picture(tmp_path / "images" / name)
    whole = (tmp_path / "images/cat/1.png").read_bytes()
    broken = {
        "cat/torn.png": whole[: len(whole) // 2],
        "dog/text.png": b"text",
        "cat/zero.jpg": b"",
    }
    for name, content in broken.items():
        (tmp_path / "images" / name).write_bytes(content)
    data = "data={type: image-folder, path: images}"
    message = refused(capsys, "run", recipe, "task={type: image-classification}", data)
    assert [name for name in broken if str(tmp_path / "images" / name) not in message] == []
    assert not (tmp_path / "out").exists()


def test_only_the_first_process_speaks(capsys, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    capsys.readouterr()
    assert main(["check", str(recipe), "data.train=gone.csv"]) == 2
    assert capsys.readouterr().err == ""
    assert os.environ["RANK"] == "1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["training.optim=adamw_8bit"], "bitsandbytes"),
        (["training.report_to=wandb"], "wandb"),
        (["training.optim=lomo"], "lomo"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_trainer_would_refuse_later_is_told_at_once(capsys, recipe, command, settings, said):
    message = refused(capsys, command, recipe, *settings)
    assert "training" in message
    assert said in message


def test_check_refuses_the_folder_that_run_would_refuse(capsys, finished, recipe):
    """After everything else, so that a variant of a run can be looked at."""
    capsys.readouterr()
    assert main(["check", str(recipe)]) == 2
    output = capsys.readouterr()
    assert "finished" in output.err
    assert "parameters train" in output.out
    assert main(["check", str(recipe), "--overwrite"]) == 0


def test_a_run_does_not_go_on_when_its_data_have_changed(capsys, finished, recipe, tmp_path):
    (finished / "report.json").unlink()
    write_csv(tmp_path / "train.csv", [*ROWS, ("new oak", "tree")])
    assert "data have changed since it began: train" in refused(capsys, "run", recipe)
    assert main(["run", str(recipe), "--overwrite"]) == 0


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_do(capsys, recipe):
    assert main(["run", str(recipe), "training.learning_rate=1e30", "training.max_grad_norm=0",
                 "training.logging_steps=1", "training.num_train_epochs=3"]) == 2  # fmt: skip
    message = capsys.readouterr().err
    assert "not finite" in message
    assert "training.learning_rate" in message


def test_learning_rates_are_a_block_of_the_recipe(capsys, recipe):
    rules = "learning_rates=[{role: head, multiplier: 10}, {decay: 0.5}]"
    assert main(["check", str(recipe), rules]) == 0
    capsys.readouterr()
    message = refused(capsys, "check", recipe, "learning_rates=[{name: nothing.*, multiplier: 2}]")
    assert "learning_rates.0" in message
    message = refused(capsys, "check", recipe, "learning_rates=[{role: haed, decay: 2}, 3]")
    assert "learning_rates.0.role" in message
    assert "learning_rates.0.decay" in message
    assert "learning_rates.1" in message
    assert "a list of rules" in refused(capsys, "check", recipe, "learning_rates={decay: 0.9}")


@pytest.mark.parametrize(
    "method",
    [
        "penalty={type: similarity}",
        "penalty={type: ball}",
        "penalty={type: l2-sp, apply: proximal, half_life: 0.5}",
        "penalty={type: l2-sp, rules: [{role: norm, lambda: .inf}]}",
        "penalty=[{type: l2-sp}, {type: similarity, weight: 1}]",
        "freeze={type: lp-ft}",
    ],
)
def test_every_kind_of_method_runs_from_a_recipe(recipe, method):
    assert main(["run", str(recipe), method]) == 0
    report = json.loads((recipe.parent / "out" / "report.json").read_text())
    assert report["freeze"]["verified_unchanged"]


def test_problems_of_data_model_and_policy_are_told_together(capsys, recipe, tmp_path):
    message = refused(
        capsys, "run", recipe, "task.label=topic", "freeze={type: train-last, count: 9}"
    )
    assert "'topic'" in message
    assert "freeze.count" in message
    message = refused(capsys, "check", recipe, "task.label=topic", "model.hidden_sise=3")
    assert "'topic'" in message
    assert "model.hidden_sise" in message
