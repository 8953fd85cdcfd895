"""How much of the source's function is left: the same inputs through θ⁰ and through θ."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sft.layer_groups import LayerGroup, LayerGroups
from hf_sft.penalties.answers import counted, divergence, logits_of, without_labels
from hf_sft.penalties.similarity import cosines
from hf_sft.reporting import geometry

KEPT = ("spearman", "top1_agreement")  # of `retention`: 1 is the source's own function
EXAMPLES = 256
POSITIONS = 4096  # of a model that answers at each of them: words, pixels
BATCH = 32
MOST_LOGITS = 2**27  # numbers that one batch of a model that writes words may answer
AT_ONCE = 2**24  # numbers of which a divergence is taken at a time


def retention(original: Any, has_head: bool, tuned: Any, head: set[str], rows, collate) -> dict:
    """Source-function drift on up to 256 rows; nothing of the source's own data is needed.

    With the source's own head: mean KL(p_θ⁰ ‖ p_θ) in nats and top-1 agreement of that head on the
    two backbones, over up to 4096 positions where it answers at each: those with a label, of
    language models those that predict one. Without: Spearman's rank correlation of the rows'
    pairwise cosines, embeddings averaged over positions. ``tuned``'s backbone is copied into
    ``original``.
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
    """`retention`, and `geometry.compare` of these layer groups, by two passes in all.

    Both see a batch before the next one comes: logits are let go of, sums stay.
    """
    has_head = has_head and _tells_classes_apart(original)
    rows = rows.select(range(min(EXAMPLES, len(rows))))
    original = original.to(next(tuned.parameters()).device).eval()
    batches = DataLoader(rows, batch_size=_batch_size(original, rows), collate_fn=collate)
    layers = geometry.places(original, groups)
    before = geometry.Views(original, layers, embeddings=not has_head)
    after = geometry.Views(original, layers, embeddings=not has_head)
    kept = _SameFunction(-(-POSITIONS // len(batches))) if has_head else _SameGeometry()
    try:
        for batch in batches:
            batch = {
                k: v.to(original.device) if torch.is_tensor(v) else v
                for k, v in batch.items()
                if torch.is_tensor(v) or isinstance(v, bool)  # use_cache: False of packed rows
            }
            then = _look(original, {}, batch, before, has_head)
            kept.add(then, _look(original, _shared(original, tuned, head), batch, after, has_head))
    finally:
        before.taps.remove()
        after.taps.remove()
    original.load_state_dict(_shared(original, tuned, head), strict=False)
    layers = geometry.compare(before.features(), after.features(), groups)
    return {"examples": len(rows), **kept.result()}, layers


def _tells_classes_apart(original: Any) -> bool:
    """Whether the source's head chooses one of several, so that its answers have a KL."""
    config = getattr(original, "config", None)
    problem, outputs = (getattr(config, key, None) for key in ("problem_type", "num_labels"))
    return problem in (None, "single_label_classification") and outputs != 1


def _look(
    model: Any, theta: dict[str, Tensor], batch: dict, views: geometry.Views, has_head: bool
) -> Tensor:
    """(items, …) of one batch with ``theta`` in place: its answers that count, or embeddings."""
    inputs = without_labels(batch, model)
    outputs = torch.func.functional_call(model, theta, (), inputs)
    views.take(inputs)
    return _answers(outputs, batch, model) if has_head else views.taps.embeddings(inputs)


def _shared(original: Any, tuned: Any, head: set[str]) -> dict[str, Tensor]:
    """What ``tuned`` puts in the place of the source's own tensors below the head."""
    theirs = dict(tuned.named_parameters()) | dict(tuned.named_buffers())
    ours = dict(original.named_parameters()) | dict(original.named_buffers())
    return {
        name: theirs[name].detach().to(tensor.dtype)
        for name, tensor in ours.items()
        if name in theirs and name not in head and theirs[name].shape == tensor.shape
    }


def _batch_size(model: Any, rows: Any) -> int:
    """Rows at a time: fewer where each position is answered with one number for every class."""
    try:
        table = model.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # images
        table = None
    if (maps := rows[0].get("labels")) is not None and torch.is_tensor(maps) and maps.ndim == 2:
        return min(BATCH, max(1, MOST_LOGITS // (model.config.num_labels * maps.numel())))
    if table is None or "labels" not in rows.column_names:
        return BATCH
    longest = max(len(ids) if isinstance(ids, list) else 1 for ids in rows["labels"])
    words = table.weight.shape[0]
    return min(BATCH, max(1, MOST_LOGITS // (words * max(1, longest))))


def _answers(outputs: Any, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
    """(items, classes): the answers that count, of all rows or of all positions."""
    return counted(logits_of(outputs), batch, model)[0]


class _SameFunction:
    """KL and top-1 agreement of two models' answers, batch by batch.

    Args:
        most: positions of a batch that are looked at, evenly spaced.
    """

    def __init__(self, most: int):
        self.most, self.items, self.divergence, self.agreeing = most, 0, 0.0, 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Answers (items, classes) of the source and of the tuned model to the same items."""
        for then, now in zip(self._parts(before), self._parts(after), strict=True):
            self.items += len(then)
            self.divergence += float(divergence(then, now, "classes").double().sum())
            self.agreeing += int((then.argmax(-1) == now.argmax(-1)).sum())

    def _parts(self, answers: Tensor) -> Iterator[Tensor]:
        few = min(self.most, len(answers))
        chosen = torch.arange(few, device=answers.device) * len(answers) // max(1, few)
        for part in chosen.split(max(1, AT_ONCE // answers.shape[-1])):
            yield answers[part]

    def result(self) -> dict[str, Any]:
        items = max(1, self.items)
        return {
            "by": "original head",
            "kl": self.divergence / items,
            "top1_agreement": self.agreeing / items,
            "answers": self.items,
        }


class _SameGeometry:
    """Rank correlation of the pairwise cosines of two models' embeddings."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def add(self, before: Tensor, after: Tensor) -> None:
        """Embeddings (examples, dim) of the same examples."""
        self.before.append(before.float().cpu())
        self.after.append(after.float().cpu())

    def result(self) -> dict[str, Any]:
        from scipy.stats import spearmanr

        both = torch.cat(self.before), torch.cat(self.after)
        pairs = torch.triu_indices(len(both[0]), len(both[0]), offset=1)
        then, now = (cosines(embeddings)[pairs[0], pairs[1]].numpy() for embeddings in both)
        return {"by": "pairwise similarity", "spearman": float(spearmanr(then, now).statistic)}
