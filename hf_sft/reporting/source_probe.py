"""The ``retention`` block: labelled rows of what the source could do, asked before and after."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from hf_sft.errors import DataError, RecipeError, listing, nearest
from hf_sft.loaders.splits import split
from hf_sft.models import LoadedModel
from hf_sft.recipe import Recipe


@dataclass(frozen=True)
class SourceProbe:
    """Encoded rows whose labels are outputs of the source's own head.

    Attributes:
        outputs: class number of the rows (classes,) -> number of the head's output.
    """

    rows: Dataset
    outputs: Tensor

    @classmethod
    def of(cls, recipe: Recipe, loaded: LoadedModel) -> "SourceProbe | None":
        """The rows that the recipe names, as this source takes them; None where it names none.

        Raises:
            RecipeError: the task has no classes, or the source no head of its own.
            DataError: the rows cannot be read, or have labels that the head does not know.
        """
        if recipe.retention is None:
            return None
        task = recipe.task
        if task.stratum is None:
            raise RecipeError(f"retention: {task.type} has no classes. Leave the block out.")
        original, has_head = loaded.original()
        if not has_head:
            raise RecipeError(
                f"retention: {recipe.model.name!r} comes without a head for {task.type}, so there "
                "is nothing to ask it. Leave the block out: similarities are compared all the same."
            )
        try:
            loader = recipe.retention
            data = split(
                task.check(loader.load(recipe.locate), loader.keep_labels),
                loader,
                task.stratum,
                validation=False,
            )
        except DataError as error:
            raise DataError(f"retention: {error}") from error
        outputs = _outputs(task.names(data), original.config)
        rows = data[next(s for s in ("test", "validation", "train") if s in data)]
        return cls(task.encode(rows, loaded.processor, original.config), torch.tensor(outputs))

    @torch.no_grad()
    def accuracy(self, model: Any, collate: Any) -> float:
        """Share of the rows that a model with the source's head gets right, 0..1."""
        model.eval()
        right = 0
        for batch in DataLoader(self.rows, batch_size=32, collate_fn=collate):
            labels = self.outputs[batch.pop("labels")]
            logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            right += int((logits.argmax(-1).cpu() == labels).sum())
        return right / len(self.rows)


def _outputs(names: list[str], config: Any) -> list[int]:
    """The head's output for every label: by its name, or by its number."""
    known = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    if all(name.isdecimal() and int(name) < config.num_labels for name in names):
        known = {name: int(name) for name in names} | known
    if unknown := [name for name in names if name not in known]:
        raise DataError(
            f"retention: the source's head does not know {listing(unknown)}; it knows "
            f"{listing(known)}, or outputs by their numbers.{nearest(unknown[0], known)}"
        )
    return [known[name] for name in names]
