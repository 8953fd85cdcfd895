"""f_θ⁰: the same numbers whether computed or remembered, and the source out of harm's way."""

import copy
import logging
import random

import pytest
import tiny
import torch
from test_function_priors import PRIORS, SGD, logged, move_, source_of, train
from test_lwf import batch
from transformers import DataCollatorWithPadding

from hf_sft import LwF, Similarity, TransferTrainer
from hf_sft.embeddings import Taps
from hf_sft.penalties.answers import LABELS
from hf_sft.training import source_function
from hf_sft.training.source_function import SourceFunction, keys

ALL = frozenset({"logits", "embeddings"})
GENTLE = {**SGD, "learning_rate": 0.01}  # rounding must not grow


def uneven(count):
    """Texts of 3 to 8 words."""
    rows = tiny.texts(count)
    for i, row in enumerate(rows):
        size = 3 + i % 6
        row["input_ids"], row["attention_mask"] = row["input_ids"][:size], [1] * size
    return rows


def padded(rows):
    """To the longest of the batch, as a collator does."""
    size = max(len(row["input_ids"]) for row in rows)
    fill = {name: [row[name] + [0] * (size - len(row[name])) for row in rows]
            for name in ("input_ids", "attention_mask")}  # fmt: skip
    labels = [row["labels"] for row in rows]
    return {k: torch.tensor(v) for k, v in {**fill, "labels": labels}.items()}


def remembered(rows, needs=ALL):
    function = SourceFunction(tiny.bert(), needs)
    kept = function.remember((padded(rows[i : i + 4]) for i in range(0, len(rows), 4)), len(rows))
    return function, kept


# ---- remembered ----


def test_remembered_is_computed():
    """In batches of other sizes, orders and paddings; nothing is computed again."""
    rows = uneven(16)
    function, kept = remembered(rows)
    assert kept == 16
    plain = SourceFunction(tiny.bert(), ALL)
    function.model.forward = None  # would be called
    for chosen in ([3], [15, 0, 7], list(range(16)), [5, 5]):
        inputs = padded([rows[i] for i in chosen])
        found, expected = function(inputs), plain(inputs)
        assert torch.allclose(found.logits, expected.logits, atol=1e-6)
        assert torch.allclose(found.embeddings, expected.embeddings, atol=1e-6)


def test_one_unknown_example_and_all_are_computed():
    rows = uneven(16)
    function, _ = remembered(rows[:8])
    plain = SourceFunction(tiny.bert(), ALL)
    inputs = padded(rows[4:12])
    assert torch.equal(function(inputs).logits, plain(inputs).logits)


def test_keys_are_the_content():
    rows = uneven(12)
    short, long = padded(rows[:1]), padded(rows[:6])
    assert keys(short)[0] == keys(long)[0]
    assert len(set(keys(padded(rows)))) == 12
    other = {**long, "labels": long["labels"] + 1}
    assert keys(other) == keys(long)  # labels are no part of the function
    left = {k: torch.nn.functional.pad(v, (2, 0)) if v.ndim == 2 else v for k, v in short.items()}
    assert keys(left) != keys(short)  # GPT-2 numbers positions from the padding on
    pixels = torch.randn(2, 3, 4, 4)
    assert len(set(keys({"pixel_values": pixels}))) == 2
    assert keys({"pixel_values": pixels}) != keys({"pixel_values": pixels.double()})
    assert set(keys({"pixel_values": pixels})).isdisjoint(
        keys({"pixel_values": pixels.view(2, 3, 16)})
    )


def test_memory_is_bounded_before_it_is_filled(monkeypatch):
    """20 bytes of logits and embeddings of 16 numbers for each of 16 examples."""
    row = (3 + 16) * 4
    seen = []

    def batches(rows):
        for i in range(0, 16, 4):
            seen.append(i)
            yield padded(rows[i : i + 4])

    for limit, kept, looked in ((16 * row, 16, 4), (16 * row - 1, 0, 1)):
        monkeypatch.setattr(source_function, "MOST_BYTES", limit)
        seen.clear()
        function = SourceFunction(tiny.bert(), ALL)
        assert function.remember(batches(uneven(16)), 16) == kept
        assert len(seen) == looked
        assert len(function._known) == kept


@pytest.mark.parametrize("kind", ["bert-tokens", "gpt2", "t5"])
def test_outputs_per_position_are_not_kept(kind):
    function = SourceFunction(tiny.KINDS[kind][0](), frozenset({"logits"}))
    assert function.remember([batch(kind)], 6) == 0


def told(caplog):
    return [r.message for r in caplog.records if "computed once" in r.message]


@pytest.mark.parametrize("case", ["lwf", "lwf-own-head", "similarity"])
def test_training_is_the_same_with_and_without(case, monkeypatch, tmp_path, caplog):
    found = []
    for limit in (source_function.MOST_BYTES, 0):
        monkeypatch.setattr(source_function, "MOST_BYTES", limit)
        torch.manual_seed(0)
        settings = {"train_dataset": uneven(24), "data_collator": padded, **source_of(case)}
        with caplog.at_level(logging.INFO, logger="hf_sft"):
            trainer = TransferTrainer(
                tiny.bert(), tiny.arguments(tmp_path, **GENTLE), penalty=PRIORS[case], **settings
            )
            trainer.train()
        found.append(tiny.weights(trainer.model))
    assert told(caplog) == ["The source's outputs on 24 examples are computed once."]
    assert tiny.distance(*found) < 1e-5


def test_preparing_draws_nothing(tmp_path):
    """A run that remembers and one that does not see the same order and dropout."""
    trainer = train("lwf", tmp_path, dropout=0.1)
    before = torch.get_rng_state(), random.getstate()
    trainer.source_pass.prepare(trainer)
    assert trainer.source_pass.function._known
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert trainer.model.training


