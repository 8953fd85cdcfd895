"""What a run loads before its first step."""

from pathlib import Path

from test_layering import FILES, imports

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
