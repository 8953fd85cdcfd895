"""How much of the source's function is left: the same inputs through θ⁰ and through θ."""

from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader

from hf_sft import geometry
from hf_sft.layer_groups import LayerGroup, LayerGroups
from hf_sft.penalties.answers import without_labels
from hf_sft.penalties.similarity import cosines

EXAMPLES = 256


def retention(original: Any, has_head: bool, tuned: Any, head: set[str], rows, collate) -> dict:
    """Source-function drift on up to 256 rows; nothing of the source's own data is needed.

    With the source's own head: mean KL(p_θ⁰ ‖ p_θ) in nats and top-1 agreement of that head on the
    two backbones. Without: Spearman's rank correlation of the rows' pairwise cosines, embeddings
    averaged over positions. ``tuned``'s backbone is copied into ``original``.
    """
    return compare(original, has_head, tuned, head, rows, collate)[0]


@torch.no_grad()
def compare(
    original: Any,
    has_head: bool,
    tuned: Any,
    head: set[str],
    rows: Any,
    collate: Any,
    groups: LayerGroups | tuple[LayerGroup, ...] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`retention`, and `geometry.compare` of these layer groups, by two passes in all."""
    rows = rows.select(range(min(EXAMPLES, len(rows))))
    batches = list(DataLoader(rows, batch_size=32, collate_fn=collate))
    original = original.to(next(tuned.parameters()).device).eval()
    layers = geometry.places(original, groups)
    before, views_before = _look(original, has_head, batches, layers)
    _take_backbone_(original, tuned, head)
    after, views_after = _look(original, has_head, batches, layers)
    kept = _same_function(before, after) if has_head else _same_geometry(before, after)
    return {"examples": len(rows), **kept}, geometry.compare(views_before, views_after, groups)


def _take_backbone_(original: Any, tuned: Any, head: set[str]) -> None:
    state = tuned.state_dict()
    shared = {
        name: state[name]
        for name, tensor in original.state_dict().items()
        if name in state and name not in head and state[name].shape == tensor.shape
    }
    original.load_state_dict(shared, strict=False)


def _look(
    model: Any, has_head: bool, batches: list[dict], layers: Mapping[str, str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(Logits of the own head, else pooled embeddings; features of the layers), rows in order."""
    views, found = geometry.Views(model, layers, embeddings=not has_head), []
    try:
        for batch in batches:
            batch = {k: v.to(model.device) for k, v in batch.items() if torch.is_tensor(v)}
            inputs = without_labels(batch, model)
            outputs = model(**inputs)
            shown = outputs.logits if has_head else views.taps.embeddings(inputs)
            found.append(_items(shown, inputs.get("attention_mask")).float().cpu())
            views.take(inputs)
    finally:
        views.taps.remove()
    return torch.cat(found), views.features()


def _items(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """(items, classes): of each position that is no padding, where there is one answer for each."""
    if outputs.ndim != 3:
        return outputs
    if mask is None or mask.shape != outputs.shape[:2]:
        return outputs.flatten(0, 1)
    return outputs[mask.bool()]


def _same_function(before: Tensor, after: Tensor) -> dict:
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    return {
        "by": "original head",
        "kl": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "top1_agreement": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }


def _same_geometry(before: Tensor, after: Tensor) -> dict:
    pairs = torch.triu_indices(len(before), len(before), offset=1)
    then, now = (cosines(embeddings)[pairs[0], pairs[1]].numpy() for embeddings in (before, after))
    return {"by": "pairwise similarity", "spearman": float(spearmanr(then, now).statistic)}