class Augmented(torch.utils.data.Dataset):
    def __init__(self):
        self.rows = tiny.images(16)

    def __len__(self):
        return 16

    def __getitem__(self, i):
        row = self.rows[i]
        return {**row, "pixel_values": row["pixel_values"] + 0.1 * torch.randn(3, 32, 32)}


def test_augmented_data_are_noticed(tmp_path, caplog):
    settings = {"train_dataset": Augmented(), "penalty": LwF(), "fresh": ()}
    with caplog.at_level(logging.INFO, logger="hf_sft"):
        trainer = TransferTrainer(tiny.vit(), tiny.arguments(tmp_path), **settings)
        trainer.train()
    assert told(caplog) == []
    assert trainer.source_pass.function._known == {}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"num_train_epochs": 1}, 0),
        ({"num_train_epochs": 2}, 24),
        ({"max_steps": 3}, 0),
        ({"max_steps": 4}, 24),
    ],
)
def test_only_what_recurs_is_remembered(changes, kept, tmp_path):
    trainer = train("lwf", tmp_path, **changes)
    trainer.source_pass.prepare(trainer)
    assert len(trainer.source_pass.function._known) == kept


def test_another_train_set_is_remembered_anew(tmp_path):
    trainer = train("lwf", tmp_path)
    trainer.source_pass.prepare(trainer)
    trainer.train_dataset = tiny.texts(40)[24:]
    trainer.source_pass.prepare(trainer)
    assert len(trainer.source_pass.function._known) == 16


# ---- the source itself ----


def test_the_source_is_an_unwatched_copy_in_eval_mode(tmp_path):
    model = tiny.bert(dropout=0.3)
    settings = {"train_dataset": tiny.texts(24), "fresh": ()}
    first = TransferTrainer(model, tiny.arguments(tmp_path), penalty=Similarity(), **settings)
    first.train()
    second = TransferTrainer(model, tiny.arguments(tmp_path), penalty=LwF(), **settings)
    source = second.source_pass.function.model
    assert not source.training
    assert not any(p.requires_grad for p in source.parameters())
    before, inputs = second.source_pass.function(batch("bert")), batch("bert")
    move_(model)
    assert torch.equal(second.source_pass.function(inputs).logits, before.logits)
    source.train()
    source(**inputs)
    assert first.source_pass.taps._hidden is None


def test_a_copy_of_a_watched_model_is_not_watched():
    model, inputs = tiny.bert(), batch("bert")
    taps = Taps(model, embeddings=True, layers=["bert.encoder.layer.0"])
    model(**inputs)
    seen = taps.embeddings(inputs), taps.maps["bert.encoder.layer.0"]
    other = copy.deepcopy(model)  # what was seen hangs on the graph, and cannot be copied
    move_(other)
    other(**inputs)
    assert taps.maps["bert.encoder.layer.0"] is seen[1]
    assert torch.equal(taps.embeddings(inputs), seen[0])
    taps.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_is_held_after_a_step(tmp_path):
    trainer = train("delta", tmp_path)
    trainer.train()
    for taps in (trainer.source_pass.taps, trainer.source_pass.function.taps):
        assert taps.maps == {}
        assert taps.outputs is None


def test_source_and_model_run_in_one_precision(tmp_path):
    """Under bf16 autocast, θ⁰ answers what the source answers: nothing is lost at θ⁰."""
    trainer = train("lwf", tmp_path, bf16=True, learning_rate=0.0, penalty=LwF(weight=1e6))
    trainer.train()
    assert max(logged(trainer, "penalty")) < 1e-2
    assert trainer.source_pass.function.precision == trainer.accelerator.autocast


def test_a_given_source_is_brought_to_the_models_device_and_type_of_use(tmp_path):
    """On the meta device nothing can be computed, but places can be seen."""
    settings = source_of("lwf-own-head")
    source = settings["source"]
    trainer = train("lwf-own-head", tmp_path)
    assert trainer.source_pass.function.device == trainer.args.device
    moved = []
    source.to = lambda device: moved.append(device) or source
    TransferTrainer(
        tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.texts(8), penalty=LwF(),
        fresh=settings["fresh"], source=source,
    )  # fmt: skip
    assert moved == [torch.device("cpu")]


def test_the_model_itself_as_source_is_copied(tmp_path):
    model = tiny.bert()
    settings = {"train_dataset": tiny.texts(24), "fresh": (), "source": model}
    trainer = TransferTrainer(model, tiny.arguments(tmp_path), penalty=LwF(), **settings)
    trainer.train()
    assert trainer.source_pass.function.model is not model
    assert not trainer.source_pass.function.own_head


@pytest.mark.parametrize("case", ["lwf", "similarity"])
def test_label_smoothing_takes_the_labels_out_and_the_prior_still_sees_them(case, tmp_path):
    trainer = train(case, tmp_path, label_smoothing_factor=0.1)
    trainer.train()
    assert max(logged(trainer, "penalty")) > 0


def test_dynamic_padding_by_transformers_own_collator(tmp_path):
    """Rows keep their keys through a collator that pads; labels are renamed on the way."""
    assert "labels" in LABELS

    class Tokens:
        padding_side, model_input_names = "right", ["input_ids", "attention_mask"]

        def pad(self, rows, **kwargs):
            return padded(rows)

    collator = DataCollatorWithPadding(Tokens())
    settings = {"train_dataset": uneven(24), "data_collator": collator, "fresh": ()}
    trainer = TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), penalty=LwF(), **settings)
    trainer.train()
    assert len(trainer.source_pass.function._known) == 24
