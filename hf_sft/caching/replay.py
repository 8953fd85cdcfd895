"""Replay: a model's own forward pass, with the outputs of its frozen prefix put back into it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.caching.seam import Seam
from hf_sft.caching.trace import Call, first_tensor

FEATURES = "prefix_features"  # the key of a batch that holds what is put back
ROWS = "prefix_rows"  # the key that holds the numbers of the batch's rows


class _Stop(Exception):  # noqa: N818 (ends a forward pass that has given what was wanted)
    def __init__(self, value: Tensor):
        self.value = value


class Replay:
    """The two halves of a model at a seam: the prefix alone, and the rest from what it gave.

    Args:
        model: whose forward pass is used as it is, masks, head and loss included.
        seam: where it is cut.
        calls: of a traced pass, whose shapes say what the skipped modules give.
    """

    def __init__(self, model: nn.Module, seam: Seam, calls: Mapping[str, Call]):
        modules = dict(model.named_modules())
        self.model, self.seam = model, seam
        self.cut = modules[seam.cut]
        self.skipped = [modules[name] for name in seam.skipped]
        kept = seam.value(calls)
        self.dtype, self.shape = kept.dtype, tuple(kept.shape)
        self.outputs = [_described(calls[name].output) for name in seam.skipped]
        self.place = (*kept.shape[:1], 1, *kept.shape[1:]) if seam.alone else self.shape
        self._own: list[tuple[nn.Module, Any]] = []  # modules whose forward passes are replaced

    def ragged(self, batch: Mapping[str, Any]) -> bool:
        """Whether what is kept has the positions of ``batch``, so that padding can be left out."""
        mask = batch.get("attention_mask")
        return torch.is_tensor(mask) and len(self.shape) > 2 and self.shape[:2] == mask.shape

    @torch.no_grad()
    def capture(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the seam keeps of a batch; nothing behind it is computed. Modes as they are."""

        def entering(_: nn.Module, args: tuple, kwargs: dict) -> None:
            raise _Stop(first_tensor([*args, *kwargs.values()]))

        def leaving(_: nn.Module, args: tuple, output: Any) -> None:
            raise _Stop(output if self.seam.field is None else output[self.seam.field])

        if self.seam.entering:
            hook = self.cut.register_forward_pre_hook(entering, with_kwargs=True)
        else:
            hook = self.skipped[-1].register_forward_hook(leaving)
        try:
            self.model(**inputs)
        except _Stop as stop:
            return stop.value
        finally:
            hook.remove()
        raise RuntimeError(f"the forward pass does not come {self.seam}")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Inside: a call of the model with `FEATURES` begins at the seam; others run whole."""
        model, put = self.model, self._put

        # Functions, and no methods: a deep copy of the model must not copy what they hold.
        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            rest = {key: value for key, value in kwargs.items() if key not in (FEATURES, ROWS)}
            if module is model and FEATURES in kwargs:
                put(kwargs[FEATURES])
            return args, rest

        def after(module: nn.Module, *_: Any) -> None:
            if module is model:
                self._restore()

        hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._restore()

    def _put(self, features: Tensor) -> None:
        features = features.to(self.dtype)
        if self.seam.alone:
            features = features.unsqueeze(1)
        filling = _Filling(features, self.place)
        fields = [_ANY] * (len(self.skipped) - 1) + [self.seam.field]
        for module, output, field in zip(self.skipped, self.outputs, fields, strict=True):
            self._own.append((module, module.__dict__.get("forward")))
            module.forward = _Given(filling.filled(output, field))

    def _restore(self) -> None:
        while self._own:
            module, forward = self._own.pop()
            del module.forward
            if forward is not None:
                module.forward = forward


class _Given:
    """A forward pass that has its answer already."""

    def __init__(self, answer: Any):
        self.answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer


_ANY = object()  # no field: the module is not the last, and what it gives is not to matter


def _described(output: Any) -> Any:
    """An output with its tensors on the meta device: shapes without numbers."""
    if torch.is_tensor(output):
        return output.to("meta")
    if isinstance(output, Mapping):
        return type(output)(**{name: _described(value) for name, value in output.items()})
    return tuple(_described(value) for value in output) if isinstance(output, tuple) else None


@dataclass(frozen=True)
class _Filling:
    """Outputs of a described form for a batch: the features in one place, NaN in all others.

    NaN, so that a model which looks at what is not kept gives no number at all.
    """

    features: Tensor
    place: tuple[int, ...]  # the features' shape in the traced pass

    def filled(self, output: Any, field: Any) -> Any:
        """``field``: where the features belong; None for the output itself, `_ANY` for nowhere."""
        if torch.is_tensor(output):
            fits = field is _ANY and tuple(output.shape) == self.place
            return self.features if field is None or fits else self._empty(output)
        if isinstance(output, Mapping):
            parts = {name: self._part(value, name, field) for name, value in output.items()}
            return type(output)(**parts)
        return tuple(self._part(value, number, field) for number, value in enumerate(output))

    def _part(self, value: Any, name: Any, field: Any) -> Any:
        return None if value is None else self.filled(value, None if name == field else _ANY)

    def _empty(self, output: Tensor) -> Tensor:
        """The described shape, with this batch's number of rows and of positions."""
        shape = list(output.shape)
        for axis in range(min(2, len(shape), len(self.place))):
            if shape[axis] == self.place[axis]:
                shape[axis] = self.features.shape[axis]
        nothing = float("nan") if output.is_floating_point() else 0
        empty = torch.full((), nothing, dtype=output.dtype, device=self.features.device)
        return empty.expand(shape)
