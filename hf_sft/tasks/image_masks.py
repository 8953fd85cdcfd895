"""Masked image modelling: which patches of an image are hidden, as a function of a drawn number."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_sft.draws import mixed
from hf_sft.errors import RecipeError

log = logging.getLogger(__name__)
ROW, DRAW = "row", "draw"  # keys of encoded rows
SIMMIM_SIZE = 32  # pixels of SimMIM's hidden squares


@dataclass(frozen=True)
class Grid:
    """The patches of a square image and the squares of them that are hidden together.

    Attributes:
        side: patches along a side.
        block: patches along a side of a hidden square.
        ratio: share of the squares that are hidden.
    """

    side: int
    block: int
    ratio: float

    def hidden(self, draw: int) -> Tensor:
        """(side²,) bool: ⌈ratio · squares⌉ hidden squares, drawn with the seed ``draw``.

        At least one square stays to be seen (Xie et al. 2022, arXiv 2111.09886).
        """
        across = self.side // self.block
        count = min(math.ceil(across**2 * self.ratio), across**2 - 1)
        chosen = noise(across**2, draw).argsort()[:count]
        squares = torch.zeros(across**2, dtype=torch.bool).index_fill_(0, chosen, True)
        squares = squares.view(across, across)
        return squares.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1).flatten()


def noise(count: int, draw: int) -> Tensor:
    """(count,) numbers in [0, 1) that the seed ``draw`` gives."""
    return torch.rand(count, generator=torch.Generator().manual_seed(draw))


def grid_of(config: Any, size: int | None, ratio: float) -> Grid:
    """The grid of a model's patches, hidden in squares of ``size`` pixels.

    None: SimMIM's 32 where the image divides into several such and they into patches, else a patch.

    Raises:
        RecipeError: squares of this size do not fit.
    """
    image, patch = side_of(config.image_size), side_of(config.patch_size)
    if size is None:
        fits = not SIMMIM_SIZE % patch and not image % SIMMIM_SIZE and image > SIMMIM_SIZE
        size = SIMMIM_SIZE if fits else patch
    if size % patch or image % size or size >= image:
        fitting = [n for n in range(patch, image, patch) if not image % n]
        raise RecipeError(
            f"task.mask_size: squares of {size} pixels do not cover an image of {image} pixels in "
            f"patches of {patch}. Choices: {', '.join(map(str, fitting)) or 'none'}."
        )
    return Grid(image // patch, size // patch, ratio)


def side_of(size: Any) -> int:
    """The side of a square that a configuration gives as a number or as a pair.

    Raises:
        RecipeError: it is no square.
    """
    sides = {size} if isinstance(size, int) else {*size}
    if len(sides) > 1:
        raise RecipeError(
            f"model.name: the model takes images or patches of {size}, which are no squares; "
            "masked image modelling here wants squares."
        )
    return sides.pop()


def fill_positions_(model: Any) -> None:
    """Give a ViTMAE the fixed tables of positions that its architecture has, where they are empty.

    transformers 5.24 leaves them so in a model that is built from a configuration; none of its
    patches could then be told from another. Layout: sines and cosines of the column, of the row.
    """
    from transformers.models.vit_mae import modeling_vit_mae as vit_mae

    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        if bool(table.any()):
            continue
        side, width = math.isqrt(table.shape[1] - 1), table.shape[2]
        made = vit_mae.build_2d_sinusoidal_position_embedding(side, side, width, cls_token=True)
        with torch.no_grad():
            table.copy_(made.roll(width // 2, 1))
        log.warning("model.name: a table of positions was all zeros; it has its sines now.")


class MaskCollator:
    """``pixel_values`` and what hides their patches: ``bool_masked_pos``, or MAE's ``noise``.

    Rows have ``draw``, the seed of their mask, and ``grid``. MAE's model hides those patches where
    the noise is largest.
    """

    def __init__(self, method: str):
        self.method = method

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
        if self.method == "mae":
            drawn = [noise(row["grid"].side ** 2, row["draw"]) for row in rows]
            return {"pixel_values": pixels, "noise": torch.stack(drawn)}
        hidden = torch.stack([row["grid"].hidden(row["draw"]) for row in rows])
        return {"pixel_values": pixels, "bool_masked_pos": hidden}


@dataclass(frozen=True)
class MaskTransform:
    """A batch of rows -> what `MaskCollator` takes; the number drawn is the row's own for good."""

    processor: Any
    image: str
    grid: Grid
    seed: int
    augment: Callable | None = None

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[self.image]]
        if self.augment is not None:
            images = [self.augment(image) for image in images]
        return {
            "pixel_values": self.processor(images, return_tensors="pt")["pixel_values"],
            "grid": [self.grid] * len(images),
            DRAW: [mixed(self.seed, row) for row in batch[ROW]],
        }
