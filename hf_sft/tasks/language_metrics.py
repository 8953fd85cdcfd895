"""Loss, perplexity and token accuracy of language models, exact over tokens, in flat memory."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_sft.errors import DataError

SCALARS = ("perplexity", "token_accuracy")
IGNORED = -100


@torch.no_grad()
def token_sums(logits: Any, labels: Tensor, shifts: bool) -> Tensor:
    """(rows, 3): Σ −log p(label) in nats, the number of labels, how many are the likeliest token.

    Args:
        logits: (rows, positions, vocabulary), on the device; or a tuple that starts with them.
        labels: (rows, positions); those that are -100 do not count.
        shifts: whether position t predicts the label of t + 1, as in a causal model.

    Only labelled positions are copied to float32, one row at a time, so that nothing of the size
    of a batch's logits is made a second time, and 3 numbers per row are all that is gathered.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    if shifts:
        logits, labels = logits[:, :-1], labels[:, 1:]
    sums = [_row(scores, wanted) for scores, wanted in zip(logits, labels, strict=True)]
    return torch.stack(sums)


def _row(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != IGNORED
    logits, labels = logits[known].float(), labels[known]
    nll = cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(-1) == labels).sum()
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    return torch.stack([nll.to(wide).sum(), known.sum().to(wide), right.to(wide)])


class StreamingLanguage:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps three numbers in all.

    ``loss`` = Σ_t −log p(label_t) / T in nats over the T labelled tokens of the split, whatever
    the batches were; ``perplexity`` = exp(loss); ``token_accuracy`` = the share of labelled tokens
    that are the likeliest. The exact ``loss`` replaces Trainer's mean of the batches' means.

    Raises:
        DataError: the model's outputs are not finite.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self._sums = torch.zeros(3, dtype=torch.float64)

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take the sums of one batch, (rows, 3), as `token_sums` gives them."""
        self._sums += torch.as_tensor(batch.predictions).cpu().double().sum(0)
        if not compute_result:
            return {}
        (nll, count, right), self._sums = self._sums.tolist(), torch.zeros_like(self._sums)
        if not math.isfinite(nll):
            raise DataError(
                "The model's outputs are not finite: training has diverged. Lower "
                "training.learning_rate and start anew with --overwrite."
            )
        loss = nll / max(1.0, count)
        return {"loss": loss, "perplexity": safe_exp(loss), "token_accuracy": right / max(1, count)}


def safe_exp(loss: float) -> float:
    """exp(loss); infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
