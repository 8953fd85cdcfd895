"""How much each channel of a feature map matters to the task: the attention of DELTA."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.embeddings import Taps
from hf_sft.errors import UserError

STEPS, RATE = 100, 1e-2  # of Adam, for a head on a frozen backbone
SOFTNESS = 5.0
Batches = Sequence[Mapping[str, Any]]


@torch.no_grad()
def attention(model: nn.Module, layers: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """w_j = softmax(z_j/5) (C_j,) by layer; z_jc: the rise of the loss without channel c.

    Rises are standardised over the channels of a layer. Li et al. 2019 (arXiv 1901.09229), §3.3.
    """
    base, found = task_loss(model, batches), {}
    for name, count in channels(model, layers, batches[0]).items():
        rise = torch.stack([
            task_loss(model, batches, name, c) - base for c in range(count)
        ])  # fmt: skip
        spread = rise.std() if count > 1 else rise.new_zeros(())
        z = (rise - rise.mean()) / spread if spread > 0 else torch.zeros_like(rise)
        found[name] = (z / SOFTNESS).softmax(0).float()
    return found


def channels(model: nn.Module, layers: Sequence[str], batch: Mapping[str, Any]) -> dict[str, int]:
    """How many channels the map of each layer has."""
    taps = Taps(model, layers=layers)
    model(**batch)
    found = {name: taps.maps[name].shape[channel_axis(taps.maps[name])] for name in layers}
    taps.remove()
    return found


def task_loss(
    model: nn.Module, batches: Batches, name: str | None = None, channel: int = 0
) -> Tensor:
    """The mean loss over the examples (float64), one channel of one layer zeroed."""
    hook = None
    if name is not None:
        hook = model.get_submodule(name).register_forward_hook(without_channel(channel))
    losses, sizes = [], []
    for batch in batches:
        outputs = model(**batch)
        if "loss" not in outputs:
            raise UserError("penalty: delta with attention needs a model that gives its own loss.")
        losses.append(outputs["loss"].double())
        sizes.append(len(batch["labels"]))
    if hook is not None:
        hook.remove()
    weights = torch.tensor(sizes, dtype=torch.float64, device=losses[0].device)
    return (torch.stack(losses) * weights).sum() / weights.sum()


def without_channel(channel: int) -> Callable:
    """A hook that sets one channel of what a module gives to 0."""

    def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
        found = (output[0] if isinstance(output, tuple) else output).clone()
        found.select(channel_axis(found), channel).zero_()
        return (found, *output[1:]) if isinstance(output, tuple) else found

    return hook


def channel_axis(found: Tensor) -> int:
    """1 of (examples, channels, height, width), else the last."""
    return 1 if found.ndim == 4 else -1


def fit_head_(model: nn.Module, fresh: Collection[str], batches: Batches, seed: int = 0) -> None:
    """Give a new head values of its own making and fit it on the frozen backbone.

    Matrices begin at N(0, 0.02²) from a fixed seed, so that the result does not depend on how the
    head was drawn.
    """
    generator, head = torch.Generator().manual_seed(seed), []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in fresh)
        if name in fresh:
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.02
                parameter.data.copy_(drawn)
            head.append(parameter)
    if not head:
        return
    optimizer = torch.optim.Adam(head, lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.zero_grad()
            model(**batches[step % len(batches)])["loss"].backward()
            optimizer.step()
