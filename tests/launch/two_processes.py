"""Trains every case with the processes it finds; launched with two of them, imported for one.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_processes.py RESULT_FILE
"""

import gc
import sys
import tempfile
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from accelerate import Accelerator
from transformers import TrainerCallback

from hf_sft import (
    DELTA,
    L2SP,
    R3F,
    SPD,
    Ball,
    FisherSP,
    GroupLassoSP,
    LwF,
    Mixout,
    RecAdam,
    Similarity,
    TrainLast,
    TransferTrainer,
)

GLOBAL_BATCH = 8
LAST = TrainLast(count=1)
CASES = {  # name: (model and data, policy, accumulation)
    "ignores-items": ("bert", None, 1),
    "ignores-items-accumulated": ("bert", None, 2),
    "token-mean": ("bert-tokens", None, 1),
    "token-mean-accumulated": ("bert-tokens", None, 2),
    "honours-items": ("gpt2", None, 1),
    "honours-items-accumulated": ("gpt2", None, 2),
    "takes-no-items": ("convnext", None, 2),
    "frozen": ("bert", LAST, 2),
    "frozen-statistics": ("resnet", TrainLast(count=1, norm_statistics="frozen"), 1),
    "lwf": ("gpt2", None, 1),
    "lwf-accumulated": ("bert-tokens", None, 2),
    "lwf-source-head": ("bert", None, 2),
    "delta": ("bert-tokens", None, 2),
    "step-rules": ("bert", None, 2),
    "fisher": ("bert", None, 2),
    "group-lasso": ("bert", None, 2),
    "recadam": ("bert", None, 2),
    "drawing": ("bert", None, 2),
    "alike-lengths": ("bert-tokens", None, 2),
    "alike-lengths-resumed": ("bert-tokens", None, 2),
}
RESUMED = {"alike-lengths-resumed": 4}  # of two processes: stopped inside the second epoch

PENALTIES = {  # of the other cases: L2SP
    "lwf": LwF(weight=3.0),
    "lwf-accumulated": LwF(weight=3.0),
    "lwf-source-head": LwF(weight=3.0),
    "delta": DELTA(weight=0.1),
    "step-rules": [SPD(), Ball(radius=0.02)],
    "fisher": FisherSP(lambda_=0.5, samples=6, estimator="sampled", apply="proximal"),
    "group-lasso": GroupLassoSP(),
    "recadam": RecAdam(alpha=5.0),
    "drawing": [R3F(eps=0.3), Mixout(p=0.5), Similarity(weight=1.0)],
}
DRAWING = {"drawing"}  # draws or pairs examples in every process: another step for other layouts


def source_of(case):
    """The trainer's ``source`` and ``fresh``: a source with a head of its own, where it has one."""
    if case != "lwf-source-head":
        return {"fresh": ()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        source = tiny.bert()
        torch.nn.init.normal_(source.classifier.weight)
    return {"source": source, "fresh": {"classifier.weight", "classifier.bias"}}


def train(case, folder, processes):
    """Six steps of 8 rows in order; the rows of one step are the same for any layout."""
    kind, policy, accumulation = CASES[case]
    build, rows = tiny.KINDS[kind]
    args = tiny.arguments(
        folder,
        per_device_train_batch_size=GLOBAL_BATCH // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        # Trainer averages the means of each process's batches, or of the joint batch (GPT-2).
        per_device_eval_batch_size=2 if kind == "bert-tokens" else 4 // processes,
        train_sampling_strategy="group_by_length" if "alike" in case else "sequential",
        eval_strategy="epoch",
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.5,
    )
    data = rows(32)
    settings = {"train_dataset": data[:24], "eval_dataset": data[24:], **source_of(case)}
    settings |= {"penalty": PENALTIES.get(case, L2SP(lambda_=0.1)), "freeze": policy}
    trainer = TransferTrainer(build(), args, **settings)
    assert args.world_size == processes
    untrained = trainer.evaluate()["eval_loss"]
    stopping = RESUMED.get(case) if processes > 1 else None
    if stopping:
        stopped = TransferTrainer(build(), args, callbacks=[StopAt(stopping)], **settings)
        stopped.train()
        assert stopped.state.global_step == stopping
    trainer.train(resume_from_checkpoint=bool(stopping))
    log = trainer.state.log_history
    return {
        "world_size": args.world_size,
        "weights": tiny.weights(trainer.model),
        "log": {k: [e[k] for e in log if k in e] for k in ("loss", "penalty", "grad_norm")},
        "eval_loss": [untrained, *(e["eval_loss"] for e in log if "eval_loss" in e)],
        "frozen_changed": trainer.starting_point.changed(trainer.model, trainer.frozen),
        "replicas_differ": replicas_differ(trainer.model, processes),
    }


class StopAt(TrainerCallback):
    """Save and stop after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def same_folder(own):
    """The first process's folder, where all keep their checkpoints."""
    found = [own]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def replicas_differ(model, processes):
    """Names of the tensors that are not bit-equal in all processes."""
    if processes == 1:
        return []
    differ = []
    for name, tensor in model.state_dict().items():
        copies = [torch.empty_like(tensor) for _ in range(processes)]
        torch.distributed.all_gather(copies, tensor.contiguous())
        if not all(torch.equal(copy, copies[0]) for copy in copies):
            differ.append(name)
    return differ


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    with tempfile.TemporaryDirectory() as scratch:
        Accelerator(cpu=True)  # joins the processes
        folder = Path(same_folder(scratch))
        results = {case: train(case, folder / case, processes=2) for case in CASES}
        torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[1])
    torch.distributed.destroy_process_group()
