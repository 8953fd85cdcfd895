import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_run import text_recipe
from transformers import TrainingArguments

from hf_sft import Recipe
from hf_sft.errors import RecipeError
from hf_sft.output_folder import (
    CHECKPOINTS,
    claim,
    clear,
    is_run,
    nothing_left,
    record,
    recorded_recipe,
    refuse_other_data,
)
from hf_sft.training.run_record import RunRecord
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint

IDENTITY = {"train": "a", "test": "b"}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "source").mkdir()
    return Recipe.load(text_recipe(tmp_path))


def started(recipe, overwrite=False):
    record(recipe, TrainingArguments(str(recipe.output_dir), use_cpu=True), overwrite, IDENTITY)
    return recipe.output_dir


def checkpoint(folder, step):
    """The files that going on needs."""
    path = folder / CHECKPOINTS / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.zeros(100)}, path / "model.safetensors")
    torch.save({}, path / "optimizer.pt")
    torch.save({}, path / "scheduler.pt")
    torch.save({}, path / "rng_state.pth")
    state = {"stateful_callbacks": {"RunRecord": RunRecord("abc").state()}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    return path


def refused(recipe, overwrite=False):
    with pytest.raises(RecipeError) as error:
        claim(recipe, overwrite)
    assert "training.output_dir" in str(error.value)
    return str(error.value)


def test_a_folder_that_is_absent_or_empty_is_free(recipe):
    assert claim(recipe, False) is None
    recipe.output_dir.mkdir()
    assert claim(recipe, False) is None


@pytest.mark.parametrize("made", [[], ["recipe_folder.txt.partial"]])
def test_a_run_that_was_killed_before_its_record_starts_again(recipe, made):
    """Trainer makes the folder of the checkpoints long before anything is in it."""
    (recipe.output_dir / CHECKPOINTS).mkdir(parents=True)
    for name in made:
        (recipe.output_dir / CHECKPOINTS / name).touch()
    assert claim(recipe, False) is None


def test_an_unfinished_run_of_the_same_recipe_goes_on(recipe):
    folder = started(recipe)
    assert is_run(folder)
    assert claim(recipe, False) is None
    newest = [checkpoint(folder, step) for step in (2, 10, 9)][1]
    assert claim(recipe, False) == str(newest)
    assert claim(recipe, True) is None


def test_what_is_recorded_is_the_recipe(recipe):
    folder = started(recipe)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == recipe.raw
    (folder / "model").mkdir()
    found = recorded_recipe(folder, ["data", "model"])
    assert found.raw == recipe.raw
    assert found.locate("train.csv") == recipe.locate("train.csv")


def test_a_recorded_recipe_opens_only_what_is_needed(recipe):
    folder = started(recipe)
    (folder / "model").mkdir()
    recipe.locate("train.csv").unlink()
    assert recorded_recipe(folder, [])
    assert recorded_recipe(folder, ["model"])
    with pytest.raises(RecipeError, match=r"train\.csv"):
        recorded_recipe(folder, ["data"])


def test_another_place_or_the_wish_to_resume_is_the_same_run(recipe):
    folder = started(recipe)
    moved = folder.rename(folder.with_name("moved"))
    overrides = [f"training.output_dir={moved}", "training.resume_from_checkpoint=true"]
    assert claim(Recipe.load(recipe.path, overrides), False) is None
    overrides[1] = "training.resume_from_checkpoint=false"
    assert "unfinished" in refused(Recipe.load(recipe.path, overrides))


@pytest.mark.parametrize("override", ["penalty.lambda=0.5", "training.seed=1", "penalty=null",
                                      "data.per_class=2"])  # fmt: skip
def test_a_different_run_is_refused(recipe, override):
    checkpoint(started(recipe), 1)
    other = Recipe.load(recipe.path, [override])
    message = refused(other)
    assert "different recipe" in message
    assert "--overwrite" in message
    assert claim(other, True) is None


def test_a_finished_run_is_refused(recipe):
    folder = started(recipe)
    for name in ("report.json", "README.md"):
        (folder / name).write_text("{}")
        assert claim(recipe, False) is None, "killed before it was published whole: it goes on"
    (folder / "report.html").write_text("")
    assert "finished" in refused(recipe)
    assert claim(recipe, True) is None


def test_a_file_in_the_place_of_the_folder(recipe):
    recipe.output_dir.write_text("mine")
    assert "is a file" in refused(recipe)
    assert "is a file" in refused(recipe, overwrite=True)
    inside = Recipe.load(recipe.path, [f"training.output_dir={recipe.output_dir / 'a' / 'b'}"])
    assert "no folder you may write in" in refused(inside)


def test_files_of_somebody_else(recipe):
    recipe.output_dir.mkdir()
    (recipe.output_dir / "thesis.txt").write_text("mine")
    assert "--overwrite" in refused(recipe)
    assert claim(recipe, True) is None
    started(recipe, overwrite=True)
    assert (recipe.output_dir / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["README.md", "drift.png", "model", "recipe.yaml"])
def test_a_folder_that_is_no_run_is_not_overwritten(recipe, name):
    (recipe.output_dir / "model").mkdir(parents=True)
    (recipe.output_dir / name / "x" if name == "model" else recipe.output_dir / name).touch()
    for overwrite in (False, True):
        assert name in refused(recipe, overwrite)


def test_the_folder_of_the_recipe_itself_is_no_run(recipe):
    here = Recipe.load(recipe.path, [f"training.output_dir={recipe.path.parent}"])
    for overwrite in (False, True):
        assert "recipe.yaml" in refused(here, overwrite)


def test_overwrite_takes_away_what_a_run_writes_and_nothing_else(recipe):
    folder = started(recipe)
    checkpoint(folder, 3)
    (folder / "model").mkdir()
    written = ("report.json", "report.html", "README.md", "drift.png", "model/config.json")
    for name in (*written, "notes.txt"):
        (folder / name).write_text("old")
    (folder / "figures").mkdir()
    clear(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "notes.txt"]


BREAKS = {
    "torn state": lambda path: (path / "trainer_state.json").write_text('{"epoch": 1'),
    "no state": lambda path: (path / "trainer_state.json").unlink(),
    "state of another Trainer": lambda path: (path / "trainer_state.json").write_text("{}"),
    "state that is a list": lambda path: (path / "trainer_state.json").write_text("[]"),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "torn weights": lambda path: torn(path / "model.safetensors"),
    "empty weights": lambda path: (path / "model.safetensors").write_bytes(b""),
    "no optimizer": lambda path: (path / "optimizer.pt").unlink(),
    "torn optimizer": lambda path: torn(path / "optimizer.pt"),
    "no random state": lambda path: (path / "rng_state.pth").unlink(),
    "no scheduler": lambda path: (path / "scheduler.pt").unlink(),
    "missing shard": lambda path: (path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}'
    ),
    "empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
    "a file": lambda path: (shutil.rmtree(path), path.write_text("")),
}


