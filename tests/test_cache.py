"""A training from stored outputs of the frozen layers is the training that it stands for."""

import copy
import multiprocessing
import time
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import pytest
import tiny
import torch
from transformers import TrainerCallback

from hf_sft import L2SP, LPFT, LinearProbe, Similarity, TrainAll, TrainLast, TransferTrainer
from hf_sft.caching import chunks as chunk_files
from hf_sft.caching.chunks import Chunk, Chunks
from hf_sft.caching.feature_cache import ABOUT, FeatureCache
from hf_sft.draws import Draws
from hf_sft.freezing import FreezePolicy
from hf_sft.tasks.augmentation import DrawnRows

ROWS, EVALUATED = 32, 16
POLICIES = {"head": LinearProbe(), "last": TrainLast(count=1), "lp-ft": LPFT(probe=0.75)}
CUTS = [(kind, policy) for kind in ("bert", "vit", "resnet", "convnext") for policy in POLICIES]


class Counted(torch.utils.data.Dataset):
    """Rows that count how often they are read."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.read += 1
        return self.rows[row]


def built(tmp_path, kind="bert", freeze=POLICIES["head"], cache=None, rows=None, **changes):
    """A trainer with dropout where the model has some; ``cache``: keys of the block, or None."""
    model, data = tiny.KINDS[kind]
    settings = {"eval_strategy": "epoch", "num_train_epochs": 3, **changes}
    others = {key: settings.pop(key) for key in ("penalty", "data_collator") if key in settings}
    model = model(0.1)
    torch.manual_seed(1)
    return TransferTrainer(
        model,
        tiny.arguments(tmp_path / "out", **settings),
        train_dataset=data(ROWS) if rows is None else rows,
        eval_dataset=data(EVALUATED + 8)[8:],
        freeze=freeze,
        fresh=[name for name, _ in model.named_parameters() if "classif" in name or ".fc." in name]
        or None,
        cache=None if cache is None else FeatureCache(folder=str(tmp_path / "cache"), **cache),
        **{"penalty": L2SP(lambda_=0.01, head=0.01), **others},
    )


def trained(trainer, **how):
    trainer.train(**how)
    return tiny.weights(trainer.model)


def history(trainer):
    timing = ("seconds", "runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in timing)}
        for entry in trainer.state.log_history
    ]


@contextmanager
def counted_rows(module):
    """How many rows pass a module."""
    seen = []
    hook = module.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    yield seen
    hook.remove()


def first_module(trainer):
    return {
        "bert": lambda m: m.bert.embeddings.word_embeddings,
        "vit": lambda m: m.vit.embeddings.patch_embeddings,
    }[trainer.model.config.model_type](trainer.model)


def warned(caplog):
    return [r.getMessage() for r in caplog.records if "No feature cache" in r.getMessage()]


@pytest.mark.parametrize(("kind", "policy"), CUTS, ids=["-".join(cut) for cut in CUTS])
def test_weights_logs_and_evaluations_are_those_of_a_training_without(
    tmp_path, kind, policy, caplog
):
    plain = built(tmp_path, kind, POLICIES[policy])
    expected = trained(plain)
    cached = built(tmp_path, kind, POLICIES[policy], cache={})
    found = trained(cached)
    assert warned(caplog) == []
    assert list((tmp_path / "cache").glob("*/*.chunk"))
    assert tiny.different(expected, found) == []
    assert history(plain) == history(cached)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_frozen_layers_see_every_row_once(tmp_path, kind):
    trainer = built(tmp_path, kind, cache={})
    with counted_rows(first_module(trainer)) as seen:
        trainer.train()
    once, trying = ROWS + EVALUATED, 30
    assert once <= sum(seen) <= once + trying
    again = built(tmp_path, kind, cache={})
    with counted_rows(first_module(again)) as seen:
        again.train()
    assert sum(seen) <= trying


def test_pictures_are_read_once(tmp_path):
    rows = Counted(tiny.images(ROWS))
    expected = trained(built(tmp_path, "resnet"))
    trained(built(tmp_path, "resnet", cache={}, rows=rows))
    rows.read = 0
    assert tiny.different(expected, trained(built(tmp_path, "resnet", cache={}, rows=rows))) == []
    assert rows.read < 2 * ROWS  # their hash, and those that are tried


def test_after_the_probe_the_whole_model_trains_again(tmp_path):
    trainer = built(
        tmp_path, "bert", LPFT(probe=0.5), cache={}, num_train_epochs=4, eval_strategy="no"
    )
    with counted_rows(first_module(trainer)) as seen:
        trainer.train()
    assert ROWS + 2 * ROWS <= sum(seen) <= ROWS + 2 * ROWS + 30
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-2]["loss"]))


def test_steps_do_not_walk_over_what_is_skipped_while_it_is(tmp_path):
    trainer = built(tmp_path, "bert", LPFT(probe=0.5), cache={}, num_train_epochs=4)
    layer, modes, copied = trainer.model.bert.encoder.layer[0].output, {}, []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.model.train()  # as anybody may
            modes[state.global_step] = layer.training
            if state.global_step == 1:
                copied.append(copy.deepcopy(trainer.model))

    trainer.add_callback(Look())
    trainer.train()
    half = trainer.state.max_steps // 2
    assert modes == {step: step > half for step in range(1, 2 * half + 1)}
    assert all(module.training for module in copied[0].train().modules())
    assert not any(module.training for module in copied[0].eval().modules())


class Swing(FreezePolicy):
    """The last block trains, then the first, then the last again."""

    dynamic: ClassVar[bool] = True
    type: Literal["swing"] = "swing"

    def open(self, groups, progress, signals):
        return frozenset(groups.blocks[0 if 0.5 <= progress < 0.7 else -1].parameters)


def test_layers_that_train_and_rest_again_are_not_taken_from_the_files(tmp_path, caplog):
    how = {"freeze": Swing(), "num_train_epochs": 5, "save_strategy": "epoch"}
    expected = trained(built(tmp_path, **how))
    assert tiny.different(expected, trained(built(tmp_path, cache={}, **how))) == []
    assert files(tmp_path)
    assert warned(caplog) == []
    late = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-16")}
    assert tiny.different(expected, trained(built(tmp_path, cache={}, **how), **late)) == []
    assert "have trained before the checkpoint" in warned(caplog)[0]


def ragged(count):
    """Rows of 3 to 8 tokens."""
    return [
        {key: value[: 3 + i % 6] if key != "labels" else value for key, value in row.items()}
        for i, row in enumerate(tiny.texts(count))
    ]


class Padded:
    """A collator that pads on one side."""

    def __init__(self, left=False):
        self.left = left

    def __call__(self, rows):
        width = max(len(row["input_ids"]) for row in rows)

        def pad(values):
            zeros = [0] * (width - len(values))
            return zeros + values if self.left else values + zeros

        found = {
            key: torch.tensor([pad(row[key]) for row in rows])
            for key in ("input_ids", "attention_mask")
        }
        return {**found, "labels": torch.tensor([row["labels"] for row in rows])}


def test_texts_are_stored_without_padding_and_padded_anew(tmp_path, caplog):
    how = {
        "freeze": TrainLast(count=1),
        "rows": ragged(ROWS),
        "data_collator": Padded(),
        "eval_strategy": "no",
        "optim": "sgd",  # Adam makes a step of any difference, and a key's bias has no gradient
    }
    expected = trained(built(tmp_path, **how))
    trainer = built(tmp_path, cache={}, **how)
    planned = trainer.planned_cache()
    tokens = sum(len(row["input_ids"]) for row in how["rows"])
    assert sum(kept.chunks.bytes for kept in planned.sets.values()) == tokens * 16 * 4
    assert tiny.distance(expected, trained(trainer)) < 1e-6
    assert warned(caplog) == []


def test_padding_that_moves_positions_is_found_out(tmp_path, caplog):
    how = {
        "freeze": TrainLast(count=1),
        "rows": ragged(ROWS),
        "data_collator": Padded(left=True),
        "eval_strategy": "no",
    }
    expected = trained(built(tmp_path, **how))
    assert tiny.different(expected, trained(built(tmp_path, cache={}, **how))) == []
    assert "outputs differ" in warned(caplog)[0]


def test_half_precision_takes_half_the_place(tmp_path, caplog):
    full, half = built(tmp_path, cache={}), built(tmp_path, cache={"dtype": "bfloat16"})
    sizes = [sum(k.chunks.bytes for k in t.planned_cache().sets.values()) for t in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    assert 0 < tiny.distance(trained(full), trained(half)) < 0.05
    assert warned(caplog) == []


def test_the_model_is_left_without_a_trace(tmp_path):
    trainer = built(tmp_path, cache={})
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trainer.model.modules()]
    trainer.train()
    own = [vars(module) for module in trainer.model.modules()]
    assert not any("forward" in names or "train" in names for names in own)
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trainer.model.modules()
    ]


# ---- what lies on disk ----


def files(tmp_path, ending="chunk"):
    return sorted((tmp_path / "cache").glob(f"*/*.{ending}"))


def test_a_torn_file_is_made_again(tmp_path):
    expected = trained(built(tmp_path, cache={}))
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-7])
    assert tiny.different(expected, trained(built(tmp_path, cache={}))) == []


def test_what_belongs_to_another_model_or_other_rows_is_not_used(tmp_path):
    trainer = built(tmp_path, cache={})
    names = {kept.chunks.folder for kept in trainer.planned_cache().sets.values()}
    rows = tiny.texts(ROWS)
    rows[5]["input_ids"][3] += 1
    others = [
        built(tmp_path, cache={}, rows=rows),
        built(tmp_path, cache={}, freeze=POLICIES["last"]),
    ]
    with torch.no_grad():
        moved = tiny.bert(0.1)
        moved.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    rows = {"train_dataset": tiny.texts(ROWS), "eval_dataset": tiny.texts(EVALUATED)}
    plain = {**rows, "freeze": LinearProbe(), "cache": trainer.cache}
    fresh = ["classifier.weight", "classifier.bias"]
    others.append(TransferTrainer(moved, trainer.args, fresh=fresh, **plain))
    for other in others:
        train = other.planned_cache().sets[id(other.train_dataset)]
        assert train.chunks.folder not in names


def test_whole_files_with_wrong_features_are_found_out(tmp_path, caplog):
    expected = trained(built(tmp_path))
    trained(built(tmp_path, cache={}))
    for path in files(tmp_path):
        stored = torch.load(path, weights_only=True)
        torch.save({**stored, "features": stored["features"] + 1}, path)
        path.rename(path.with_name(f"{path.name[:6]}-{chunk_files.checksum(path)}.chunk"))
    assert tiny.different(expected, trained(built(tmp_path, cache={}))) == []
    assert "outputs differ" in warned(caplog)[0]


def test_an_interrupted_building_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_files, "ROWS", 8)
    expected = trained(built(tmp_path))
    trainer = built(tmp_path, cache={})
    write, made = Chunks._write, []

    def interrupted(self, number, chunk):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(number)
        write(self, number, chunk)

    monkeypatch.setattr(Chunks, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(files(tmp_path)) == 3
    made.clear()
    monkeypatch.setattr(Chunks, "_write", lambda *args: (made.append(args[1]), write(*args)))
    assert tiny.different(expected, trained(built(tmp_path, cache={}))) == []
    assert len(made) == (ROWS + EVALUATED) // 8 - 3


def _build(folder, own):
    def make(rows):
        time.sleep(0.05)
        return Chunk(torch.tensor([[float(row)] for row in rows]))

    own.put(Chunks(folder, None, 10 * chunk_files.ROWS, 4).build(make))


def test_two_processes_build_together(tmp_path):
    fork = multiprocessing.get_context("fork")
    own = fork.Queue()
    workers = [fork.Process(target=_build, args=(tmp_path, own)) for _ in range(2)]
    for worker in workers:
        worker.start()
    made = [own.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(made) == 10
    assert min(made) > 0
    whole = Chunks(tmp_path, None, 10 * chunk_files.ROWS, 4)
    assert whole.build(lambda rows: pytest.fail("nothing is missing")) == 0
    assert [float(whole.row(row)) for row in (0, 5000, 10239)] == [0, 5000, 10239]


def test_what_was_used_longest_ago_makes_room(tmp_path):
    settings = FeatureCache(folder=str(tmp_path), max_gb=3e-6)
    for age, name in ((30, "old"), (10, "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000000-0.chunk").write_bytes(bytes(1000))
        about = tmp_path / name / ABOUT
        about.write_text("{}", "utf-8")
        stamp = time.time() - age
        __import__("os").utime(about, (stamp, stamp))
    settings.make_room(1000, set())
    assert (tmp_path / "old").is_dir()
    settings.make_room(2000, set())
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "new").is_dir()


def test_lengths_decide_where_a_row_lies(tmp_path):
    lengths = np.array([2, 0, 3])
    chunks = Chunks(tmp_path, lengths, 3, 4)
    chunks.build(lambda rows: Chunk(torch.arange(5.0), [{"labels": row} for row in rows]))
    assert [chunks.row(row).tolist() for row in range(3)] == [[0, 1], [], [2, 3, 4]]
    assert chunks.rest(2) == {"labels": 2}
    assert chunks.bytes == 20


# ---- where there is none ----


class Drawing(Counted):
    def __init__(self, rows):
        super().__init__(rows)
        self.draws = Draws()


class Noisy(Counted):
    """Pictures with noise from torch's own generator, as an augmentation draws."""

    def __getitem__(self, row):
        found = dict(super().__getitem__(row))
        return {**found, "pixel_values": found["pixel_values"] + torch.rand(())}


