"""What the loop costs beyond the model: a bare PyTorch loop, the plain Trainer and TransferTrainer.

    python benchmarks/loop_overhead.py [--rounds 8] [--threads 1]

The same model, batch, optimizer (fused AdamW, linear decay, gradients clipped at 1) and collator in
every arm. First MiniLM, all of it training; then EfficientNet-Lite0, also as timm's train.py does
it (its optimizer factory, clipping and cosine schedule, its model without a wrapper); then MiniLM's
head alone on stored features, where nearly all of a step is the loop: a bare loop and the plain
Trainer on the head, and TransferTrainer with the whole model, LinearProbe and the feature cache.
"""

import argparse
import tempfile
from functools import partial

import torch
from measured import (
    MODELS,
    Clock,
    arguments,
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
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import dispatch_clip_grad
from transformers import Trainer, default_data_collator, get_linear_schedule_with_warmup

from hf_sft import L2SP, FeatureCache, LinearProbe, TransferTrainer

STEPS, HEAD_STEPS = 6, 120


def bare(model, rows, batch, count, hold=None):
    """The loop that a user would write; an arm. ``hold``: called after ``model.train()``."""
    trains = [p for p in model.parameters() if p.requires_grad]

    def run():
        loader = torch.utils.data.DataLoader(
            rows, batch, shuffle=True, collate_fn=default_data_collator
        )
        optimizer = torch.optim.AdamW(trains, lr=1e-5, weight_decay=0.0, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, count)
        ends = []
        model.train()
        if hold is not None:
            hold()
        while len(ends) < count:
            for inputs in loader:
                model(**inputs)["loss"].backward()
                torch.nn.utils.clip_grad_norm_(trains, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                ends.append(now())
        return steps(ends)

    return run


def trained(cls, model, rows, batch, count, folder, **settings):
    """A Trainer of a class; an arm."""
    clock = Clock()
    args = arguments(folder, count, batch)
    built = cls(model, args, train_dataset=rows, callbacks=[clock], **settings)

    def run():
        built.train()
        return steps(clock.ends)

    return run


def as_timm(model, rows, batch, count):
    """The step of timm's train.py; an arm."""

    def run():
        loader = torch.utils.data.DataLoader(
            rows, batch, shuffle=True, collate_fn=default_data_collator
        )
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-5, weight_decay=0.0, fused=True)
        schedule = CosineLRScheduler(optimizer, t_initial=count, t_in_epochs=False)
        loss_of, ends = torch.nn.CrossEntropyLoss(), []
        model.train()
        while len(ends) < count:
            for inputs in loader:
                loss_of(model(inputs["pixel_values"]), inputs["labels"]).backward()
                dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
                optimizer.step()
                optimizer.zero_grad()
                schedule.step_update(num_updates=len(ends))
                ends.append(now())
        return steps(ends)

    return run


def whole(folder, name="minilm"):
    """Arms in which all of a model trains."""
    arms = {}
    timm = ("timm's loop",) if name == "lite0" else ()
    for arm in ("bare loop", *timm, "plain Trainer", "TransferTrainer", "TransferTrainer, L2-SP"):
        model, fresh, rows = source(name)
        if arm == "bare loop":
            arms[arm] = bare(model, rows, len(rows), STEPS)
        elif arm in timm:
            arms[arm] = as_timm(model.timm_model, rows, len(rows), STEPS)
        elif arm == "plain Trainer":
            arms[arm] = trained(Trainer, model, rows, len(rows), STEPS, folder)
        else:
            penalty = L2SP(lambda_=0.01, head=0.01) if "L2-SP" in arm else None
            more = {"fresh": fresh, "penalty": penalty}
            arms[arm] = trained(TransferTrainer, model, rows, len(rows), STEPS, folder, **more)
    return arms


class Head(torch.nn.Module):
    """MiniLM's head on pooled features."""

    def __init__(self, features, labels):
        super().__init__()
        self.dropout, self.out = torch.nn.Dropout(0.1), torch.nn.Linear(features, labels)

    def forward(self, features, labels=None):
        logits = self.out(self.dropout(features))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def head_only(folder):
    """Arms in which MiniLM's head trains on stored features."""
    model, fresh, rows = source("minilm")
    rows = [{**row, "labels": i % 10} for i, row in enumerate(rows * 4)]
    size = 384
    stored = [{"features": torch.randn(size), "labels": row["labels"]} for row in rows]
    more = {"fresh": fresh, "freeze": LinearProbe(), "cache": FeatureCache(folder=folder)}
    return {
        "bare loop": bare(Head(size, 10), stored, 8, HEAD_STEPS),
        "plain Trainer": trained(Trainer, Head(size, 10), stored, 8, HEAD_STEPS, folder),
        "TransferTrainer, cache": trained(
            TransferTrainer, model, rows, 8, HEAD_STEPS, folder, **more
        ),
    }


CASES = {
    MODELS["minilm"]: whole,
    MODELS["lite0"]: partial(whole, name="lite0"),
    "MiniLM's head, 8 stored rows": head_only,
}
HEADER = ["trains", "arm", "CPU ms of a step", "CPU, bare loop = 1", "clock, bare loop = 1",
          "CPU ms beyond it"]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    quiet(asked.threads)
    figures, lines = {}, []
    for name, made in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = turns(made(folder), asked.rounds)
        base = found["bare loop"]["cpu"]
        for arm, times in found.items():
            took = [1e3 * t for t in times["cpu"]]
            beyond = [1e3 * (a - b) for a, b in zip(times["cpu"], base, strict=True)]
            clock, cpu = (ratios(found, arm, "bare loop", of) for of in ("clock", "cpu"))
            lines.append([name, arm, told(took), told(cpu, 3), told(clock, 3), told(beyond)])
            figures[f"{name}: {arm}"] = {
                "cpu_ms": middle(took),
                "cpu_ratio": middle(cpu),
                "clock_ratio": middle(clock),
                "cpu_ms_beyond": middle(beyond),
            }
    print(markdown(HEADER, lines))
    keep("loop_overhead", asked.threads, asked.rounds, figures)


if __name__ == "__main__":
    main()
