"""Prefix: the frozen part of a trainer's model, its outputs on all rows computed once."""

import hashlib
import json
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sft.caching.agreement import Trial
from hf_sft.caching.chunks import Chunk, Chunks
from hf_sft.caching.feature_cache import FeatureCache, gb, mark
from hf_sft.caching.kept_rows import KeptRows, joined
from hf_sft.caching.light_steps import LightSteps
from hf_sft.caching.phase import Phase
from hf_sft.caching.replay import Replay
from hf_sft.caching.row_identity import batch_identity, row_identity
from hf_sft.caching.seam import NoCache, prefix_parameters
from hf_sft.caching.views import Views
from hf_sft.starting_point import digest
from hf_sft.training.alike_lengths import row_lengths
from hf_sft.training.loss_scale import collator

FORMAT = 1  # raised when the same identity comes to mean other features
LIBRARIES = ("torch", "transformers", "timm", "torchvision", "pillow")  # rows are read by them too
NO_MATTER = ("_name_or_path", "id2label", "label2id")  # settings that change no feature


class Prefix:
    """What a trainer's model computes below its first layer that trains, for its data sets.

    Args:
        trainer: a TransferTrainer whose plan is followed.
        settings: where and how it is kept.
        phase: the plan it is cut under.

    Attributes:
        replay: the model cut in two.
        sets: the trainer's data sets, by the ``id`` of each.
        light: steps that do not walk over it.

    Raises:
        NoCache: no seam lets the model say the same; the rows draw at random.
    """

    def __init__(self, trainer: Any, settings: FeatureCache, phase: Phase):
        self.trainer, self.settings, self.phase = trainer, settings, phase
        self.main = getattr(trainer.model, "main_input_name", "input_ids")
        self.sets = {id(rows): self._set(rows) for rows in _data_sets(trainer)}
        train = self.sets[id(trainer.train_dataset)]
        self.few = _few(train.rows)
        batches = [self._whole(train, [row]) for row in self.few]
        self.trial = self._trial(train)
        groups = trainer.layer_groups
        self.replay = self.trial.replay(groups, phase.trains, batches, self._joined)
        self.still = prefix_parameters(trainer.model, self.replay.seam)
        self.rows = phase.rows_until(frozenset(self.still))
        phase.refuse_moved(frozenset(self.still))
        self.light = LightSteps(trainer.model, self.replay.skipped, trainer.ever_trains)
        for kept in self.sets.values():
            kept.chunks = self._chunks(kept)

    def __str__(self) -> str:
        rows = sum(len(kept.rows) for kept in self.sets.values())
        size = gb(sum(kept.chunks.bytes for kept in self.sets.values()))
        return f"{self.replay.seam}: {rows:,} rows, {size} as {self.settings.dtype}"

    def look(self) -> None:
        """Once something below the seam trains, what is kept is of a model that is no more."""
        if any(parameter.requires_grad for parameter in self.still.values()):
            self.end()

    def end(self) -> None:
        """From here on, batches and steps are whole."""
        self.light.end()
        for kept in self.sets.values():
            kept.keeps = False

    @property
    def missing(self) -> int:
        """Bytes that are not there yet."""
        every = [kept.chunks for kept in self.sets.values()]
        return sum(chunks.bytes for chunks in every if chunks.missing)

    def refuse_useless(self) -> None:
        """What is made must fit, and be used more often than it is made.

        Raises:
            NoCache: it does not, or is not.
        """
        missing = self.missing
        if missing and self.rows <= len(self.sets[id(self.trainer.train_dataset)].rows):
            raise NoCache("no row passes the frozen layers twice before they train, or it ends")
        self.settings.refuse_large(sum(k.chunks.bytes for k in self.sets.values()), missing)

    def build(self) -> None:
        """Make what is missing, and compare some of what is there with the model once more.

        Raises:
            NoCache: it does not fit; what is there is of another model or data set.
        """
        self.refuse_useless()
        every = [kept.chunks for kept in self.sets.values()]
        needed = sum(chunks.bytes for chunks in every)
        self.settings.make_room(needed, {chunks.folder.name for chunks in every})
        self.trainer.model.eval()
        for kept in self.sets.values():
            mark(kept.chunks.folder, kept.identity)
            kept.chunks.build(lambda rows, kept=kept: self._made(kept, rows))
        train = self.sets[id(self.trainer.train_dataset)]
        batch = self.trainer._prepare_inputs(train.batch(self.few, train.chunks.row))
        if said := self.trial.disagreement(self.replay, batch):
            where = train.chunks.folder
            raise NoCache(f"with what is in '{where}' the outputs differ ({said}); remove it")
        for kept in self.sets.values():
            kept.keeps = True
        self.trial.calls.clear()  # activations

    # ---- parts ----

    def _set(self, rows: Any) -> KeptRows:
        if getattr(self.trainer.data_collator, "draws", None):
            raise NoCache("every epoch draws its rows anew (mixing or masking)")
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise NoCache("the data set is a stream")
        if len(rows) == 0:
            raise NoCache("a data set is empty")
        if getattr(rows, "draws", None):
            args = self.trainer.args
            seed = args.seed if args.data_seed is None else args.data_seed
            rows = Views(rows, self.settings.views, seed)
        return KeptRows(rows, collator(self.trainer), self.main)

    def _whole(self, kept: KeptRows, rows: list[int]) -> dict[str, Any]:
        return self.trainer._prepare_inputs(kept.whole(rows))

    def _trial(self, train: KeptRows) -> Trial:
        trainer, batch = self.trainer, self._whole(train, self.few)
        if batch_identity(batch) != batch_identity(self._whole(train, self.few)):
            raise NoCache("the same rows give another batch at every reading")
        modes, context = self.phase.set_modes_, trainer.compute_loss_context_manager
        return Trial(trainer.model, batch, modes, context)

    def _joined(self, replay: Replay, singles: list[Tensor]) -> Tensor:
        ragged, mask = replay.ragged(self.trial.batch), self.trial.batch.get("attention_mask")
        rows = [single[0].to(self.settings.kind) for single in singles]
        return joined(rows, mask if ragged else None)

    def _chunks(self, kept: KeptRows) -> Chunks:
        shape = self.replay.shape[1:]
        lengths = None
        if self.replay.ragged(self.trial.batch):
            lengths, shape = kept.lengths, shape[1:]
            if lengths is None:
                raise NoCache("the lengths of the rows are not known before they are read")
        size = int(np.prod(shape)) * self.settings.kind.itemsize
        kept.identity = self._identity(kept)
        text = json.dumps(kept.identity, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Chunks(self.settings.path / name, lengths, len(kept.rows), size)

    def _identity(self, kept: KeptRows) -> dict[str, Any]:
        """All that the features of a data set depend on, as JSON values."""
        trainer, model = self.trainer, self.trainer.model
        config = model.config.to_dict() if hasattr(model, "config") else {}
        known = {key: value for key, value in config.items() if key not in NO_MATTER}
        return {
            "format": FORMAT,
            "model": f"{type(model).__module__}.{type(model).__qualname__}",
            "config": json.loads(json.dumps(known, default=str)),
            "weights": self._weights,
            "rows": getattr(kept.rows, "identity", lambda: row_identity(kept.rows))(),
            "batch": batch_identity(kept.whole([0])),
            "seam": repr(self.replay.seam),
            "dtype": self.settings.dtype,
            "at_once": self._at_once(kept),
            "precision": trainer.accelerator.mixed_precision,
            "device": trainer.args.device.type,
            "versions": {name: version(name) for name in LIBRARIES},
        }

    @cached_property
    def _weights(self) -> str:
        """One hash of all parameters and buffers that do not train now, and of their layouts.

        What the starting point has hashed is taken from there, as long as nothing has trained.
        """
        model, start, found = self.trainer.model, self.trainer.starting_point, hashlib.sha256()
        as_loaded = not (self.trainer.state.global_step or start.elsewhere)
        known = start.digests if as_loaded else {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in self.phase.trains:
                layout = "" if tensor.is_contiguous() else tensor.stride()  # sums are rounded so
                found.update(f"{name} {known.get(name) or digest(tensor)}{layout}\n".encode())
        return found.hexdigest()

    def _at_once(self, kept: KeptRows) -> int:
        """Rows of a forward pass: as many as in training, so that the arithmetic is the same."""
        args = self.trainer.args
        own = kept is self.sets[id(self.trainer.train_dataset)]
        return args.train_batch_size if own else args.eval_batch_size

    def _made(self, kept: KeptRows, rows: range) -> Chunk:
        """The chunk of these rows, by batches of like lengths."""
        lengths, size, padded = kept.chunks.lengths, self._at_once(kept), kept.lengths
        order = sorted(rows, key=lambda row: 0 if padded is None else -padded[row])
        features: dict[int, Tensor] = {}
        rest: dict[int, dict[str, Any] | None] = {}
        for at in range(0, len(order), size):
            numbers = order[at : at + size]
            read = kept.fetched(numbers)
            features.update(zip(numbers, self._captured(kept, read), strict=True))
            rest.update(zip(numbers, map(kept.rest_of, read), strict=True))
        whole = [features[row] for row in rows]
        if lengths is not None and [len(row) for row in whole] != lengths[list(rows)].tolist():
            raise NoCache("rows are padded before they are collated, or longer than they say")
        stored = torch.stack(whole) if lengths is None else torch.cat(whole)
        return Chunk(stored, [rest[row] for row in rows] if kept.heavy is not None else None)

    def _captured(self, kept: KeptRows, read: list) -> list[Tensor]:
        """What is kept of these rows, computed as one batch."""
        inputs = self.trainer._prepare_inputs(kept.collate(read))
        with self.trainer.compute_loss_context_manager():
            found = self.replay.capture(inputs).to("cpu", self.settings.kind)
        if kept.chunks.lengths is None:
            return list(found)
        mask = inputs["attention_mask"].bool().cpu()
        return [row[real] for row, real in zip(found, mask, strict=True)]


def _data_sets(trainer: Any) -> list[Any]:
    """The train set, and what is evaluated while training."""
    given = trainer.eval_dataset if trainer.args.eval_strategy != "no" else None
    writes = getattr(trainer.args, "predict_with_generate", False)
    if writes or "inputs" in (trainer.args.include_for_metrics or ()):
        given = None  # what is evaluated needs the inputs themselves
    others = list(given.values()) if isinstance(given, dict) and given else [given]
    return [trainer.train_dataset, *(rows for rows in others if rows is not None)]


def _few(rows: Any) -> list[int]:
    """Numbers of up to four rows, the shortest and the longest among them."""
    lengths, last = row_lengths(rows), len(rows) - 1
    ends = [] if lengths is None else [int(lengths.argmin()), int(lengths.argmax())]
    return list(dict.fromkeys([*ends, 0, last // 2, last]))[:4]
