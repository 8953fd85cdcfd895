"""Full disks, folders that nobody may write, and too little memory: one message, nothing lost."""

import os
import resource
import shutil

import pytest
import tiny_run
import torch
from transformers import BertForSequenceClassification

from hf_sft.cli import main
from hf_sft.training.out_of_memory import smaller
from hf_sft.training.trainer import TransferMixin
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint, torn_checkpoints


@pytest.fixture
def recipe(tmp_path):
    """9 steps, a checkpoint after each third."""
    return tiny_run.text_recipe(
        tmp_path,
        training={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "save_total_limit": 9,
        },
    )


def checkpoints(recipe):
    return sorted(path.name for path in recipe.parent.glob("out/checkpoints/checkpoint-*"))


def at_save(monkeypatch, number, act):
    """Do something just before the given checkpoint is written."""
    given, saves = TransferMixin.save_model, []

    def acting(self, *args, **kwargs):
        saves.append(1)
        if len(saves) == number:
            act()
        given(self, *args, **kwargs)

    monkeypatch.setattr(TransferMixin, "save_model", acting)


@pytest.fixture
def file_size():
    """Sets how large a file may become: writing ends as on a full disk, in the real calls."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 500, 20_000])  # the weights; what follows; the moments
def test_a_full_disk_is_told_once_and_the_run_goes_on_when_there_is_room(
    recipe, monkeypatch, capsys, file_size, size
):
    with monkeypatch.context() as patch:
        at_save(patch, 2, lambda: file_size(size))
        code = main(["run", str(recipe)])
    file_size(resource.RLIM_INFINITY)
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("hf-sft:") == 2  # what it reads, and what is wrong
    assert "goes on from checkpoint-3" in told
    assert "Make room" in told
    assert checkpoints(recipe) == ["checkpoint-3"]
    assert newest_whole_checkpoint(recipe.parent / "out" / "checkpoints").name == "checkpoint-3"
    assert main(["run", str(recipe)]) == 0


def test_a_full_disk_takes_no_checkpoint_without_moments(recipe, monkeypatch, capsys, file_size):
    """Nobody can go on from it, but it was written whole."""
    with monkeypatch.context() as patch:
        at_save(patch, 2, lambda: file_size(500))
        assert main(["run", str(recipe), "training.save_only_model=true"]) == 2
    file_size(resource.RLIM_INFINITY)
    assert "the same command starts anew" in capsys.readouterr().err
    assert checkpoints(recipe) == ["checkpoint-3"]


def test_a_disk_full_before_the_first_checkpoint_leaves_no_torn_one(
    recipe, monkeypatch, capsys, file_size
):
    at_save(monkeypatch, 1, lambda: file_size(0))
    assert main(["run", str(recipe)]) == 2
    file_size(resource.RLIM_INFINITY)
    assert "the same command starts anew" in capsys.readouterr().err
    assert checkpoints(recipe) == []


def test_a_model_that_cannot_be_written_loses_no_training(recipe, monkeypatch, capsys, file_size):
    monkeypatch.setattr("hf_sft.running.take_average_", lambda trainer: file_size(500))
    assert main(["run", str(recipe)]) == 2
    file_size(resource.RLIM_INFINITY)
    assert "goes on from checkpoint-9" in capsys.readouterr().err
    assert torn_checkpoints(recipe.parent / "out" / "checkpoints") == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_turns_read_only(recipe, monkeypatch, capsys):
    folder = recipe.parent / "out" / "checkpoints"
    at_save(monkeypatch, 2, lambda: folder.chmod(0o500))
    code = main(["run", str(recipe)])
    folder.chmod(0o700)
    assert code == 2
    assert "make it writable" in capsys.readouterr().err
    assert checkpoints(recipe) == ["checkpoint-3"]


def test_what_goes_away_while_training_is_named(recipe, monkeypatch, capsys):
    gone = recipe.parent / "out" / "checkpoints"

    def lose():
        shutil.copytree(gone / "checkpoint-3", recipe.parent / "kept")
        (recipe.parent / "kept" / "nothing.json").read_text()

    at_save(monkeypatch, 2, lose)
    assert main(["run", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert "nothing.json' has gone while the run was under way" in told
    assert "goes on from checkpoint-3" in told


ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


def run_with_room_for(rows, recipe, monkeypatch, error, *more):
    given = BertForSequenceClassification.forward

    def forward(self, input_ids=None, **inputs):
        if self.training and len(input_ids) > rows:
            raise error
        return given(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    return main(["run", str(recipe), *more])


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_proposes_the_largest_part_that_goes_through(
    recipe, monkeypatch, capsys, kind
):
    code = run_with_room_for(
        3, recipe, monkeypatch, ERRORS[kind], "training.gradient_accumulation_steps=2"
    )
    told = capsys.readouterr().err
    assert code == 2
    assert "Out of memory at step 1 with training.per_device_train_batch_size: 8." in told
    assert "per_device_train_batch_size=2 training.gradient_accumulation_steps=8" in told
    assert checkpoints(recipe) == []


def test_out_of_memory_in_an_evaluation_is_no_matter_of_the_steps(recipe, monkeypatch, capsys):
    given = BertForSequenceClassification.forward

    def forward(self, input_ids=None, **inputs):
        if not self.training and len(input_ids) > 4:
            raise ERRORS["gpu"]
        return given(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    assert main(["run", str(recipe), "training.eval_strategy=epoch"]) == 2
    told = capsys.readouterr().err
    assert "in the evaluation after step 3 with training.per_device_eval_batch_size: 8." in told
    assert "Take training.per_device_eval_batch_size=4" in told
    assert "per_device_train_batch_size" not in told


def test_where_not_one_row_fits_other_ways_are_proposed(recipe, monkeypatch, capsys):
    assert run_with_room_for(0, recipe, monkeypatch, ERRORS["gpu"]) == 2
    assert "gradient_checkpointing" in capsys.readouterr().err


def test_a_process_of_any_rank_tells_what_it_alone_has_met(recipe, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run_with_room_for(3, recipe, monkeypatch, ERRORS["gpu"]) == 2
    assert "Out of memory at step 1" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(recipe, monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"):
        run_with_room_for(0, recipe, monkeypatch, RuntimeError("a bug"))


def test_smaller_batches_divide_the_batch():
    assert smaller(8) == [4, 2, 1]
    assert smaller(12) == [6, 3, 1]
    assert smaller(7) == [1]
    assert smaller(1) == []
