"""What a training step and its memory cost with every penalty, beside the plain HF Trainer.

    python benchmarks/penalty_cost.py [--rounds 4] [--threads 1] [ARM ...]

MiniLM at batch 8 × 64 tokens, everything trains, the rows of a batch recur in every step, so that
priors on the function look the source's outputs up. Arms take turns, round by round; a figure is
the median ratio to the plain Trainer with its quartiles. Peak memory: a fresh process for each arm.
"""

import argparse
import json
import subprocess
import sys
import tempfile

from measured import Clock, keep, middle, quiet, ratios, source, steps, told, turns
from transformers import Trainer, TrainingArguments

import hf_sft
from hf_sft import TransferTrainer
from hf_sft.reporting.measured import peak_memory

STEPS = 5
ARMS = {
    "plain": None,
    "l2-sp": ("L2SP", {}),
    "l2-sp proximal": ("L2SP", {"apply": "proximal"}),
    "l1-sp": ("L1SP", {}),
    "group-lasso-sp": ("GroupLassoSP", {}),
    "fisher-sp": ("FisherSP", {"samples": 8}),
    "recadam": ("RecAdam", {}),
    "mixout": ("Mixout", {}),
    "spd": ("SPD", {}),
    "ball": ("Ball", {}),
    "similarity": ("Similarity", {}),
    "delta": ("DELTA", {}),
    "r3f": ("R3F", {}),
}


def trainer(arm, folder):
    """A trainer of one arm on its own copy of the model."""
    model, fresh, rows = source("minilm")
    args = TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=len(rows),
        learning_rate=1e-5, save_strategy="no", logging_steps=500, report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    if ARMS[arm] is None:
        return Trainer(model, args, train_dataset=rows)
    name, settings = ARMS[arm]
    penalty = getattr(hf_sft, name)(**settings)
    return TransferTrainer(model, args, train_dataset=rows, penalty=penalty, fresh=fresh)


def running(arm, folder):
    """One arm's rounds."""
    built, clock = trainer(arm, folder), Clock()
    built.add_callback(clock)

    def run():
        built.train()
        return steps(clock.ends)

    return run


def peak(arm):
    """MiB of this process after three steps: run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        built = trainer(arm, folder)
        trained = sum(p.numel() * 4 for p in built.model.parameters() if p.requires_grad)
        built.args.max_steps = 3
        built.train()
    print(json.dumps({"peak": peak_memory() / 2**20, "trained": trained / 2**20}))


def peaks(arms, threads):
    """Extra peak memory per arm, in copies of the trained weights."""
    found = {}
    for arm in arms:
        command = [sys.executable, __file__, "--peak", arm, "--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[arm] = json.loads(output.splitlines()[-1])
    plain = found["plain"]["peak"]
    return {arm: (f["peak"] - plain) / f["trained"] for arm, f in found.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak")
    arguments = parser.parse_args()
    quiet(arguments.threads)
    if arguments.peak:
        peak(arguments.peak)
        return
    arms = list(dict.fromkeys(["plain", *arguments.arms]))
    with tempfile.TemporaryDirectory() as folder:
        found = turns({arm: running(arm, folder) for arm in arms}, arguments.rounds)
    extra, figures = peaks(arms, arguments.threads), {}
    print("| arm | CPU of a step, ratio to plain (quartiles) | extra peak memory, copies |")
    print("|---|---|---|")
    for arm in arms:
        cpu, clock = (ratios(found, arm, "plain", of) for of in ("cpu", "clock"))
        print(f"| {arm} | {told(cpu)} | {extra[arm]:.1f} |")
        figures[arm] = {"cpu_ratio": middle(cpu), "clock_ratio": middle(clock)}
        figures[arm]["extra_copies"] = round(extra[arm], 2)
    keep("penalty_cost", arguments.threads, arguments.rounds, figures)


if __name__ == "__main__":
    main()
