"""θ⁰ in the file that the model was loaded from: equal to a copy, without its memory."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from transformers import BertForSequenceClassification

from hf_sft import L2SP, StartingPoint, TransferTrainer, starting_point
from hf_sft.errors import SourceError
from hf_sft.mapped_files import MAPS, MappedFiles
from hf_sft.starting_point import digest

pytestmark = pytest.mark.skipif(not MAPS.is_file(), reason="mappings are read from Linux's /proc")


@pytest.fixture
def folder(tmp_path):
    tiny.bert().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def loaded(folder):
    return BertForSequenceClassification.from_pretrained(folder)


def in_file(tensor):
    """Whether a tensor lies in a mapping of model.safetensors."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        if "model.safetensors" in line:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


def test_the_starting_point_lies_in_the_file_and_stays_when_weights_move(folder):
    model = loaded(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = StartingPoint.of(model, fresh=())
    assert start.copies.keys() == before.keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for name, value in before.items():
        assert in_file(start.copies[name]), name
        assert torch.equal(start.copies[name], value)
        assert torch.equal(start.anchor(name, value), value)


def test_what_was_changed_after_loading_is_copied_as_it_is(folder):
    model = loaded(folder)
    name, parameter = next(iter(model.named_parameters()))
    with torch.no_grad():
        parameter[0] += 1
    kept = MappedFiles().copy(name, parameter)
    assert torch.equal(kept, parameter)
    assert not in_file(kept)
    assert not in_file(MappedFiles().copy(name, torch.ones(3)))


def test_what_never_trains_has_no_copy(folder):
    model = loaded(folder)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    start = StartingPoint.of(model, fresh=())
    assert start.copies.keys() == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_deleted_or_replaced_changes_nothing(folder, how):
    model = loaded(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = StartingPoint.of(model, fresh=())
    file = folder / "model.safetensors"
    if how == "replaced":
        other = folder / "other"
        other.write_bytes(bytes(file.stat().st_size))
        os.replace(other, file)
    else:
        file.unlink()
    for name, value in before.items():
        assert torch.equal(start.anchor(name, value), value)


@pytest.mark.parametrize("how", ["overwritten", "cut"])
def test_a_file_that_is_written_to_in_place_is_told_before_it_is_used(folder, how):
    model = loaded(folder)
    start = StartingPoint.of(model, fresh=())
    name, parameter = next(iter(model.named_parameters()))
    file = folder / "model.safetensors"
    touched(file, 1)
    start.anchor(name, parameter)  # and what follows is told all the same
    with file.open("r+b") as opened:
        if how == "cut":
            opened.truncate(0)
        else:
            opened.seek(-1, os.SEEK_END)
            last = opened.read(1)
            opened.seek(-1, os.SEEK_END)
            opened.write(bytes([last[0] ^ 1]))
    touched(file, 2)
    with pytest.raises(SourceError, match=r"model\.safetensors.*written to"):
        start.anchor(name, parameter)


def touched(file, when):
    """Another time of the last change, whatever the ticks of the clock."""
    os.utime(file, ns=(when, when))


def test_a_file_that_is_touched_changes_nothing(folder, monkeypatch):
    """The tensors are compared with those that were loaded, once, wherever training began."""
    model = loaded(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grew = next(name for name in before if "word_embeddings" in name)
    start = StartingPoint.of(model, fresh=(), rows={grew: 5})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    start.begin_at_(model, {})
    touched(folder / "model.safetensors", 1)
    looked = []
    monkeypatch.setattr(starting_point, "digest", lambda t: looked.append(t) or digest(t))
    for name, value in before.items():
        assert torch.equal(start.anchor(name, value), value)
    assert len(looked) == len(before)


def test_training_is_the_same_as_with_copies(folder, tmp_path):
    found = []
    for copied in (False, True):
        model = loaded(folder)
        if copied:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        args = tiny.arguments(tmp_path / str(copied), max_steps=4)
        trainer = TransferTrainer(
            model, args, train_dataset=tiny.texts(16), penalty=L2SP(lambda_=1.0), fresh=()
        )
        assert in_file(next(iter(trainer.starting_point.copies.values()))) is not copied
        trainer.train()
        found.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
