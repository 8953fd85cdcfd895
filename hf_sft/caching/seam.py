"""Seam: where a frozen prefix of a model ends, and what of it must be kept to go on from there."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hf_sft.caching.trace import Call, first_tensor
from hf_sft.layer_groups import LayerGroups


class NoCache(Exception):  # noqa: N818 (no error: training goes on without)
    """Why the prefix cannot be computed once; one sentence, in the user's words."""


@dataclass(frozen=True)
class Seam:
    """One way to cut a model in two.

    Attributes:
        cut: the first module that trains, or that holds what does.
        skipped: the modules before it whose work is kept: outermost ones, in order of calling.
        entering: keep what enters the cut; otherwise what leaves the last skipped module.
        field: the part of the last skipped module's output that is put back (a name or a number);
            None where the output is a tensor.
        alone: what enters the cut is put back as a sequence of one position.
    """

    cut: str
    skipped: tuple[str, ...]
    entering: bool
    field: str | int | None = None
    alone: bool = False

    def value(self, calls: Mapping[str, Call]) -> Tensor | None:
        """What would be kept, of a traced pass."""
        return calls[self.cut].given if self.entering else self.put(calls)

    def put(self, calls: Mapping[str, Call]) -> Tensor | None:
        """The tensor of the traced pass in whose place the kept one is put back."""
        output = calls[self.skipped[-1]].output
        return output if self.field is None else output[self.field]

    def __str__(self) -> str:
        return f"before {self.cut}" if self.entering else f"behind {self.skipped[-1]}"


def seams(
    model: nn.Module, groups: LayerGroups, calls: Mapping[str, Call], trains: Collection[str]
) -> list[Seam]:
    """All ways to cut before the first module that trains, what keeps least first.

    Whether one is right, only trying tells: a model may use elsewhere what is skipped.

    Args:
        model: in the modes of training.
        groups: a cut inside of the head is tried as well, inside of other groups not.
        calls: of a traced pass in those modes.
        trains: names of the parameters that train.

    Raises:
        NoCache: nothing frozen comes before, or it is not the same at every pass.
    """
    found, own = [], _first_that_trains(model, calls, trains)
    first = own.rpartition(".")[0]
    for cut in _cuts(model, groups, own):
        skipped = _skipped(model, calls, cut)
        if skipped:
            found += _of(cut, skipped, calls)
    if not found:
        raise NoCache(f"no frozen layer comes before {first or 'the model'}, which trains")
    sizes = {seam: seam.value(calls).numel() for seam in found}
    return sorted(found, key=sizes.__getitem__)


def prefix_parameters(model: nn.Module, seam: Seam) -> dict[str, nn.Parameter]:
    """What must stay as it is: all of the skipped modules, and what stands beside them."""
    modules = dict(model.named_modules())
    inside = [modules[name].named_parameters(prefix=name) for name in seam.skipped]
    beside = [modules[n].named_parameters(n, recurse=False) for n in _around(seam.cut)]
    return {name: p for part in [*inside, *beside] for name, p in part}


def _around(name: str) -> list[str]:
    """``a.b.c`` -> ``['', 'a', 'a.b']``."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _first_that_trains(model: nn.Module, calls: Mapping[str, Call], trains: Collection[str]) -> str:
    """A parameter of the first module called that holds one of its own which trains."""
    modules = dict(model.named_modules())
    for name in calls:
        for own, _ in modules[name].named_parameters(recurse=False):
            if (whole := f"{name}.{own}" if name else own) in trains:
                return whole
    raise NoCache("nothing trains in the model's own forward pass")


def _cuts(model: nn.Module, groups: LayerGroups, parameter: str) -> list[str]:
    """The largest module around a parameter that is all of one layer group; of a head, both."""
    modules, group = dict(model.named_modules()), groups.group_of(parameter)
    inside = set(group.parameters)
    whole = [
        name
        for name in _around(parameter)[1:]
        if {f"{name}.{n}" for n, _ in modules[name].named_parameters()} <= inside
    ]
    ends = [whole[0], whole[-1]] if group.role == "head" else whole[:1]
    return list(dict.fromkeys(ends)) if whole else []


def _skipped(model: nn.Module, calls: Mapping[str, Call], cut: str) -> tuple[str, ...]:
    """The outermost modules that are done before the cut: with weights, or giving one tensor.

    What draws behind the last one with weights (dropout) is left to run; so is what has no weights
    and gives several tensors (rotary positions, which later layers use).

    Raises:
        NoCache: among them is one that gives other values at every pass, or is called once more.
    """
    modules, start, around = dict(model.named_modules()), calls[cut].start, set(_around(cut))
    done = [name for name, call in calls.items() if call.start < start and name not in around]
    tops = [name for name in done if _caller(name, calls) in around]
    tops = [part for name in tops for part in _with_tensors(name, calls)]
    weighted = {n for n in tops if next(modules[n].parameters(), None) is not None}
    if not weighted:
        return ()
    last = max(calls[name].start for name in weighted)
    _refuse_unsteady(modules, calls, [name for name in tops if calls[name].start <= last])
    plain = {n for n in tops if torch.is_tensor(calls[n].output) and not calls[n].draws}
    found = tuple(name for name in tops if name in weighted | plain)
    if again := [name for name in found if calls[name].end > start]:
        raise NoCache(f"{again[0]} is frozen and used once more behind {cut}")
    return found


def _caller(name: str, calls: Mapping[str, Call]) -> str:
    """The nearest module around this one that is called itself; a list of modules is not."""
    return next(above for above in reversed(_around(name)) if above in calls)


def _with_tensors(name: str, calls: Mapping[str, Call]) -> Iterator[str]:
    """The module where it gives something with a tensor to put in the place of, else its parts."""
    output = calls[name].output
    if any(True for _ in _fields(output)):
        yield name
    else:
        inner = [n for n in calls if n and _caller(n, calls) == name]
        yield from (part for n in inner for part in _with_tensors(n, calls))


def _refuse_unsteady(modules: dict, calls: Mapping[str, Call], names: list[str]) -> None:
    for name in names:
        if calls[name].draws:
            raise NoCache(
                f"{name} draws at random in training before the last frozen layer; set its dropout "
                "to 0 in the model block"
            )
        for inner, module in modules[name].named_modules(prefix=name):
            if isinstance(module, _NormBase) and module.training:
                raise NoCache(f"{inner} normalises by the batch, or its running statistics move")


def _of(cut: str, skipped: tuple[str, ...], calls: Mapping[str, Call]) -> Iterator[Seam]:
    """The seams of one cut: what enters it, as it is or alone, and what leaves the last layer."""
    given = calls[cut].given
    for field, value in _fields(calls[skipped[-1]].output):
        if given is not None:
            free = field is None or isinstance(field, int)  # its shape is nobody's business
            if free or value.ndim == given.ndim:
                yield Seam(cut, skipped, True, field)
            if not free and value.ndim == given.ndim + 1:
                yield Seam(cut, skipped, True, field, alone=True)
        yield Seam(cut, skipped, False, field)


def _fields(output: Any) -> Iterator[tuple[str | int | None, Tensor]]:
    """The tensors of an output: itself, the first of a tuple, or those with a name."""
    if first_tensor([output]) is not None:
        yield None, output
    elif isinstance(output, Mapping):
        yield from (
            (name, value) for name, value in output.items() if first_tensor([value]) is not None
        )
    elif isinstance(output, tuple) and first_tensor(output[:1]) is not None:
        yield 0, output[0]
