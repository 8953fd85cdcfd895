"""What a frozen model makes of rows: pooled features, and its own head's answers if it has one."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.embeddings import Taps
from hf_sft.errors import SourceError
from hf_sft.starting_point import digest

POOLING = 1  # raised when ``extract`` comes to give other numbers for the same model and rows
NO_MATTER = ("_name_or_path", "id2label", "label2id")  # settings that change no feature


@dataclass(frozen=True)
class Features:
    """F (n, d) in float32, and the source head's probabilities (n, Z) where it has a head."""

    features: Tensor
    probabilities: Tensor | None = None


@torch.no_grad()
def extract(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], head: bool) -> Features:
    """One pass over the batches in eval mode; labels are not looked at.

    Features are the last hidden states averaged over real positions, or what a timm classifier
    takes in.

    Args:
        model: the source.
        batches: collated rows.
        head: whether the model's head is its own, so that its answers mean something.

    Raises:
        SourceError: the model does not take these rows.
    """
    found, answers, device = [], [], next(model.parameters()).device
    model.eval()
    try:
        taps = Taps(model, embeddings=True)
        for batch in batches:
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            outputs = model(**inputs)
            found.append(taps.embeddings(inputs).float().cpu())
            if head:
                answers.append(outputs.logits.float().softmax(-1).cpu())
        taps.remove()
    except Exception as error:  # whatever a stranger's forward says of rows it was not made for
        raise SourceError(
            f"{type(model).__name__} gives no features of the recipe's rows "
            f"({type(error).__name__}): {error}"
        ) from error
    return Features(torch.cat(found), torch.cat(answers) if head else None)


def identity(
    model: Any, fresh: Collection[str], batches: Iterable[Mapping[str, Tensor]], head: bool
) -> str:
    """One hash (hex SHA-256) of all that ``extract`` depends on.

    The weights that came from the source, its settings, the rows as the model sees them after
    preprocessing, the kind of device, and the versions of the code in between.
    """
    found = hashlib.sha256(json.dumps(_setting(model, head), sort_keys=True, default=str).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in fresh:
            found.update(f"{name} {digest(tensor)}\n".encode())
    for batch in batches:
        for name in sorted(set(batch) - {"labels"}):
            found.update(f"{name} {digest(batch[name])}\n".encode())
    return found.hexdigest()


def _setting(model: Any, head: bool) -> dict[str, Any]:
    kind = type(model)
    return {
        "pooling": POOLING,
        "head": head,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "config": {k: v for k, v in model.config.to_dict().items() if k not in NO_MATTER},
        "device": next(model.parameters()).device.type,
        "versions": {name: version(name) for name in ("torch", "transformers", "timm")},
    }
