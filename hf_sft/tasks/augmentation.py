"""Augmentation: presets of torchvision, drawn anew for every row of train in every epoch."""

from typing import Any, Literal

import torch
from datasets import Dataset
from torchvision.transforms import v2

from hf_sft.draws import Draws

Preset = Literal["none", "basic", "strong"]


class DrawnRows(torch.utils.data.Dataset):
    """Rows of train whose transform draws from torch's own generator, seeded for row and epoch.

    The same seed, epoch and row always give the same draw: whatever the workers, the batch size and
    the processes, and after resuming. The generator is left as it was found. The trainer's
    TellEpoch tells ``draws`` what epoch it is.

    Args:
        rows: with a transform (`Dataset.with_transform`).
        number: the key of a row that gets another number drawn for it, for what a collator draws
            once for a whole batch; None for no such key.
    """

    def __init__(self, rows: Dataset, number: str | None = None):
        self.rows, self.number, self.draws = rows, number, Draws()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(row)  # where a plain `for` over the rows ends
        return self.drawn(row, self.draws.seed(row))

    def drawn(self, row: int, seed: int) -> dict[str, Any]:
        """A row as this seed draws it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = dict(self.rows[row])
            if self.number is not None:
                found[self.number] = int(torch.randint(2**62, ()))
        return found


def alone(preset: Preset) -> v2.Transform | None:
    """What is done to a picture (PIL, or torchvision's Image) that is all there is; None: nothing.

    basic: a random part of at least half its area, and the mirror image half of the time. strong:
    beside that one operation of TrivialAugment (Müller and Hutter 2021, arXiv 2103.10158), and a
    quarter of the time an erased rectangle (Zhong et al. 2017, arXiv 1708.04896). The model's own
    image processor comes after it: size and normalisation are those of an evaluation.
    """
    if preset == "none":
        return None
    strong = [v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)] if preset == "strong" else []
    return v2.Compose([RandomPart(), v2.RandomHorizontalFlip(), *strong])


def with_places(preset: Preset) -> v2.Transform | None:
    """The same of a picture whose boxes or masks (tv_tensors in the same call) go with it.

    strong: the colours are distorted in place of TrivialAugment, which moves no boxes, and nothing
    is erased. Boxes are cut at the edge: v2.SanitizeBoundingBoxes drops those of which nothing is
    left, with their labels.
    """
    if preset == "none":
        return None
    strong = [v2.RandomPhotometricDistort()] if preset == "strong" else []
    return v2.Compose([RandomPart(), v2.RandomHorizontalFlip(), *strong])


class RandomPart(v2.RandomResizedCrop):
    """A part of 1/2 to all of the area, 3:4 to 4:3 in form, its pixels as they are: not resized."""

    def __init__(self) -> None:
        super().__init__(size=1, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.crop(inpt, **params)
