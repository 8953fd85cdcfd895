"""Do channels-last, bf16 and torch.compile win on this machine? Nothing of them is on by default.

    python benchmarks/machine_probe.py [--rounds 4] [--threads 1] [--compile]

Forward, backward and AdamW of the same batch, arms taking turns in one process; below 1 wins. What
wins is then set in a recipe by ``training: {bf16: true}`` or ``training: {torch_compile: true}``,
TrainingArguments' own keys. ``--compile``: that arm too, with the seconds that compiling took and
the steps after which they are won back; it needs a C++ compiler and takes minutes.
"""

import argparse
import statistics
import time

import torch
from measured import MODELS, keep, markdown, middle, now, quiet, ratios, source, steps, told, turns
from transformers import default_data_collator

STEPS = 6


class Arm:
    """One variant of a model's step."""

    def __init__(self, kind, name):
        model, _, rows = source(name)
        batch = default_data_collator(rows)
        self.bf16 = kind == "bf16"
        if kind == "channels-last":
            model = model.to(memory_format=torch.channels_last)
            batch = {
                key: value.contiguous(memory_format=torch.channels_last)
                if value.ndim == 4
                else value
                for key, value in batch.items()
            }
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        model.train()
        self.batch, self.model = batch, torch.compile(model) if kind == "compile" else model

    def step(self):
        """One step of training."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self):
        ends = []
        for _ in range(STEPS):
            self.step()
            ends.append(now())
        return steps(ends)


def kinds(name, compiles):
    """The variants that a model can have."""
    convolutional = ["channels-last"] if name == "lite0" else []
    return ["as it is", *convolutional, "bf16", *(["compile"] if compiles else [])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    quiet(asked.threads)
    lines, figures = [], {}
    for name in asked.models:
        arms, began = {}, {}
        for kind in kinds(name, asked.compile):
            arms[kind] = Arm(kind, name)
            start = time.perf_counter()
            arms[kind].step()
            began[kind] = time.perf_counter() - start
        found = turns(arms, asked.rounds)
        plain = statistics.median(found["as it is"]["clock"])
        for kind in arms:
            clock, cpu = (ratios(found, kind, "as it is", of) for of in ("clock", "cpu"))
            won = plain - statistics.median(found[kind]["clock"])
            extra = began[kind] - began["as it is"]
            back = (
                f"{extra:.0f} s, {extra / won:.0f} steps" if kind == "compile" and won > 0 else "–"
            )
            verdict = "–" if kind == "as it is" else "wins" if sorted(clock)[-1] < 1 else "does not"
            lines.append([MODELS[name], kind, told(clock), told(cpu), verdict, back])
            figures[f"{name}: {kind}"] = {
                "clock_ratio": middle(clock),
                "cpu_ratio": middle(cpu),
                "first_step_seconds": round(began[kind], 1),
            }
    header = ["model", "variant", "clock, as it is = 1", "CPU", "in every round", "won back after"]
    print(markdown(header, lines))
    keep("machine_probe", asked.threads, asked.rounds, figures)


if __name__ == "__main__":
    main()
