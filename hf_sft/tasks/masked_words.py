"""fill-mask's numbers of every row, and the hidden words that surprised the model most."""

import math
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_sft.tasks.language_collator import IGNORED
from hf_sft.tasks.language_metrics import StreamingLanguage
from hf_sft.tasks.surprises import Surprises

SHOWN, KEPT = 12, 60  # in the report; of these, those that show no mask token are passed over
AROUND = 15  # tokens of the text on either side


@torch.no_grad()
def masked_sums(logits: Any, labels: Tensor) -> Tensor:
    """(rows, 8): the sums of `token_sums`, then of one hidden token what the model made of it.

    The token that was not found and had the smallest probability: −log p(token), its position, its
    number, the number of the likeliest token and the probability of that one; zeros where all were
    found.

    Args:
        logits: (rows, positions, vocabulary), on the device; or a tuple that starts with them.
        labels: (rows, positions); those that are -100 do not count.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    return torch.stack(
        [_row(scores, wanted) for scores, wanted in zip(logits, labels, strict=True)]
    )


def _row(logits: Tensor, labels: Tensor) -> Tensor:
    places = (labels != IGNORED).nonzero().flatten()
    wanted = labels[places]
    logs = logits[places].float().log_softmax(-1)  # (hidden, vocabulary)
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    nll = -logs.gather(1, wanted[:, None])[:, 0].to(wide)
    best, said = logs.max(-1)
    sums = torch.stack([nll.sum(), nll.new_tensor(len(places)), (said == wanted).sum().to(wide)])
    wrong = nll * (said != wanted)
    if not wrong.any():
        return torch.cat([sums, sums.new_zeros(5)])
    at = wrong.argmax()
    told = [wrong[at], places[at], wanted[at], said[at], best[at].exp()]
    return torch.cat([sums, torch.stack([number.to(wide) for number in told])])


class StreamingMasked(StreamingLanguage):
    """`StreamingLanguage` of the first three numbers of `masked_sums`; ``surprises`` of the others.

    ``surprises``: the rows with the smallest probability of a token, one token of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrong, self.surprises = Surprises(lambda *said: [x.item() for x in said], KEPT), []

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of `masked_sums`."""
        found = torch.as_tensor(batch.predictions).cpu().double()
        self.wrong.add(found[:, 3], *found[:, 3:].unbind(1))
        return super().__call__(batch, compute_result)

    def scores(self, sums: list[float], rows: int) -> dict[str, float]:
        self.surprises = self.wrong.told()
        return super().scores(sums[:3], rows)


def told(surprises: list[dict[str, Any]], hidden: Dataset, tokenizer: Any) -> list[dict[str, Any]]:
    """Of each surprise its place in the text, and both words with their probabilities.

    Args:
        hidden: their rows in the same order, as the model saw them. Where it saw a word at the
            place, drawn or the true one, nothing is told.
    """
    found = []
    for surprise, ids in zip(surprises, hidden["input_ids"], strict=True):
        nll, place, wanted, said, probability = surprise["caption"]
        if ids[int(place)] != tokenizer.mask_token_id or len(found) == SHOWN:
            continue
        found.append({
            "text": _around(ids, int(place), tokenizer),
            "wanted": tokenizer.decode([int(wanted)]).strip(),
            "guess": tokenizer.decode([int(said)]).strip(),
            "probability_of_the_guess": probability,
            "of_the_wanted": math.exp(-nll),
        })  # fmt: skip
    return found


def _around(ids: list[int], place: int, tokenizer: Any) -> dict[str, str]:
    """A hidden token with what stands around it; tokens of the frame are left out."""
    frame = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id, tokenizer.unk_token_id}
    start, end = max(0, place - AROUND), place + 1 + AROUND
    parts = [ids[start:place], ids[place + 1 : end]]
    before, after = (tokenizer.decode([i for i in part if i not in frame]) for part in parts)
    return {
        "before": f"{'… ' if start > 0 else ''}{before.strip()} ".lstrip(),
        "marked": tokenizer.mask_token,
        "after": f" {after.strip()}{' …' if end < len(ids) else ''}".rstrip(),
    }
