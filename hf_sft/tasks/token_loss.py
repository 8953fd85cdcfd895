"""The loss of a split whose batches tell a mean over tokens: the same for batches of any size."""

from typing import Any

import torch

IGNORED = -100


class TokenLoss:
    """Σ_b n_b·loss_b / Σ_b n_b over batches of n_b labelled tokens each, in flat memory.

    Trainer weighs a batch's mean by its rows, however many tokens they have, so that its number
    changes with the batch size. Every row of a batch comes with the batch's loss, so that summing
    loss · tokens over rows is exact for the joined batches of several processes, too.

    Args:
        filler: what Seq2SeqTrainer 5.24 appends to labels, up to the longest text it may write;
            None: nothing. It does not count where it stands at a row's end.
    """

    def __init__(self, filler: int | None = None):
        self.filler = filler
        self._begin()

    def _begin(self) -> None:
        self.total = self.count = 0.0

    def add(self, batch: Any) -> None:
        """Labels (rows, positions) and ``losses`` (rows,), where the Trainer was asked for them."""
        losses = getattr(batch, "losses", None)
        if losses is None:
            return
        labels = torch.as_tensor(batch.label_ids).cpu()
        inside = labels != IGNORED
        if self.filler is not None:
            rest = (labels == self.filler) | ~inside
            inside &= rest.flip(1).cumprod(1).flip(1) == 0
        tokens = inside.sum(1).double()
        # Trainer 5.24 repeats them as often as a whole batch has rows, in a last one too.
        each = torch.as_tensor(losses).cpu().double().flatten()[: len(tokens)]
        self.total += float((each * tokens).sum())
        self.count += float(tokens.sum())

    def result(self) -> dict[str, float]:
        """``loss``, in place of Trainer's own, and begin anew; nothing where none was told."""
        found = {"loss": self.total / self.count} if self.count else {}
        self._begin()
        return found
