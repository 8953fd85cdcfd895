"""The terms of a weight prior, and going through their elements without a large temporary."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

CHUNK = 2**18  # elements handled at a time, so that θ − θ⁰ stays in the cache and off the peak


@dataclass(frozen=True)
class Term:
    """One parameter under a weight prior, or those of its rows that share an anchor.

    Attributes:
        theta, anchor: θ_n and a_n, of one shape; None stands for a_n = 0.
        c: c_n > 0.
        grad: the gradient of ``theta``, where there is one.
        rows: which part of the parameter this is, a slice of its first dimension; None for all.
    """

    name: str
    theta: Tensor
    anchor: Tensor | None
    c: float
    grad: Tensor | None
    rows: slice | None = None


def chunks(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """The same slices along the first dimension of tensors of one shape, about CHUNK elements each.

    None stays None. Slicing, not reshaping, so that any memory layout is kept.
    """
    first = tensors[0]
    if first.ndim == 0 or first.numel() <= CHUNK:
        yield tensors
        return
    rows = max(1, CHUNK * first.shape[0] // first.numel())
    split = [t.split(rows) if t is not None else None for t in tensors]
    for i in range(len(split[0])):
        yield tuple(parts[i] if parts is not None else None for parts in split)


@contextmanager
def of_rows(rows: Tensor | None, changed: Tensor, *others: Tensor | None) -> Iterator[list]:
    """Rows of tensors of one shape, by their indices (k,); what is done to the first's is kept.

    None for ``rows`` stands for the tensors as they are.
    """
    if rows is None:
        yield [changed, *others]
        return
    parts = [None if t is None else t.index_select(0, rows) for t in (changed, *others)]
    yield parts
    changed.index_copy_(0, rows, parts[0])


def part(tensor: Tensor | None, rows: slice | None) -> Tensor | None:
    """Those rows of a tensor; None for ``rows`` stands for all, None for no tensor stays None."""
    return tensor if tensor is None or rows is None else tensor[rows]


def difference(theta: Tensor, anchor: Tensor | None) -> Tensor:
    """θ − a, or θ where the anchor is zero."""
    return theta if anchor is None else theta - anchor


def fresh_difference(theta: Tensor, anchor: Tensor | None) -> Tensor:
    """θ − a as a new tensor, which may be overwritten."""
    return theta.clone() if anchor is None else theta - anchor
