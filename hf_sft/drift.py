"""How much of the source's function is left: the same inputs through θ⁰ and through θ."""

from collections.abc import Iterable
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

EXAMPLES = 256


@torch.no_grad()
def retention(original: Any, has_head: bool, tuned: Any, head: set[str], rows, collate) -> dict:
    """Source-function drift on up to 256 rows; nothing of the source's own data is needed.

    With the source's own head: mean KL(p_θ⁰ ‖ p_θ) in nats and top-1 agreement of that head on the
    two backbones. Without: Spearman's rank correlation of the rows' pairwise cosines, embeddings
    averaged over positions. ``tuned``'s backbone is copied into ``original``.
    """
    rows = rows.select(range(min(EXAMPLES, len(rows))))
    batches = list(DataLoader(rows, batch_size=32, collate_fn=collate))
    original = original.to(next(tuned.parameters()).device).eval()
    outputs = _logits if has_head else _embeddings
    before = torch.cat([outputs(original, batch) for batch in _inputs(original, batches)])
    _take_backbone_(original, tuned, head)
    after = torch.cat([outputs(original, batch) for batch in _inputs(original, batches)])
    compared = _same_function(before, after) if has_head else _same_geometry(before, after)
    return {"examples": len(rows), **compared}


def _take_backbone_(original: Any, tuned: Any, head: set[str]) -> None:
    state = tuned.state_dict()
    shared = {
        name: state[name]
        for name, tensor in original.state_dict().items()
        if name in state and name not in head and state[name].shape == tensor.shape
    }
    original.load_state_dict(shared, strict=False)


def _inputs(model: Any, batches: Iterable[dict]) -> Iterable[dict]:
    for batch in batches:
        yield {k: v.to(model.device) for k, v in batch.items() if k != "labels"}


def _logits(model: Any, batch: dict) -> torch.Tensor:
    return model(**batch).logits.float().cpu()


def _embeddings(model: Any, batch: dict) -> torch.Tensor:
    """(examples, hidden): the last hidden state averaged over real positions."""
    hidden = model.base_model(**batch).last_hidden_state.float()
    if hidden.ndim == 4:  # (examples, channels, height, width)
        return hidden.mean((2, 3)).cpu()
    mask = batch.get("attention_mask", torch.ones(hidden.shape[:2], device=hidden.device))
    mask = mask.unsqueeze(-1).float()
    return ((hidden * mask).sum(1) / mask.sum(1)).cpu()


def _same_function(before: torch.Tensor, after: torch.Tensor) -> dict:
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    return {
        "by": "original head",
        "kl": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "top1_agreement": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }


def _same_geometry(before: torch.Tensor, after: torch.Tensor) -> dict:
    pairs = torch.triu_indices(len(before), len(before), offset=1)
    cosines = []
    for embeddings in (before, after):
        unit = torch.nn.functional.normalize(embeddings, dim=-1)
        cosines.append((unit @ unit.T)[pairs[0], pairs[1]].numpy())
    return {"by": "pairwise similarity", "spearman": float(spearmanr(*cosines).statistic)}
