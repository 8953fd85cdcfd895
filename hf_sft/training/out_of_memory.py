"""Out of memory while training: what is told proposes smaller batches with the same mathematics."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hf_sft.errors import OneProcessError
from hf_sft.training.loss_scale import probe_batch

SMALLER = (
    "Freeze more (freeze: {type: train-last}), take an adapter, shorter texts or smaller images "
    "(task), training.gradient_checkpointing=true, or training.bf16=true where the device has it."
)


@contextmanager
def enough_memory(trainer: Any) -> Iterator[None]:
    """Inside, `train` may run; out of memory, smaller batches are tried and one is proposed.

    A batch of B rows accumulated A times is the same step as one of B/d rows accumulated A·d times,
    but for models that keep batch statistics. Over several processes nothing is tried.

    Raises:
        OneProcessError: in place of torch's or Python's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the activations
        raise OneProcessError(_proposal(trainer)) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator's allocator, torch's of the CPU, or Python says so."""
    known = MemoryError, torch.OutOfMemoryError
    return isinstance(error, known) or should_reduce_batch_size(error)


def _proposal(trainer: Any) -> str:
    args = trainer.args
    if trainer.control.should_evaluate:  # until the evaluation that is due has been made
        return _while_evaluating(trainer)
    batch, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
    place = (
        f"Out of memory at step {trainer.state.global_step + 1} with "
        f"training.per_device_train_batch_size: {batch}."
    )
    sizes, several = smaller(batch), args.world_size > 1
    fitting = sizes[:1] if several else [size for size in sizes if _fits(trainer, size)][:1]
    if not fitting:
        tried = f"Neither does any of {sizes} rows fit." if sizes else "One row at a time is least."
        return f"{place} {tried} {SMALLER}"
    size, known = fitting[0], "not tried" if several else "tried: two such parts go through"
    return (
        f"{place} The same steps in smaller parts ({known}): "
        f"training.per_device_train_batch_size={size} "
        f"training.gradient_accumulation_steps={parts * batch // size}. That is another recipe: "
        "start it with --overwrite or in a folder of its own; models that keep batch statistics "
        "then see fewer rows at a time."
    )


def _while_evaluating(trainer: Any) -> str:
    batch = trainer.args.per_device_eval_batch_size
    key = "training.per_device_eval_batch_size"
    fewer = f"Take {key}={smaller(batch)[0]}, " if batch > 1 else "Take "
    return (
        f"Out of memory in the evaluation after step {trainer.state.global_step} with {key}: "
        f"{batch}. {fewer}shorter texts or smaller images (task), or training.eval_strategy=no. "
        "That is another recipe: start it with --overwrite or in a folder of its own; the steps "
        "stay the same."
    )


def smaller(batch: int) -> list[int]:
    """Divisors of a batch's rows, each at most half of the one before, down to 1."""
    found, most = [], batch // 2
    while most >= 1:
        size = next(size for size in range(most, 0, -1) if batch % size == 0)
        found.append(size)
        most = size // 2
    return found


def _fits(trainer: Any, size: int) -> bool:
    """Whether two steps of ``size`` rows go through; the second one beside the moments.

    The training has ended by now: weights and moments are not put back.
    """
    try:
        for _ in range(2):
            clear_device_cache(garbage_collection=True)
            trainer.training_step(trainer.model_wrapped, probe_batch(trainer, rows=size))
            trainer.optimizer.step()
            trainer.model.zero_grad(set_to_none=True)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        trainer.model.zero_grad(set_to_none=True)
        return False
    return True
