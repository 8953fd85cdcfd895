"""Agreement: a seam counts only where the model says the same with and without what it keeps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_sft.caching.replay import FEATURES, Replay
from hf_sft.caching.seam import NoCache, seams
from hf_sft.caching.trace import traced
from hf_sft.layer_groups import LayerGroups

TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of the largest value
Outputs = dict[str, Tensor]


class Trial:
    """A model on a few rows, whole: what a replay of them must come to.

    Args:
        model: in any modes; they are changed.
        batch: the rows together, on the device.
        train: puts the modes of training.
        context: of the forward passes (autocast).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batch: Mapping[str, Any],
        train: Callable[[torch.nn.Module], None],
        context: Callable[[], Any],
    ):
        self.model, self.batch, self.train, self.context = model, dict(batch), train, context
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.train(self.model)
        with self.context():
            self.calls, _ = traced(model, self.batch)
        self.expected = self._both(self.batch)

    def replay(
        self,
        groups: LayerGroups,
        trains: Collection[str],
        singly: Sequence[Mapping],
        join: Callable[..., Tensor],
    ) -> Replay:
        """The replay that keeps least of all that agree.

        Args:
            groups: the model's layer groups.
            trains: names of the parameters that train.
            singly: the same rows, each as a batch of its own.
            join: replay, kept tensors of single rows -> features of ``batch`` as stored.

        Raises:
            NoCache: there is none.
        """
        said = ""
        self.train(self.model)
        for seam in seams(self.model, groups, self.calls, trains):
            replay = Replay(self.model, seam, self.calls)
            try:
                kept = join(replay, self.captured(replay, singly))
                said = self.disagreement(replay, {**self.batch, FEATURES: kept})
            except Exception as error:  # a model may refuse what stands for the skipped parts
                said = f"{type(error).__name__}: {error}"
            if not said:
                return replay
        raise NoCache(f"cut before {seam.cut}, the model's outputs differ ({said})")

    def captured(self, replay: Replay, singly: Sequence[Mapping]) -> list[Tensor]:
        """What the seam keeps of every row on its own: (1, …) each."""
        self.model.eval()
        with self.context():
            return [replay.capture(batch) for batch in singly]

    def disagreement(self, replay: Replay, given: Mapping[str, Any]) -> str:
        """How a replayed batch differs from the whole model; empty where it does not."""
        with replay.following():
            found = self._both(given)
        kinds = given[FEATURES].dtype, replay.dtype
        tolerance = max(TOLERANCE.get(kind, 1e-3) for kind in kinds)
        for mode, expected in self.expected.items():
            for name, value in expected.items():
                other = found[mode].get(name)
                if other is None or other.shape != value.shape:
                    return f"{name} has another shape"
                value, other = self._real(value), self._real(other)
                apart = (value - other).abs().max() / value.abs().max().clamp(min=1e-6)
                if not apart <= tolerance:
                    return f"{name} in {mode} by {float(apart):.2g} of its size"
        return ""

    def _real(self, value: Tensor) -> Tensor:
        """Without positions that are padding."""
        mask = self.batch.get("attention_mask")
        padded = torch.is_tensor(mask) and value.ndim > 2 and value.shape[:2] == mask.shape
        return (value[mask.bool()] if padded else value).float()

    @torch.no_grad()
    def _both(self, batch: Mapping[str, Any]) -> dict[str, Outputs]:
        """Outputs in training and in evaluation, from the same random numbers."""
        found = {}
        for mode in ("training", "evaluation"):
            self.train(self.model) if mode == "training" else self.model.eval()
            torch.manual_seed(0)
            with self.context():
                found[mode] = _tensors(self.model(**batch))
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])  # running statistics have moved
        return found


def _tensors(output: Any) -> Outputs:
    if isinstance(output, Mapping):
        named = output.items()
    else:
        named = enumerate(output if isinstance(output, tuple) else (output,))
    return {f"{name}": value for name, value in named if torch.is_tensor(value)}
