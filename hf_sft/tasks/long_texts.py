"""A long text as overlapping windows of tokens, and their answers averaged to one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from transformers import EvalPrediction

from hf_sft.errors import DataError, SourceError
from hf_sft.tasks.cut_texts import record
from hf_sft.tasks.evaluation_order import OTHER_ORDER, refuse_other_inputs

log = logging.getLogger(__name__)

CHUNK = 64  # texts that are cut at a time, where windows are made again on the way
Window = tuple[int, list[int]]  # the number of its text, and its tokens


def settle_windows(tokenizer: Any, limit: int | None, stride: int | None) -> None:
    """Whether windows can be made.

    Raises:
        SourceError: a tokenizer in Python gives what is left over in another form.
        DataError: nothing limits a window, or the stride leaves no room for new tokens.
    """
    if not tokenizer.is_fast:
        raise SourceError(
            f"task.long_texts: {type(tokenizer).__name__} cannot cut windows. Take a source with a "
            "fast tokenizer (tokenizer.json), or long_texts: cut."
        )
    if limit is None:
        raise DataError("task.long_texts: the model knows no limit. Set task.max_length.")
    room = limit - tokenizer.num_special_tokens_to_add()
    if stride_of(limit, stride) >= room:
        raise DataError(
            f"task.stride: {stride_of(limit, stride)} tokens shared by windows with room for "
            f"{room} leave none for new ones. Set it below {room}, or leave it out."
        )


def stride_of(limit: int, stride: int | None) -> int:
    """Tokens that a window shares with the one before; by default a quarter of it."""
    return limit // 4 if stride is None else stride


def windows_of(
    tokenizer: Any, texts: Sequence[str], limit: int, stride: int
) -> tuple[dict[str, list], list[int]]:
    """(columns with a list per window, the number of each window's text); a text's in order."""
    found = tokenizer(
        list(texts),
        truncation=True,
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
    )
    owners = found["overflow_to_sample_mapping"]
    return {k: found[k] for k in tokenizer.model_input_names if k in found}, owners


def each_window(
    rows: Dataset, column: str, cut: Callable[[Sequence[str]], tuple[dict[str, list], list[int]]]
) -> Iterator[Window]:
    """The windows of a data set, a few texts at a time: nothing piles up."""
    for begin in range(0, len(rows), CHUNK):
        columns, owners = cut(rows[begin : begin + CHUNK][column])
        for ids, owner in zip(columns["input_ids"], owners, strict=True):
            yield begin + owner, ids


def averaged(outputs: torch.Tensor, owners: Sequence[int], texts: int) -> torch.Tensor:
    """(texts, outputs): the mean of the logits (windows, outputs) of every text."""
    places = torch.as_tensor(owners, device=outputs.device)
    sums = outputs.new_zeros(texts, *outputs.shape[1:]).index_add(0, places, outputs)
    counts = torch.bincount(places, minlength=texts).to(sums)
    return sums / counts.view(-1, *[1] * (outputs.ndim - 1))


def tell_windows(texts: int, windows: Dataset, limit: int) -> None:
    """Log how many windows the texts take, and record it: none of them is cut."""
    record("texts", texts, 0, limit, 0, windows=len(windows))
    if len(windows) > texts:
        log.warning(
            "task.long_texts: %d texts are read in %d windows of up to %d tokens; metrics count "
            "texts.", texts, len(windows), limit
        )  # fmt: skip


class AveragedWindows:
    """Trainer's ``compute_metrics`` on windows: ``inner`` sees one answer per text.

    A text's logits are the mean of its windows', z = Σ_w z_w / W: of probabilities, the geometric
    mean. Only the text at hand is kept. Windows come in order, also from several processes.

    Args:
        inner: the metrics of the task.
        begin: gives the windows of the evaluated rows anew.
        padding: the tokenizer's padding token.
    """

    def __init__(self, inner: Any, begin: Callable[[], Iterator[Window]], padding: int | None):
        self.inner, self.begin, self.padding = inner, begin, padding
        self._restart()

    def _restart(self) -> None:
        self.windows, self.open = self.begin(), None

    @property
    def tables(self) -> dict[str, Any]:
        """Those of ``inner``."""
        return self.inner.tables

    @property
    def surprises(self) -> list[dict[str, Any]]:
        """Those of ``inner``, whose rows are texts."""
        return self.inner.surprises

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take logits (windows, outputs) and labels, the text's for each window."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        logits = torch.as_tensor(logits).float().cpu()
        labels = torch.as_tensor(batch.label_ids).cpu()
        windows = list(islice(self.windows, len(logits)))
        if len(windows) < len(logits):
            raise DataError(OTHER_ORDER)
        refuse_other_inputs(batch.inputs, [ids for _, ids in windows], self.padding)
        texts = []
        for (text, _), scores, label in zip(windows, logits, labels, strict=True):
            if self.open is not None and self.open[0] != text:
                texts.append(self._closed())
            number, total, count, _ = self.open or (text, 0.0, 0, label)
            self.open = number, total + scores, count + 1, label
        if compute_result and self.open is not None:
            texts.append(self._closed())
        return self._passed_on(texts, compute_result)

    def _closed(self) -> tuple[torch.Tensor, torch.Tensor]:
        _, total, count, label = self.open
        self.open = None
        return total / count, label

    def _passed_on(self, texts: list, compute_result: bool) -> dict[str, float]:
        if not texts:
            return {}
        logits, labels = map(torch.stack, zip(*texts, strict=True))
        found = self.inner(EvalPrediction(logits, labels), compute_result)
        if compute_result:
            if next(self.windows, None) is not None:
                raise DataError(OTHER_ORDER)
            self._restart()
        return found
