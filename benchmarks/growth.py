"""How time and memory grow with examples, classes, length and model: a chart of one run.

    python benchmarks/growth.py [--only examples classes length model] [--chart]

A BERT from a config (hidden size 64, two layers, 2,000 words), 500 sequences of 32 tokens in a
mapped file, 10 classes; one of these grows at a time, the others stay. Five parts: a training step
with L2-SP (batch 16), an evaluation of all rows, building a feature cache below the last block,
Fisher information on 30 examples, and θ⁰ with the trainer. Every point is a process of its own with
one thread. Time is CPU seconds; memory is what the peak (resident, mapped files in it) rises by in
a part, from where it began (Linux lets a process set its peak back). Writes
benchmarks/results/growth.json, and from it docs/growth.svg (``--chart``: only that).
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

HERE = Path(__file__).resolve().parent
FILE, CHART = HERE / "results" / "growth.json", HERE.parent / "docs" / "growth.svg"
BASE = {"examples": 500, "classes": 10, "length": 32, "model": 64}
AXES = {"examples": (500, 5_000, 50_000), "classes": (10, 100, 1000), "length": (32, 128, 512),
        "model": (64, 128, 256, 512)}  # fmt: skip
PARTS = ("build", "step", "evaluate", "cache", "fisher")
NAMES = {"build": "trainer, θ⁰", "step": "training step", "evaluate": "evaluation",
         "cache": "cache building", "fisher": "Fisher, 30 examples"}  # fmt: skip
BATCH, WORDS, FISHER, STEPS = 16, 2000, 30, 12


def table(point, folder):
    """The rows, in a file that is mapped."""
    import numpy as np
    from datasets import Dataset, load_from_disk

    def parts():
        draw = np.random.default_rng(0)
        for _ in range(point["examples"]):
            ids = draw.integers(5, WORDS, point["length"]).tolist()
            yield {"input_ids": ids, "labels": int(draw.integers(point["classes"]))}

    Dataset.from_generator(parts, cache_dir=str(folder / "made")).save_to_disk(folder / "rows")
    return load_from_disk(folder / "rows")


def trainer_of(point, rows, folder):
    """A trainer whose last block and head train."""
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

    from hf_sft import L2SP, TrainLast, TransferTrainer
    from hf_sft.caching.feature_cache import FeatureCache

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=point["model"],
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * point["model"],
        max_position_embeddings=512,
        num_labels=point["classes"],
    )
    args = TrainingArguments(
        str(folder / "out"),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=5,  # stopped after STEPS; a cache is for rows that come again
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    extra = {"penalty": L2SP(), "freeze": TrainLast(count=1), "fresh": ()}
    cache = FeatureCache(folder=str(folder / "cache"))
    model = BertForSequenceClassification(config)
    return TransferTrainer(model, args, train_dataset=rows, cache=cache, **extra)


def measured(point, folder):
    """Part -> CPU seconds and bytes."""
    import torch
    from datasets import disable_progress_bars
    from transformers import TrainerCallback

    from hf_sft.training.loss_scale import undisturbed
    from hf_sft.training.prior_data import PriorData

    torch.set_num_threads(1)
    disable_progress_bars()
    rows, found, made = table(point, folder), {}, {}

    def part(name, work):
        Path("/proc/self/clear_refs").write_text("5")
        began, start = memory()["VmHWM"], time.process_time()
        result = work()
        found[name] = {"seconds": time.process_time() - start, "bytes": memory()["VmHWM"] - began}
        return result

    class Clock(TrainerCallback):
        seconds = []

        def on_step_begin(self, *_, **__):
            self.start = time.process_time()

        def on_step_end(self, args, state, control, **__):
            self.seconds.append(time.process_time() - self.start)
            control.should_training_stop = len(self.seconds) == STEPS

    def cache():
        prefix = made["trainer"].planned_cache()
        with undisturbed(made["trainer"].model):
            prefix.build()
        prefix.end()

    def train():
        made["trainer"].cache = None
        made["trainer"].train()

    made["trainer"] = part("build", lambda: trainer_of(point, rows, folder))
    made["trainer"].add_callback(Clock())
    part("fisher", lambda: PriorData(made["trainer"]).fisher("sampled", FISHER, 0))
    made["trainer"].evaluate(rows.select(range(BATCH)))  # warms up
    part("evaluate", lambda: made["trainer"].evaluate(rows))
    part("cache", cache)
    part("step", train)
    found["step"]["seconds"] = statistics.median(Clock.seconds[2:])
    return found


def memory():
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {key: 1024 * int(value.split()[0]) for key, value in pairs}


def point_alone(axis, value):
    """A point, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--point", json.dumps({**BASE, axis: value})]
        env = os.environ | {"HF_HOME": folder, "OMP_NUM_THREADS": "1", "GROWTH_FOLDER": folder}
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for name in PARTS:
        seconds, size = found[name]["seconds"], found[name]["bytes"] / 2**20
        print(f"{axis:9}{value:7}  {NAMES[name]:20}{seconds:9.3f} s{size:9.1f} MiB", flush=True)  # noqa: T201
    return found


def chart(results):
    """docs/growth.svg: one column per axis, time above and memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
             "svg.hashsalt": "hf_sft", "svg.fonttype": "path"}  # fmt: skip
    titles = {"examples": "examples", "classes": "classes", "length": "tokens of a sequence",
              "model": "hidden size"}  # fmt: skip
    colours = dict(zip(PARTS, ("#999999", "#d55e00", "#0072b2", "#009e73", "#e69f00"), strict=True))
    axes = [axis for axis in AXES if axis in results]
    with plt.rc_context(style):
        figure, grid = plt.subplots(
            2, len(axes), figsize=(2.4 * len(axes) + 1, 5), sharex="col", sharey="row",
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for column, axis in zip(grid.T, axes, strict=True):
            values = [int(value) for value in results[axis]]
            for name in PARTS:
                points = [results[axis][str(value)][name] for value in values]
                mib = [point["bytes"] / 2**20 for point in points]
                seconds = [max(1e-3, point["seconds"]) for point in points]
                for place, numbers in zip(column, (seconds, mib), strict=True):
                    place.plot(values, numbers, "o-", ms=3, color=colours[name], label=NAMES[name])
            for place in column:
                place.set(xscale="log", yscale="log")
                place.set_xticks(values, [f"{value:,}" for value in values])
                place.minorticks_off()
            column[1].set_xlabel(titles[axis])
        grid[0, 0].set_ylabel("CPU seconds")
        grid[1, 0].set_ylabel("MiB on top, at the peak")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="outside upper center", frameon=False)
        figure.savefig(CHART, metadata={"Date": None})
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--chart", action="store_true", help="draw what is there, measure nothing")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        folder = Path(os.environ["GROWTH_FOLDER"])
        print(json.dumps(measured(json.loads(asked.point), folder)))  # noqa: T201
        return
    for axis in [] if asked.chart else asked.only:
        points = {str(value): point_alone(axis, value) for value in AXES[axis]}
        known = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"axes": {}}
        known["axes"][axis] = points
        known["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one thread"
        FILE.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    chart(json.loads(FILE.read_text("utf-8"))["axes"])


if __name__ == "__main__":
    main()
