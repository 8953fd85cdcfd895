"""What a model answers to a batch, and how far two answers are apart."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hf_sft.errors import UserError

LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
SHIFTING = ("ForCausalLM", "ForConditionalGeneration")  # `loss_type`s whose labels are one ahead
Kind = Literal["classes", "flags", "values"]


def without_labels(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The inputs of the forward pass proper.

    Labels per position stay where an encoder-decoder makes its decoder's inputs from them.
    """
    labels = inputs.get("labels")
    needed = (
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        and not inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
        and torch.is_tensor(labels)
        and labels.ndim == 2
    )
    left_out = [key for key in LABELS if not (needed and key == "labels")]
    return {key: value for key, value in inputs.items() if key not in left_out}


def logits_of(outputs: Any, who: str = "the model") -> Tensor:
    """(examples, …, classes); of a span's start and end (examples, 2, positions).

    A model that finds masks: the classes of its queries (examples, queries, classes + 1).

    Raises:
        UserError: the model answers otherwise.
    """
    for key in ("logits", "start_logits", "class_queries_logits"):
        found = outputs.get(key) if isinstance(outputs, Mapping) else getattr(outputs, key, None)
        if found is None:
            continue
        if key != "start_logits":
            return found
        return torch.stack([found, outputs["end_logits"]], dim=1)
    raise UserError(f"penalty: {who} gives no logits that could be compared. Take l2-sp.")


def counted(logits: Tensor, inputs: Mapping[str, Any], model: nn.Module) -> tuple[Tensor, Tensor]:
    """The answers that count, as rows (n, classes), and their weights (n,), which sum to 1.

    Per position: those with a label, of language models the ones that predict a label. Without
    labels per position, the real positions of every example, each example counting the same.
    """
    if logits.ndim == 2:
        return logits, logits.new_full((len(logits),), 1 / len(logits), dtype=torch.float32)
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")
    if logits.ndim == 4:  # (examples, classes, height, width)
        logits = logits.flatten(2).transpose(1, 2)
    if torch.is_tensor(labels) and labels.shape == logits.shape[:2]:
        if shifts_labels(model):
            logits, labels = logits[:, :-1], labels[:, 1:]
        count = (labels != -100).float()
        weights = count / count.sum().clamp(min=1)
    else:
        real = mask if mask is not None and mask.shape == logits.shape[:2] else None
        count = torch.ones_like(logits[..., 0]) if real is None else real
        count = count.float()
        weights = count / count.sum(1, keepdim=True).clamp(min=1) / len(count)
    chosen = weights > 0
    return logits[chosen], weights[chosen]


def shifts_labels(model: nn.Module) -> bool:
    """Whether the label of a position is what the position before it predicts."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    named = getattr(model, "loss_type", None) or type(model).__name__
    return named in SHIFTING or named.endswith(("ForCausalLM", "LMHeadModel"))


def kind_of(model: nn.Module, logits: Tensor) -> Kind:
    """What the logits (n, classes) mean: one class of several, flags of their own, or numbers."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem == "regression" or logits.shape[-1] == 1:
        return "values"
    return "flags" if problem == "multi_label_classification" else "classes"


def wide(x: Tensor) -> Tensor:
    """In float32, or as it is when it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def squares(first: Tensor, second: Tensor) -> Tensor:
    """(n,): the mean over the classes of (z − z′)²."""
    return (wide(first) - wide(second)).square().mean(-1)


def divergence(p: Tensor, q: Tensor, kind: Kind, tau: float = 1.0) -> Tensor:
    """(n,): KL(p ‖ q) of answers (n, classes) at temperature τ; numbers: `squares`."""
    if kind == "values":
        return squares(p, q)
    p, q = wide(p) / tau, wide(q) / tau
    if kind == "classes":
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    yes = p.sigmoid() * (logsigmoid(p) - logsigmoid(q))
    return (yes + (-p).sigmoid() * (logsigmoid(-p) - logsigmoid(-q))).sum(-1)


def symmetric(p: Tensor, q: Tensor, kind: Kind) -> Tensor:
    """(n,): KL(p ‖ q) + KL(q ‖ p) = Σ (p − q)·(log p − log q), never negative; or `squares`.

    One product of differences: two divergences of nearby answers would be lost in rounding.
    """
    if kind == "values":
        return squares(p, q)
    p, q = wide(p), wide(q)
    if kind == "flags":
        return ((p.sigmoid() - q.sigmoid()) * (p - q)).sum(-1)
    return ((p.softmax(-1) - q.softmax(-1)) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
