"""Whether a folder holds a finished run."""

from pathlib import Path

from hf_sft.errors import RecipeError


def refuse_unfinished(run: Path, *needed: str) -> None:
    """``needed`` files and folders are there, as a run leaves them.

    Raises:
        RecipeError: the first that is missing, or that there is no such folder.
    """
    if not run.is_dir():
        what = "it is a file" if run.exists() else "there is no such folder"
        raise RecipeError(f"'{run}' is no finished run: {what}. Name a run's output folder.")
    for name in needed:
        there = (run / name).is_file() if Path(name).suffix else (run / name).is_dir()
        if not there:
            raise RecipeError(
                f"'{run}' is no finished run: {name} is missing there. Name a run's output folder, "
                "or finish it with `hf-sft run`."
            )
