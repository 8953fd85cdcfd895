"""Trains with every policy over time, with the processes it finds; two when launched, else one.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_processes_dynamic.py RESULT_FILE
"""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from launch.two_processes import replicas_differ

from hf_sft import L2SP, LISA, LPFT, AutoFreeze, AutoRGN, ChainThaw, Gradual, TransferTrainer
from hf_sft.interruption import Stopped, listening, put_off

HEAD = {"classifier.weight", "classifier.bias"}
RENAMED = hasattr(TrainingArguments, "activation_checkpointing")  # in transformers 5.24
CHECKPOINTING = "activation_checkpointing" if RENAMED else "gradient_checkpointing"
CASES = {  # name: (policy, accumulation, more arguments)
    "lp-ft": (LPFT(probe=0.25), 1, {}),
    "lp-ft-accumulated": (LPFT(probe=0.25), 2, {}),
    "gradual": (Gradual(over=0.5), 1, {}),
    "gradual-stall": (Gradual(when="stall"), 1, {}),
    "chain-thaw": (ChainThaw(), 1, {}),
    "chain-thaw-accumulated": (ChainThaw(), 2, {}),
    "lisa": (LISA(count=1, every=0.15), 1, {}),
    "auto-rgn": (AutoRGN(batches=2, every=0.25), 2, {}),
    "autofreeze": (AutoFreeze(windows=8), 1, {}),
    "gradual-checkpointed": (
        Gradual(over=0.5),
        1,
        {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
    ),
}


class Replicas(TrainerCallback):
    """Weights after every step, and the tensors that are not equal in all processes."""

    def __init__(self, processes):
        self.processes, self.weights, self.differ = processes, [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        inner = getattr(model, "module", model)
        self.weights.append(tiny.weights(inner))
        self.differ.append(replicas_differ(inner, self.processes))


def source():
    """BERT whose biases are not zero: a size of rounding errors is no denominator."""
    model, generator = tiny.bert(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class LastIsAsked(TrainerCallback):
    """The last process alone is asked to stop, within step 5."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(case, folder):
    """What each process says of the stop, and the weights at the end of the run that goes on."""
    try:
        with listening(), put_off():
            train(case, folder, 2, callbacks=[LastIsAsked()])
    except Stopped as stop:
        told = [None] * 2
        torch.distributed.all_gather_object(told, (int(stop.number), stop.saved.name))
        resumed = train(case, folder, 2, resume=str(stop.saved))
        return {"told": told, "weights": resumed["weights"][-1], "steps": len(resumed["weights"])}


def train(case, folder, processes, callbacks=(), resume=None):
    """Twelve steps of 8 rows in order; SGD with momentum and decay."""
    policy, accumulation, more = CASES[case]
    args = tiny.arguments(
        folder,
        per_device_train_batch_size=8 // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=4 // processes,
        num_train_epochs=3,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=2,
        optim="sgd",
        optim_args="momentum=0.9",
        learning_rate=0.1,
        weight_decay=0.01,
        **more,
    )
    data, watch = tiny.texts(44), Replicas(processes)
    trainer = TransferTrainer(
        source(),
        args,
        train_dataset=data[:32],
        eval_dataset=data[32:],
        penalty=L2SP(lambda_=0.05, head=0.01),
        freeze=policy,
        fresh=HEAD,
        callbacks=[watch, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return {
        "world_size": args.world_size,
        "weights": watch.weights,
        "differ": watch.differ,
        "transitions": trainer.follower.transitions,
        "signals": dict(trainer.follower.signals.values),
        "frozen_changed": trainer.starting_point.changed(trainer.model, trainer.frozen),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    with tempfile.TemporaryDirectory() as scratch:
        results = {case: train(case, scratch, processes=2) for case in CASES}
        shared = [scratch]
        torch.distributed.broadcast_object_list(shared)
        results["stopped"] = stopped("gradual", f"{shared[0]}/stopped")
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[1])
    torch.distributed.destroy_process_group()
