"""Weights between a source and what was tuned from it, or among models tuned from one source.

Every function takes and gives state dicts and changes none; nothing is trained.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from hf_sft.errors import SourceError, UserError, listing
from hf_sft.layer_groups import LayerGroups

State = Mapping[str, Tensor]


def wise_ft(
    source: State, tuned: State, alpha: float, fresh: Collection[str] = ()
) -> dict[str, Tensor]:
    """θ(α) = (1 − α)·θ⁰ + α·θ (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

    α = 0 is the source and α = 1 the tuned model, bit for bit, and so is every tensor that training
    left alone, for any α. The names in ``fresh`` (a new head) and integer buffers are θ's.
    Running statistics of batch norm are interpolated as a start only: they belong to the weights
    they were measured with; see `reestimate_statistics_`.

    Args:
        source: θ⁰; what it has beyond ``tuned`` (an old head) is left out.
        tuned: θ.
        alpha: share of the way, 0..1.
        fresh: names that have no value in the source.

    Raises:
        SourceError: a tensor of ``tuned`` that is not fresh is missing in ``source``, or has
            another shape there.
    """
    _refuse_outside("alpha", alpha)
    return _between(source, tuned, lambda name: alpha, fresh)


def lines(
    source: State, tuned: State, groups: LayerGroups, alpha: float, beta: float
) -> dict[str, Tensor]:
    """θ⁰_l + (α + β·l/(L − 1))·(θ_l − θ⁰_l) (LiNeS, Wang et al. 2024, arXiv 2410.17146).

    The layers l = 0 … L − 1 are the stem and the blocks of ``groups``; norms and buffers stand
    where their group stands. What belongs to the head but came from the source is as deep as the
    last layer. ``groups.fresh`` is θ's, as in `wise_ft`, which β = 0 is. For a single task the
    paper takes β = 1 − α: the last layer stays tuned, the first goes back the farthest.
    """
    _refuse_outside("alpha", alpha)
    _refuse_outside("alpha + beta", alpha + beta)
    layers = [group for group in groups if group.role != "head"]
    last = max(len(layers) - 1, 1)
    depth = {n: i for i, group in enumerate(layers) for n in (*group.parameters, *group.buffers)}
    return _between(
        source, tuned, lambda name: alpha + beta * depth.get(name, last) / last, groups.fresh
    )


def uniform_soup(states: Sequence[State]) -> dict[str, Tensor]:
    """θ = (1/k)·Σ_i θ_i (model soup, Wortsman et al. 2022, arXiv 2203.05482).

    Summed in float64, so that the order does not matter; of integer buffers the largest is taken.

    Raises:
        SourceError: the models differ in names, shapes or types; the message says where.
    """
    _refuse_unlike(states)
    first = _first_names(states[0])
    means = {n: _mean([state[n] for state in states]) for n in dict.fromkeys(first.values())}
    return {name: means[first[name]] for name in states[0]}


@dataclass(frozen=True)
class Tasting:
    """One model offered to a greedy soup: its own score, the soup's with it, whether it stayed."""

    index: int
    alone: float
    together: float
    kept: bool


def greedy_soup(
    states: Sequence[State], score: Callable[[State], float]
) -> tuple[dict[str, Tensor], list[Tasting]]:
    """The uniform soup of those that do not spoil it, best first (arXiv 2203.05482, recipe 1).

    A model stays when score(soup with it) ≥ score(soup without it), on rows held out from training.
    Equal scores are offered in the order given.
    """
    _refuse_unlike(states)
    alone = [score(state) for state in states]
    kept: list[int] = []
    best, tastings = -float("inf"), []
    for i in sorted(range(len(states)), key=lambda i: -alone[i]):
        together = score(uniform_soup([states[j] for j in (*kept, i)])) if kept else alone[i]
        tastings.append(Tasting(i, alone[i], together, together >= best))
        if together >= best:
            kept.append(i)
            best = together
    return uniform_soup([states[i] for i in kept]), tastings


def copied(state: State) -> dict[str, Tensor]:
    """A copy on the CPU in which tied weights are still one tensor."""
    found: dict[str, Tensor] = {}
    for name, first in _first_names(state).items():
        found[name] = found[first] if first != name else state[name].detach().cpu().clone()
    return found


def _between(
    source: State, tuned: State, share: Callable[[str], float], fresh: Collection[str]
) -> dict[str, Tensor]:
    _refuse_strangers(source, tuned, fresh)
    first = _first_names(tuned)
    found: dict[str, Tensor] = {}
    for name, theta in tuned.items():
        owner = first[name]
        if owner == name:
            new = name in fresh or not theta.is_floating_point()
            found[name] = theta.clone() if new else _mix(source[name], theta, share(name))
        else:
            found[name] = found[owner]
    return found


def _mix(start: Tensor, end: Tensor, share: float) -> Tensor:
    """start + share·(end − start), exact at both ends and where they are equal."""
    if share in (0.0, 1.0):
        return (end if share else start.to(end)).clone()
    wide = torch.promote_types(end.dtype, torch.float32)
    return torch.lerp(start.to(end.device, wide), end.to(wide), share).to(end.dtype)


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return reduce(torch.maximum, tensors).clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor.to(total)
    return (total / len(tensors)).to(tensors[0].dtype)


def _first_names(state: State) -> dict[str, str]:
    """name -> the first name of the same memory, so that a tied weight is treated once."""
    seen: dict[tuple, str] = {}
    found = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        found[name] = seen.setdefault(place, name) if tensor.numel() else name
    return found


def _refuse_outside(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}: {value} is outside 0..1, the way from the source to the tuned.")


def _refuse_strangers(source: State, tuned: State, fresh: Collection[str]) -> None:
    shared = [name for name in tuned if name not in fresh]
    problems = [f"{name} (missing)" for name in shared if name not in source]
    problems += [
        f"{name} {tuple(source[name].shape)}, not {tuple(tuned[name].shape)}"
        for name in shared
        if name in source and source[name].shape != tuned[name].shape
    ]
    if problems:
        raise SourceError(
            f"the source does not fit the tuned model at {len(problems)} tensors: "
            f"{listing(problems)}. Give the source it was tuned from, and what is new as fresh."
        )


def _refuse_unlike(states: Sequence[State]) -> None:
    if not states:
        raise UserError("soup: no model was given; name at least one.")
    first = {name: _form(tensor) for name, tensor in states[0].items()}
    for number, state in enumerate(states[1:], 2):
        other = {name: _form(tensor) for name, tensor in state.items()}
        problems = [f"{name} is in one of them only" for name in sorted({*first} ^ {*other})]
        problems += [
            f"{name} is {other[name]}, not {first[name]}"
            for name in first
            if name in other and first[name] != other[name]
        ]
        if problems:
            raise SourceError(
                f"soup: model {number} differs from model 1 at {len(problems)} tensors: "
                f"{listing(problems)}. A soup takes models tuned from one source with one head."
            )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