def torn(file):
    file.write_bytes(file.read_bytes()[:-50])


@pytest.mark.parametrize("how", BREAKS)
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path, how):
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    folder = tmp_path / CHECKPOINTS
    assert newest_whole_checkpoint(folder) == newer
    BREAKS[how](newer)
    assert newest_whole_checkpoint(folder) == older
    BREAKS[how](older)
    assert newest_whole_checkpoint(folder) is None


def test_other_names_are_no_checkpoints(tmp_path):
    folder = tmp_path / CHECKPOINTS
    assert newest_whole_checkpoint(folder) is None
    checkpoint(tmp_path, 1).rename(folder / "checkpoint-best")
    checkpoint(tmp_path, 1).rename(folder / "tmp-checkpoint-1")
    assert newest_whole_checkpoint(folder) is None


def fail_inside(folder):
    with nothing_left(folder):
        (folder / CHECKPOINTS).mkdir(parents=True)
        raise RecipeError("on the way")


def test_only_empty_folders_made_inside_are_taken_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("outputs/a"), tmp_path / "b" / "c"):
        with pytest.raises(RecipeError, match="on the way"):
            fail_inside(folder)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "new"):
        with nothing_left(folder):
            (folder / CHECKPOINTS).mkdir(parents=True)
            (folder / "new.txt").touch()
    assert (tmp_path / "new" / "new.txt").exists()
    with nothing_left(tmp_path / "old" / "in"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_run_does_not_go_on_with_other_data(recipe):
    started(recipe)
    refuse_other_data(recipe, IDENTITY)
    for changed in ({"train": "a", "test": "c"}, {"train": "a"}, {**IDENTITY, "validation": "d"}):
        with pytest.raises(RecipeError, match="data have changed since it began: (test|valid)"):
            refuse_other_data(recipe, changed)


def test_a_kill_while_an_old_run_is_cleared_leaves_a_folder_that_overwrite_takes(recipe):
    folder = started(recipe)
    checkpoint(folder, 3)
    (folder / "recipe.yaml").unlink()
    shutil.rmtree(folder / CHECKPOINTS / "checkpoint-3")
    assert "remains of a run" in refused(recipe)
    assert claim(recipe, True) is None
    clear(folder)
    assert list(folder.iterdir()) == []


def test_two_processes_need_the_random_states_of_both(recipe, monkeypatch):
    folder = started(recipe)
    path = checkpoint(folder, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert newest_whole_checkpoint(folder / CHECKPOINTS) is None
    for rank in range(2):
        torch.save({}, path / f"rng_state_{rank}.pth")
    assert newest_whole_checkpoint(folder / CHECKPOINTS) == path
