"""Reconstructed images: how far hidden pixels are off, and pictures of them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from hf_sft.tasks.streaming_sums import StreamingSums

SCALARS = ("reconstruction_error", "relative_error")
Method = Literal["simmim", "mae"]
SMALLEST = 112  # pixels of a picture's side; smaller images are enlarged
MEAN, SPREAD = (0.5,), (0.5,)  # of a processor that says nothing


@dataclass(frozen=True)
class Reconstruction:
    """A batch of images, what of them was hidden, and what the model put there.

    Attributes:
        pixels: (images, channels, height, width) as the model was given them.
        hidden: (images, 1, height, width) bool.
        found: like ``pixels``; only the hidden ones count.
        errors: (images, 2) of hidden pixels, the model's and that of the guess (`errors`).
    """

    pixels: Tensor
    hidden: Tensor
    found: Tensor
    errors: Tensor


@torch.no_grad()
def reconstruct(
    pixels: Tensor, hidden: Tensor, answer: Tensor, method: Method, normalized: bool
) -> Reconstruction:
    """What a model answered, as images.

    Args:
        pixels: (images, channels, side, side).
        hidden: (images, patches), not 0 where a patch was hidden.
        answer: SimMIM's images, or MAE's (images, patches, pixels of a patch).
        normalized: MAE's patches are normalised by their own mean and deviation.
    """
    mask = _spread(hidden.bool(), pixels.shape[-1])
    guess = (pixels * ~mask).sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True)
    if method == "simmim":
        off, worst = (answer - pixels).abs(), (guess - pixels).abs()
        return Reconstruction(pixels, mask, answer, _errors(off, worst, mask))
    target, found = patches(pixels, hidden.shape[1]), answer
    worst = patches((guess - pixels) ** 2, hidden.shape[1])
    if normalized:
        mean, deviation = (
            target.mean(-1, keepdim=True),
            (target.var(-1, keepdim=True) + 1e-6).sqrt(),
        )
        target, found = (target - mean) / deviation, answer * deviation + mean
        worst = target**2
    images = whole(found, pixels.shape[1])
    parts = hidden.bool().unsqueeze(-1).expand_as(target)
    return Reconstruction(pixels, mask, images, _errors((answer - target) ** 2, worst, parts))


def _errors(off: Tensor, guessed: Tensor, mask: Tensor) -> Tensor:
    """(images, 2): means over what is hidden, each image by itself."""
    mask = mask.expand_as(off)
    count = mask.flatten(1).sum(1).clamp(min=1)
    return torch.stack([(x * mask).flatten(1).sum(1).double() / count for x in (off, guessed)], 1)


def _spread(hidden: Tensor, size: int) -> Tensor:
    """(images, patches) -> (images, 1, size, size)."""
    side = math.isqrt(hidden.shape[1])
    part = size // side
    squares = hidden.view(-1, 1, side, side)
    return squares.repeat_interleave(part, 2).repeat_interleave(part, 3)


def patches(pixels: Tensor, count: int) -> Tensor:
    """(images, channels, side, side) -> (images, count, pixels of a patch), channels last."""
    images, channels, size, _ = pixels.shape
    side = math.isqrt(count)
    part = size // side
    cut = pixels.reshape(images, channels, side, part, side, part).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(images, count, part * part * channels)


def whole(cut: Tensor, channels: int) -> Tensor:
    """The inverse of `patches`."""
    images, count, length = cut.shape
    side, part = math.isqrt(count), math.isqrt(length // channels)
    cut = cut.reshape(images, side, side, part, part, channels).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(images, channels, side * part, side * part)


class StreamingReconstruction(StreamingSums):
    """Of the two errors per image that `Reconstruction.errors` has.

    ``reconstruction_error`` = Σ_i e_i / n, e_i the mean over the hidden pixels of image i of
    |x̂ − x| (SimMIM) or (x̂ − x)² (MAE, of normalised patches where it learns those): the loss, in
    units of the model's own pixels. ``relative_error`` = Σ_i e_i / Σ_i g_i, g_i the same of a guess
    that knows but the mean colour of what is seen (0 for normalised patches): 1 is no better.
    """

    def scores(self, sums: list[float], rows: int) -> dict[str, float]:
        own, guessed = sums
        return {
            "reconstruction_error": own / max(1, rows),
            "relative_error": own / guessed if guessed else math.inf,
        }


def side_by_side(found: Reconstruction, index: int, processor: Any) -> Image.Image:
    """One image three times: hidden squares in grey, filled by the model, and as it is."""
    pixels, hidden = found.pixels[index], found.hidden[index]
    channels = len(pixels)
    mean, spread = (
        torch.tensor(getattr(processor, key, None) or usual).to(pixels).view(-1, 1, 1)
        for key, usual in (("image_mean", MEAN), ("image_std", SPREAD))
    )
    grey = ((0.5 - mean) / spread).expand(channels, 1, 1)
    shown = [
        torch.where(hidden, other, pixels) * spread + mean
        for other in (grey, found.found[index], pixels)
    ]
    strip = torch.cat(shown, -1).clamp(0, 1).mul(255).round().byte().cpu()
    picture = Image.fromarray(strip.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())
    times = max(1, -(-SMALLEST // picture.height))
    size = picture.width * times, picture.height * times
    return picture.resize(size, Image.Resampling.NEAREST)
