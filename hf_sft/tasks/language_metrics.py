"""Loss, perplexity and token accuracy of language models, exact over tokens, in flat memory."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_sft.tasks.streaming_sums import StreamingSums

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


class StreamingLanguage(StreamingSums):
    """Of the three numbers per row that `token_sums` gives.

    ``loss`` = Σ_t −log p(label_t) / T in nats over the T labelled tokens of the split, whatever
    the batches were; ``perplexity`` = exp(loss); ``token_accuracy`` = the share of labelled tokens
    that are the likeliest. The exact ``loss`` replaces Trainer's mean of the batches' means.
    """

    def scores(self, sums: list[float], rows: int) -> dict[str, float]:
        nll, count, right = sums
        loss = nll / max(1.0, count)
        return {"loss": loss, "perplexity": safe_exp(loss), "token_accuracy": right / max(1, count)}


def safe_exp(loss: float) -> float:
    """exp(loss); infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
