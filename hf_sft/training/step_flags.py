"""StepFlags: what one process notices within a step, all of them know before they act on it."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from hf_sft import interruption
from hf_sft.shards import whole


class StepFlags:
    """For a Trainer class: once per optimizer step, after clipping, two questions.

    Was a loss or the gradient's norm not finite (`on_unfit_step`)? Has anybody been asked to stop
    (`stop_agreed`)? Over several processes the answers are reduced together, two bytes per step.
    They are read at once on the CPU. On an accelerator reading would wait for it, so they are read
    while the next step is under way, or before something is logged, evaluated or saved
    (`read_flags`); where ``reads_at_once``, they are read at once there too.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.forget_flags()
        super().__init__(*args, **kwargs)

    def forget_flags(self) -> None:
        """A training begins: what one that ended early has left unread is none of its steps."""
        self.stop_agreed = False
        self._unfit: Tensor | None = None
        self._unread: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    @property
    def reads_at_once(self) -> bool:
        """Whether a step's flags are known before its weights are changed."""
        return self.args.device.type == "cpu"

    def on_unfit_step(self, step: int) -> None:
        """A loss or the gradient of optimizer step ``step`` (from 1) was not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's; nothing waits for the loss here."""
        loss = super().training_step(*args, **kwargs)
        unfit = ~loss.detach().isfinite()
        self._unfit = unfit if self._unfit is None else self._unfit | unfit
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's (private in 5.24): called once per step, between clipping and optimizer."""
        norm = super()._get_grad_norm(*args, **kwargs)
        self._unread.append((self.state.global_step + 1, *_under_way(self._flags(norm))))
        self.read_flags(leave=0 if self.reads_at_once else 1)
        return norm

    def _flags(self, norm: Any) -> Tensor:
        unfit, scaler = self._unfit, self.accelerator.scaler
        if scaler is None or not scaler.is_enabled():  # a scaler looks for overflow by itself
            unfit = unfit | ~torch.as_tensor(whole(norm), device=unfit.device).isfinite()
        asked = unfit.new_full((), interruption.asked() is not None)
        flags = torch.stack([unfit.reshape(()), asked]).to(torch.uint8)
        self._unfit = None
        if self.args.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags

    def read_flags(self, leave: int = 0) -> None:
        """Act upon the flags of all steps but the last ``leave``."""
        while len(self._unread) > leave:
            step, flags, there = self._unread.popleft()
            if there is not None:
                there.synchronize()
            unfit, stop = flags.tolist()
            self.stop_agreed = self.stop_agreed or bool(stop)
            if unfit:
                self.on_unfit_step(step)


def _under_way(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Flags as they come to the CPU, and what says when they are there; None: at once.

    CUDA reads in the order of its stream: a plain read a step later would wait for that step.
    """
    if flags.device.type != "cuda":
        return flags, None
    there = torch.cuda.Event()
    copy = flags.to("cpu", non_blocking=True)
    there.record(torch.cuda.current_stream(flags.device))
    return copy, there
