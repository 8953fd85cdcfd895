"""Ema, Swa: callbacks that keep an average of the weights beside a training run."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sft.errors import SourceError, UserError
from hf_sft.starting_point import digest


class Averaging(TrainerCallback, ABC):
    """θ̄ ← θ̄ + w·(θ − θ̄) after every optimizer step; a subclass says w.

    Averaged is what may train, as ``requires_grad`` says when training begins, and floating-point
    buffers (the statistics of batch norm only as a start, see `reestimate_statistics_`); whatever
    is frozen, and integer buffers, are the model's own. θ̄ is kept in float32 or better: one more
    copy of what trains. Training itself is not touched.

    ::

        ema = Ema(decay=0.999)
        trainer = TransferTrainer(model, args, ..., callbacks=[ema])
        trainer.train()
        with ema.swapped(trainer.model):  # or ema.copy_to_(trainer.model), for good
            trainer.evaluate()

    A checkpoint holds θ̄ as a file of its own, and resuming goes on from it bit for bit. It is no
    `ExportableState`: transformers 5.23 restores that only when asked, from JSON, and into a new
    object, of which the caller knows nothing.
    """

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.count = 0

    @property
    @abstractmethod
    def file(self) -> str:
        """The name of θ̄ in a checkpoint; settings that change θ̄ are part of it."""

    @abstractmethod
    def share(self, state: TrainerState) -> float | None:
        """w of the step just made; None leaves θ̄ as it is."""

    # ---- for the user ----

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[nn.Module]:
        """``model`` with θ̄ inside the block, and with its own weights after it, bit for bit."""
        self._refuse_empty()
        own = {name: tensor.detach().clone() for name, tensor in self._live(model).items()}
        try:
            self.copy_to_(model)
            yield model
        finally:
            _copy_(self._live(model), own)

    def copy_to_(self, model: nn.Module) -> None:
        """Give ``model`` the averaged weights."""
        self._refuse_empty()
        _copy_(self._live(model), self.average)

    # ---- Trainer's events ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any, **kwargs: Any
    ) -> None:
        """Start from the model as it is, or from the checkpoint it was resumed from."""
        if _asked_for_shards(args):
            raise UserError(
                f"{type(self).__name__} needs whole tensors, which DeepSpeed and FSDP do not "
                "leave in one process. Launch with DDP or one process."
            )
        self.count = 0
        self.average = {
            name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for name, tensor in _averaged(model)
        }
        if state.global_step:
            self._read(_checkpoint(args, state, self.file), state, model)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any, **kwargs: Any
    ) -> None:
        """Take the step's weights into θ̄."""
        if (share := self.share(state)) is None:
            return
        self.count += 1
        for name, tensor in self._live(model).items():
            self.average[name].lerp_(tensor.detach().to(self.average[name]), share)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any, **kwargs: Any
    ) -> None:
        """Write θ̄ into the checkpoint just made, whole or not at all."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        said = {"count": str(self.count), "weights": self._weights(model)}
        partial = folder / f"{self.file}.partial"
        save_file({n: t.contiguous() for n, t in self.average.items()}, partial, said)
        os.replace(partial, folder / self.file)

    # ---- helpers ----

    def _live(self, model: nn.Module) -> dict[str, Tensor]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: tensors[name] for name in self.average}

    def _weights(self, model: nn.Module) -> str:
        """A hash of the parameters that θ̄ was saved beside."""
        parameters = dict(model.named_parameters())  # buffers may differ between processes
        shared = [digest(parameters[name]) for name in self.average if name in parameters]
        return hashlib.sha256("".join(shared).encode()).hexdigest()

    def _read(self, path: Path, state: TrainerState, model: nn.Module) -> None:
        try:
            with safe_open(path, "pt") as found:
                said = found.metadata() or {}
                tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            self._refuse(path, str(error), error)
        if said.get("weights") != self._weights(model):
            self._refuse(path, "it was saved beside other weights")
        _copy_(self.average, tensors)
        self.count = int(said["count"])

    def _refuse(self, path: Path, reason: str, cause: Exception | None = None) -> None:
        raise SourceError(
            f"'{path.parent.name}' has no average to go on from, '{path.name}': {reason}. It was "
            f"torn off while being saved, or trained without this {type(self).__name__}. Resume "
            "from an earlier checkpoint, or start anew."
        ) from cause

    def _refuse_empty(self) -> None:
        if not self.count:
            raise UserError(
                f"{type(self).__name__} has averaged nothing: training has not begun, or ended "
                "before the share that is averaged."
            )


class Ema(Averaging):
    """θ̄_t = d_t·θ̄_{t−1} + (1 − d_t)·θ_t from θ̄_0 = the weights at the start.

    d_t = ``decay``, which remembers about 1/(1 − decay) steps; with ``warm_up``, d_t =
    min(decay, (1 + t)/(10 + t)), so that a short run is not held at its start.
    """

    def __init__(self, decay: float = 0.999, warm_up: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"Ema: decay {decay} should be at least 0 and below 1.")
        self.decay, self.warm_up = decay, warm_up

    @property
    def file(self) -> str:
        return f"ema-{self.decay}{'-warm-up' if self.warm_up else ''}.safetensors"

    def share(self, state: TrainerState) -> float:
        t = self.count + 1
        return 1 - (min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay)


class Swa(Averaging):
    """θ̄ = mean of θ_t over the last ``share_of_training`` of the steps.

    SWA (Izmailov et al. 2018, arXiv 1803.05407) with every step taken in. It wants a learning rate
    that does not fall to 0 meanwhile: ``lr_scheduler_type="constant_with_warmup"``.
    """

    def __init__(self, share_of_training: float = 0.25) -> None:
        super().__init__()
        if not 0 < share_of_training <= 1:
            raise UserError(f"Swa: share_of_training {share_of_training} should be in (0, 1].")
        self.share_of_training = share_of_training

    @property
    def file(self) -> str:
        return f"swa-{self.share_of_training}.safetensors"

    def share(self, state: TrainerState) -> float | None:
        if state.global_step <= (1 - self.share_of_training) * state.max_steps:
            return None
        return 1 / (self.count + 1)


def _asked_for_shards(args: TrainingArguments) -> bool:
    """By the training's arguments, or by ``accelerate launch``."""
    launched = (os.environ.get(f"ACCELERATE_USE_{kind}", "") for kind in ("FSDP", "DEEPSPEED"))
    return bool(args.deepspeed or args.fsdp) or any(said.lower() == "true" for said in launched)


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    yield from ((name, b) for name, b in model.named_buffers() if b.is_floating_point())


@torch.no_grad()
def _copy_(to: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(source[name])


def _checkpoint(args: TrainingArguments, state: TrainerState, file: str) -> Path:
    """Where the run was resumed from: Trainer does not tell its callbacks."""
    usual = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    given = args.resume_from_checkpoint
    return (Path(given) if isinstance(given, str) else usual) / file
