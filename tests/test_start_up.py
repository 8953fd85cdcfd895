"""What a run loads before its first step."""

import gc
import subprocess
import sys
from pathlib import Path

import torch  # noqa: F401 (some test of the process has imported it)
from test_layering import FILES, imports

from hf_sft.importing import importing

LATE = {"evaluate", "matplotlib", "nltk", "optuna", "peft", "rouge_score", "sacrebleu", "scipy",
        "seqeval", "sklearn", "timm"}  # fmt: skip


def loaded_with(path, seen):
    """The files that importing one imports, and so on."""
    if path in FILES and path not in seen:
        seen.add(path)
        for name in imports(FILES[path], whole_file=False):
            parts = name.split(".")[1:]
            for end in range(1, len(parts) + 1) if name.startswith("hf_sft.") else ():
                loaded_with(Path(*parts[:end]).with_suffix(".py"), seen)
                loaded_with(Path(*parts[:end], "__init__.py"), seen)
    return seen


def test_a_run_starts_without_what_only_its_end_needs():
    started = loaded_with(Path("running.py"), set())
    assert {Path("tasks/classification.py"), Path("training/trainer.py")} <= started
    for path in started:
        assert not {n.split(".")[0] for n in imports(FILES[path], whole_file=False)} & LATE, path


def test_the_first_imports_of_a_process_are_no_garbage():
    ask = "print(gc.isenabled(), gc.get_freeze_count() > 0)"
    lines = ["import gc, sys", "from hf_sft.importing import importing"]
    lines += ["assert 'torch' not in sys.modules", "with importing():", f"    {ask}", ask]
    lines += ["try:", "    with importing(): import no_such_module", f"except ImportError: {ask}"]
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True
    )
    assert found.stdout.splitlines() == ["False False", "True True", "True True"]


def test_the_collector_of_a_program_that_runs_already_is_left_alone():
    assert "torch" in sys.modules
    before = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