def drawn_pictures(kind):
    return DrawnRows(Noisy(tiny.KINDS[kind][1](ROWS)))


def drawing_as_in(monkeypatch, epochs):
    """Every epoch draws as the one that stands in its place."""
    begin = Draws.begin
    monkeypatch.setattr(
        Draws, "begin", lambda draws, seed, epoch: begin(draws, seed, epochs[epoch])
    )


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_views_are_the_draws_of_the_first_epochs_over_and_over(tmp_path, kind, monkeypatch):
    how = {"kind": kind, "num_train_epochs": 6}
    trainer = built(tmp_path, rows=drawn_pictures(kind), cache={"views": 2}, **how)
    found = trained(trainer)
    assert trainer.train_dataset.rows.read < 4 * ROWS, "not once per epoch"
    anew = trained(built(tmp_path, rows=drawn_pictures(kind), **how))
    assert tiny.different(found, anew) != [], "the third epoch draws anew"
    drawing_as_in(monkeypatch, [0, 1, 0, 1, 0, 1])
    assert tiny.different(found, trained(built(tmp_path, rows=drawn_pictures(kind), **how))) == []


def test_after_the_probe_rows_are_drawn_anew(tmp_path, monkeypatch):
    how = {"kind": "vit", "freeze": LPFT(probe=0.5), "num_train_epochs": 4}
    found = trained(built(tmp_path, rows=drawn_pictures("vit"), cache={"views": 1}, **how))
    drawing_as_in(monkeypatch, [0, 0, 2, 3])
    assert tiny.different(found, trained(built(tmp_path, rows=drawn_pictures("vit"), **how))) == []


