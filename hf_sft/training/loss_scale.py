"""Does a model's loss use ``num_items_in_batch``? Found out by trying, leaving no trace.

Many forwards accept the argument through ``**kwargs`` and ignore it; the plain Trainer then takes
steps that are too large by the accumulation steps and by the number of processes.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_batch_size, send_to_device

from hf_sft.penalties.answers import shifts_labels

log = logging.getLogger(__name__)
REWEIGHTED = "%s ignores num_items_in_batch: its loss is weighted here, so that a step is the same \
for any accumulation and number of processes."
Counts = dict[str, int]  # by what is counted: "item", "example"


def settle_(trainer: Any) -> None:
    """Set whether the trainer weighs the loss itself, before its training begins."""
    trainer.rescales_loss = not trainer.honours_items
    if trainer.rescales_loss and trainer.model_accepts_loss_kwargs:
        # It takes num_items_in_batch and ignores it: Trainer would then neither divide the loss
        # by the accumulation steps nor undo its own factor num_processes.
        trainer.model_accepts_loss_kwargs = False
        log.warning(REWEIGHTED, type(trainer.model).__name__)


def honours_item_count(trainer: Any, compute_loss: Callable[..., Any]) -> bool:
    """Whether the loss halves when ``num_items_in_batch`` doubles, on two rows of the train set.

    ``compute_loss`` is the Trainer's: a subclass may have a loss of its own. A loss function handed
    to the Trainer is taken at its word. RNG state and modes stay as they were.
    """
    if trainer.compute_loss_func is not None:
        return True
    if not trainer.model_accepts_loss_kwargs or trainer.train_dataset is None:
        return False
    with undisturbed(trainer.model), torch.no_grad():
        trainer.model.eval()
        home = next(trainer.model.parameters()).device  # the CPU until FSDP has divided it
        batch = send_to_device(probe_batch(trainer, rows=2), home)
        if "labels" not in batch:
            return False
        losses = []
        for items in (1, 2):
            count = torch.tensor(items, device=home)
            with trainer.compute_loss_context_manager():
                try:
                    loss = compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
                except TypeError:
                    return False
            losses.append(float(loss))
    return abs(losses[0] - 2 * losses[1]) < 1e-2 * abs(losses[0])


def probe_batch(trainer: Any, rows: int) -> dict[str, Any]:
    """The first rows of the train set as a batch on the device.

    Taken from the dataset: a batch from the loader would consume the shuffle's seed.
    """
    found = list(islice(iter(trainer.train_dataset), rows))
    return trainer._prepare_inputs(collator(trainer)(found))


def collator(trainer: Any) -> Callable:
    """The trainer's collator as its loader uses it."""
    # Private in transformers 5.23: the only way to Trainer's own column removal.
    return trainer._get_collator_with_removed_columns(trainer.data_collator)


def count_items(trainer: Any, batch: Mapping[str, Any]) -> int:
    """How many items a batch's mean loss is taken over: labels not ignored, or examples."""
    labels = batch.get("labels")
    if not torch.is_tensor(labels):
        return find_batch_size(batch) or 0
    if labels.is_floating_point():  # numbers, or a yes and no for each label: none is ignored
        return labels.numel()
    # As Trainer 5.23 counts causal models, and as GPT-2, which it does not take for one, does.
    if getattr(trainer, "_loss_shifts_labels", False) or shifts_labels(trainer.model):
        labels = labels[..., 1:]
    config = getattr(trainer.model, "config", None)
    per_pixel = labels.ndim > 2  # (examples, height, width); elsewhere 255 is a class
    names = ("semantic_loss_ignore_index", "loss_ignore_index") if per_pixel else ()
    ignored = next((getattr(config, name) for name in names if hasattr(config, name)), -100)
    return int((labels != ignored).sum())


def count(trainer: Any, batch: Mapping[str, Any]) -> Counts:
    """How many items and how many examples a batch has."""
    return {"item": count_items(trainer, batch), "example": find_batch_size(batch) or 0}


def count_step(trainer: Any, batches: list) -> Counts:
    """What all micro-batches of a step have, over all processes."""
    found = [count(trainer, batch) for batch in batches]
    sums = {unit: sum(one[unit] for one in found) for unit in ("item", "example")}
    if trainer.args.world_size == 1:
        return sums
    total = torch.tensor([list(sums.values())], device=trainer.args.device)
    return dict(zip(sums, trainer.accelerator.gather(total).sum(0).tolist(), strict=True))


def divisor(trainer: Any, num_items: Any) -> int:
    """By how many micro-batches Trainer 5.24 divides the loss of one; 1 for a normalised loss."""
    normalised = trainer.model_accepts_loss_kwargs and num_items is not None
    if normalised or trainer.compute_loss_func is not None:
        return 1
    return trainer.current_gradient_accumulation_steps


def shares_of_step(trainer: Any, batch: Mapping[str, Any], num_items: Any) -> dict[str, float]:
    """The factor on a mean over one micro-batch, so that the step has the mean over all it has.

    n_k·P/N before DDP's mean over P processes, times what Trainer will divide the loss by; for
    means over items and over examples.
    """
    here = count(trainer, batch) if trainer.items_in_step else {"item": 0, "example": 0}
    factor = divisor(trainer, num_items) * trainer.args.world_size
    return {
        unit: here[unit] * factor / trainer.items_in_step[unit] if here[unit] else 1.0
        for unit in here
    }


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Put the modules' modes and all random number generators back afterwards."""
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for module, mode in modes.items():
            module.training = mode
