"""How many texts are longer than the model reads: told before training, kept for the report."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

log = logging.getLogger(__name__)

CHUNK = 1000  # texts that are measured at a time
_open: ContextVar[list[dict[str, Any]] | None] = ContextVar("cut_texts", default=None)


@contextmanager
def collected() -> Iterator[list[dict[str, Any]]]:
    """What is recorded while the context is open: one dict for each kind of text."""
    found: list[dict[str, Any]] = []
    token = _open.set(found)
    try:
        yield found
    finally:
        _open.reset(token)


def record(what: str, texts: int, cut: int, limit: int | None, longest: int, **more: int) -> None:
    """Keep for the report: of ``texts``, ``cut`` are longer than ``limit`` tokens.

    ``longest``: tokens of the longest one, whole. ``more``: ``windows``, where nothing is lost.
    """
    if (found := _open.get()) is not None:
        counts = {"texts": texts, "cut": cut, "limit": limit, "longest": longest}
        found.append({"what": what, **counts, **more})


def tell(
    key: str,
    what: str,
    encoded: Dataset,
    limit: int | None,
    whole: Callable[[list[int]], Iterable[int]],
    column: str = "input_ids",
    remedy: str = "",
) -> None:
    """Log how many of ``what`` have been cut at ``limit`` tokens, and record it.

    Args:
        key: of the recipe, that sets the limit.
        encoded: one row per text, or a list of sequences per row, cut already.
        whole: numbers of rows, which are few -> their tokens when nothing is cut.
        column: of ``encoded`` with the tokens.
    """
    if len(encoded) == 0:
        return
    lengths = _lengths(encoded, column)
    full = [i for i, length in enumerate(lengths) if limit is not None and length >= limit]
    counts = [count for at in range(0, len(full), CHUNK) for count in whole(full[at : at + CHUNK])]
    cut, longest = sum(count > limit for count in counts), max([*lengths, *counts])
    record(what, len(encoded), cut, limit, longest)
    if cut:
        log.warning(
            "%s: %d of %d %s are cut at %d tokens (the longest has %d).%s",
            *(key, cut, len(encoded), what, limit, longest, remedy),
        )


def said(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What became of texts longer than the model reads; a line for each kind and split."""
    lines = []
    for split, kinds in found.items():
        for kind in kinds:
            texts = f"{kind['texts']:,} {kind['what']}"
            if kind["cut"]:
                lines.append(
                    f"{split}: {kind['cut']:,} of {texts} are cut at {kind['limit']} tokens, the "
                    f"longest has {kind['longest']:,}"
                )
            elif kind.get("windows", 0) > kind["texts"]:
                lines.append(
                    f"{split}: {texts} are read in {kind['windows']:,} windows of up to "
                    f"{kind['limit']} tokens"
                )
    return lines


def _lengths(encoded: Dataset, column: str) -> list[int]:
    """Tokens of every row; of a row with several sequences, of the longest."""
    found = encoded.with_format("arrow")[:][column]
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if not pa.types.is_list(found.type.value_type):
        return pc.list_value_length(found).to_pylist()
    return [max(map(len, sequences)) for sequences in found.to_pylist()]
