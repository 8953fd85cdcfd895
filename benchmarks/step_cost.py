"""What one training step costs with L2-SP, in time and in memory, beside the plain HF Trainer.

    python benchmarks/step_cost.py [--rounds 8] [--threads 1]

MiniLM at batch 8 × 64 tokens, where a step is short, and at 32 × 32, the recipes' own, and
EfficientNet-Lite0 at batch 16, 128 px; everything trains. Arms
take turns: the plain Trainer, TransferTrainer with L2-SP in its two forms, and the plain Trainer
with the same penalty added to its loss through autograd. The pull alone, timed within the steps
of the L2-SP arms, over the plain step: what the penalty costs without the noise of whole steps.
Peak memory: a fresh process per arm, what three steps took at most above what it held before; and
what of it no file backs (Linux): pages of a mapped file are let go of where memory is short.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

from measured import (
    MODELS,
    Clock,
    anonymous,
    arguments,
    held,
    keep,
    markdown,
    middle,
    now,
    quiet,
    ratios,
    source,
    steps,
    told,
    turns,
)
from transformers import Trainer, TrainerCallback

from hf_sft import L2SP, TransferTrainer
from hf_sft.reporting.measured import peak_memory

CASES = {**MODELS, "minilm-32": "MiniLM, 32 × 32 tokens"}
ARMS = ("plain", "gradient", "proximal", "autograd")
STEPS = 6


class AutogradPenalty(Trainer):
    """What a user would write: the penalty added in compute_loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            loss = loss + 0.01 * sum(
                (p - self.anchors[n]).square().sum() for n, p in model.named_parameters()
            )
        return (loss, outputs) if return_outputs else loss


def trainer(arm, name, folder, count=STEPS):
    """A trainer of one arm on its own copy of the model."""
    model, fresh, rows = source(name)
    shared = {"model": model, "args": arguments(folder, count, len(rows)), "train_dataset": rows}
    if arm == "plain":
        return Trainer(**shared)
    if arm == "autograd":
        built = AutogradPenalty(**shared)
        built.anchors = {n: p.detach().clone() for n, p in model.named_parameters()}
        return built
    penalty = L2SP(lambda_=0.01, head=0.01, apply=arm)
    return TransferTrainer(**shared, penalty=penalty, fresh=fresh)


def timed_pull(built, arm):
    """CPU seconds of every pull: what an L2-SP step does beside the plain one's work."""
    seconds, where = [], "add_gradient_" if arm == "gradient" else "_after_step"
    pull = getattr(built.pull, where)

    def timed(*args):
        start = now()[1]
        pull(*args)
        seconds.append(now()[1] - start)

    setattr(built.pull, where, timed)
    return seconds


def running(built, clock):
    """An arm."""

    def run():
        built.train()
        return steps(clock.ends)

    return run


def step_times(name, rounds):
    """Arm -> figures, and lines of the table."""
    figures, lines = {}, []
    with tempfile.TemporaryDirectory() as folder:
        arms, pulls = {}, {}
        for arm in ARMS:
            built, clock = trainer(arm, name, folder), Clock()
            built.add_callback(clock)
            if arm in ("gradient", "proximal"):
                pulls[arm] = timed_pull(built, arm)
            arms[arm] = running(built, clock)
        found = turns(arms, rounds)
    plain = statistics.median(found["plain"]["cpu"])
    for arm in ARMS:
        cpu, clock = (ratios(found, arm, "plain", of) for of in ("cpu", "clock"))
        share = statistics.median(pulls[arm]) / plain if arm in pulls else None
        figures[arm] = {
            "cpu_ms": middle([1e3 * t for t in found[arm]["cpu"]]), "cpu_ratio": middle(cpu),
            "clock_ratio": middle(clock), "pull_share": share and round(share, 4),
        }  # fmt: skip
        shown = "–" if share is None else f"{1 + share:.3f}"
        lines.append([CASES[name], arm, shown, told(cpu, 3), told(clock, 3)])
    return figures, lines


class Anonymous(TrainerCallback):
    """The most that was held without a file behind it, where the gradients are still there."""

    most = 0.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.most = max(self.most, anonymous())


def peak(arm, name):
    """Print what three steps took: run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        before, files_apart = held(), anonymous()
        built, seen = trainer(arm, name, folder, 3), Anonymous()
        built.add_callback(seen)
        trained = sum(p.numel() * 4 for p in built.model.parameters() if p.requires_grad)
        built.train()
    found = {"mib": peak_memory() / 2**20 - before, "anonymous_mib": seen.most - files_apart}
    print(json.dumps({**found, "trained_mib": trained / 2**20}))


def memory(name, threads):
    """Arm -> peak in MiB, and beyond the plain arm's in copies of what trains."""
    found = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--peak", arm, name, "--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[arm] = json.loads(output.splitlines()[-1])
    for one in found.values():
        for of in ("mib", "anonymous_mib"):
            extra = (one[of] - found["plain"][of]) / one["trained_mib"]
            one[of.replace("mib", "copies")] = round(extra, 2)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--peak", nargs=2)
    asked = parser.parse_args()
    quiet(asked.threads)
    if asked.peak:
        peak(*asked.peak)
        return
    rows, figures = [], {}
    for name in asked.models:
        took, lines = step_times(name, asked.rounds)
        mib = memory(name, asked.threads)
        for line in lines:
            of = mib[line[1]]
            beyond = f"{of['copies']:.2f}, {of['anonymous_copies']:.2f}"
            rows.append([*line, f"{of['mib']:.0f}, {of['anonymous_mib']:.0f}", beyond])
            figures[f"{name}: {line[1]}"] = {**took[line[1]], "memory": of}
    print(markdown(HEADER, rows))
    keep("step_cost", asked.threads, asked.rounds, figures)


HEADER = ["model", "arm", "1 + the pull's share of a plain step", "CPU, plain = 1",
          "clock, plain = 1", "peak MiB, without files",
          "beyond plain, copies of what trains; without files"]  # fmt: skip

if __name__ == "__main__":
    main()