REFUSED = {
    "dropout before a frozen layer": (
        {"kind": "gpt2", "freeze": TrainLast(count=1)},
        "transformer.drop draws at random",
    ),
    "nothing frozen": ({"freeze": TrainAll()}, "no frozen layer comes before"),
    "statistics that move": (
        {"kind": "resnet", "freeze": LinearProbe(norm_statistics="train")},
        "running statistics move",
    ),
    "masking": ({"rows": Drawing(tiny.texts(ROWS))}, "draws its rows anew"),
    "augmentation": ({"kind": "vit", "rows": drawn_pictures("vit")}, "cache.views says how many"),
    "as many views as epochs": (
        {"kind": "vit", "rows": drawn_pictures("vit"), "cache": {"views": 3}},
        "no row passes the frozen layers twice",
    ),
    "a function prior": (
        {"freeze": TrainLast(count=1), "penalty": Similarity()},
        "compares what the whole model",
    ),
    "one epoch": ({"num_train_epochs": 1}, "no row passes the frozen layers twice"),
    "a budget": ({"cache": {"max_gb": 1e-9}}, "cache.max_gb is 1e-09"),
}


def test_a_model_that_is_built_when_training_begins_is_not_cached(tmp_path, caplog):
    found = built(tmp_path, cache={})
    found.model_init = lambda: tiny.bert(0.1)
    found.train()
    assert "model_init builds another model" in warned(caplog)[0]


def test_another_layout_of_the_weights_is_another_cache(tmp_path):
    trainer, names = built(tmp_path, "resnet", cache={}), []
    for layout in (torch.contiguous_format, torch.channels_last):
        trainer.model.to(memory_format=layout)
        names.append({kept.chunks.folder.name for kept in trainer.planned_cache().sets.values()})
    assert not names[0] & names[1]


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_would_be_wrong_or_useless_a_warning_says_why(tmp_path, case, caplog):
    how, reason = REFUSED[case]
    how = {"cache": {}, **how}
    expected = trained(built(tmp_path, **{**how, "cache": None}))
    trainer = built(tmp_path, **how)
    assert reason in trainer.cache_outlook()
    assert tiny.different(expected, trained(trainer)) == []
    assert reason in warned(caplog)[0]
    assert files(tmp_path) == []


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    how = {"freeze": LPFT(probe=0.7), "save_strategy": "epoch", "num_train_epochs": 3}
    expected = trained(built(tmp_path, **how))
    for checkpoint in ("checkpoint-4", "checkpoint-8"):
        folder = tmp_path / "out" / checkpoint
        found = trained(built(tmp_path, cache={}, **how), resume_from_checkpoint=str(folder))
        assert tiny.different(expected, found) == []
