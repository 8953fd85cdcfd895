"""Pooled features of a frozen model, what identifies them, and their file on disk."""

import copy

import pytest
import tiny
import torch
from huggingface_hub import constants
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_sft.errors import SourceError
from hf_sft.ranking import stored_features
from hf_sft.ranking.features import Features, extract, identity


def batches(rows, size=4):
    return DataLoader(rows, size, collate_fn=default_data_collator)


def padded(rows, real=5):
    """The rows cut to ``real`` tokens, and the same with padding behind."""
    short = [{**r, "input_ids": r["input_ids"][:real], "attention_mask": [1] * real} for r in rows]
    mask = [1] * real + [0] * (tiny.LENGTH - real)
    return short, [{**row, "attention_mask": mask} for row in rows]


def test_features_of_an_encoder_are_its_last_states_over_real_positions():
    model, (short, long) = tiny.bert().eval(), padded(tiny.texts(6))
    found = extract(model, batches(long), head=True)
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([row["input_ids"] for row in short])}
        expected = model.bert(**inputs).last_hidden_state.mean(1)
        answers = model(**inputs).logits.softmax(-1)
    assert torch.allclose(found.features, expected, atol=1e-6)
    assert torch.allclose(found.probabilities, answers, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_features_of_a_timm_model_are_what_its_classifier_takes(kind):
    build, rows = tiny.KINDS[kind]
    model = build()
    found = extract(model, batches(rows(6)), head=True)
    classifier = model.timm_model.get_classifier()
    answers = classifier(found.features).softmax(-1)
    assert torch.allclose(found.probabilities, answers, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2", "t5", "resnet"])
def test_extraction_leaves_the_model_as_it_was(kind):
    build, rows = tiny.KINDS[kind]
    model = build(0.5).train()
    before = tiny.weights(model)
    rows = [{**row, "labels": 0} for row in rows(6)]
    if kind in ("gpt2", "t5"):
        rows = [{**row, "decoder_input_ids": [0]} if kind == "t5" else row for row in rows]
    found = extract(model, batches(rows), head=False)
    assert found.features.shape[0] == 6
    assert found.features.ndim == 2
    assert found.probabilities is None
    assert tiny.different(before, tiny.weights(model)) == []
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(extract(model, batches(rows), head=False).features, found.features)


def test_a_model_that_does_not_take_the_rows_is_told():
    with pytest.raises(SourceError, match="BertForSequenceClassification gives no features"):
        extract(tiny.bert(), batches(tiny.images(2)), head=False)


def changes():
    """What must give another identity: name -> (model, fresh, rows, head)."""
    rows = tiny.texts(6)
    other, settings, buffer = tiny.bert(), tiny.bert(), tiny.resnet()
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
        buffer.timm_model.bn1.running_mean[0] += 1e-3
    settings.config.hidden_act = "relu"
    words = copy.deepcopy(rows)
    words[3]["input_ids"][2] ^= 1
    shorter = copy.deepcopy(rows)
    shorter[5]["attention_mask"][-1] = 0
    head = ["classifier.weight", "classifier.bias"]
    return {
        "base": (tiny.bert(), head, rows, False),
        "one weight": (other, head, rows, False),
        "a setting": (settings, head, rows, False),
        "one word": (tiny.bert(), head, words, False),
        "the mask": (tiny.bert(), head, shorter, False),
        "order": (tiny.bert(), head, rows[::-1], False),
        "fewer rows": (tiny.bert(), head, rows[:5], False),
        "with its head": (tiny.bert(), [], rows, True),
        "images": (tiny.resnet(), [], tiny.images(4), True),
        "batch statistics": (buffer, [], tiny.images(4), True),
    }


def test_every_change_that_matters_has_its_own_identity():
    found = {n: identity(m, f, batches(r), h) for n, (m, f, r, h) in changes().items()}
    assert len(set(found.values())) == len(found)
    again = {n: identity(m, f, batches(r), h) for n, (m, f, r, h) in changes().items()}
    assert again == found


def test_labels_and_a_new_head_do_not_matter():
    model, head, rows, _ = changes()["base"]
    before = identity(model, head, batches(rows), False)
    torch.nn.init.normal_(model.classifier.weight)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    relabelled = [{**row, "labels": 1} for row in rows]
    assert identity(model, head, batches(relabelled), False) == before
    assert identity(model, [], batches(rows), True) != before


def test_another_version_has_its_own_identity(monkeypatch):
    model, head, rows, _ = changes()["base"]
    before = identity(model, head, batches(rows), False)
    monkeypatch.setattr("hf_sft.ranking.features.version", lambda name: "0.0")
    assert identity(model, head, batches(rows), False) != before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hf_sft" / "features"


def some():
    return Features(torch.randn(5, 3), torch.rand(5, 4))


def test_what_is_written_is_read_and_nothing_else(folder):
    one, other = some(), Features(torch.randn(2, 3))
    assert stored_features.read("a") is None
    stored_features.write("a", one)
    stored_features.write("b", other)
    read = stored_features.read("a")
    assert torch.equal(read.features, one.features)
    assert torch.equal(read.probabilities, one.probabilities)
    assert stored_features.read("b").probabilities is None
    assert sorted(path.name for path in folder.iterdir()) == ["a.features", "b.features"]
    stored_features.write("a", other)
    assert torch.equal(stored_features.read("a").features, other.features)


def test_a_torn_or_exchanged_file_is_not_read(folder, caplog):
    stored_features.write("a", some())
    stored_features.write("b", some())
    path = folder / "a.features"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    exchanged = (folder / "b.features").read_bytes()
    for torn in (b"", whole[:20], whole[: len(whole) // 2], whole[:-1], bytes(flipped), exchanged):
        path.write_bytes(torn)
        assert stored_features.read("a") is None
    assert "torn" in caplog.text
    path.write_bytes(whole)
    assert stored_features.read("a") is not None


def test_an_interrupted_write_leaves_the_old_file_and_no_other(folder, monkeypatch):
    stored_features.write("a", old := some())

    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sft.ranking.stored_features.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        stored_features.write("a", some())
    assert [path.name for path in folder.iterdir()] == ["a.features"]
    assert torch.equal(stored_features.read("a").features, old.features)


def test_a_cache_that_cannot_be_written_is_told_and_no_more(folder, caplog):
    folder.parent.parent.write_text("a file, not a folder")
    stored_features.write("a", some())
    assert "not kept" in caplog.text
    assert stored_features.read("a") is None
