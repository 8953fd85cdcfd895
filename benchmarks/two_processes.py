"""One process against two on the CPU: rows a second, and how far their weights end apart.

    python benchmarks/two_processes.py [--rounds 3] [--steps 12]

A BERT of four layers (hidden size 256, 3.7 million parameters, built from a config) with L2-SP,
batches of 32 sequences of 64 tokens in a fixed order, by one process or divided between two (gloo,
DDP), one thread each. Both train the same steps; a round starts each anew, in turn. Throughput is
the median over the steps, without the first three, and over the rounds.
"""

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, LENGTH, WARM = 32, 64, 3


def train(steps, folder):
    """The steps; the first process writes seconds and weights."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        TrainerCallback,
        TrainingArguments,
    )

    from hf_sft import L2SP, TransferTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 10}
    config = BertConfig(vocab_size=2000, intermediate_size=1024, **sizes, **still)
    model = BertForSequenceClassification(config)
    words = torch.randint(2000, (BATCH * steps, LENGTH))
    labels = torch.randint(10, (BATCH * steps,))
    rows = [{"input_ids": w, "labels": int(n)} for w, n in zip(words, labels, strict=True)]
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", 1)),
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        num_train_epochs=1,
        learning_rate=1e-4,
        **settings,
    )

    class Clock(TrainerCallback):
        seconds = []

        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.start)

    trainer = TransferTrainer(
        model, args, train_dataset=rows, penalty=L2SP(lambda_=0.1), fresh=(), callbacks=[Clock()]
    )
    trainer.train()
    if args.process_index == 0:
        found = {"seconds": Clock.seconds[WARM:], "weights": model.state_dict()}
        torch.save(found | {"processes": args.world_size}, folder / "found.pt")
    if args.world_size > 1:
        torch.distributed.destroy_process_group()


def launched(processes, steps, folder):
    """What so many processes found."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_port", port]
    command += [str(Path(__file__).resolve()), "--steps", str(steps), "--alone", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    found = torch.load(folder / "found.pt")
    assert found["processes"] == processes
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        return train(asked.steps, asked.alone)
    ratios, rates = [], {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            pair = {n: launched(n, asked.steps, Path(folder)) for n in (1, 2)}
            rate = {n: BATCH / statistics.median(found["seconds"]) for n, found in pair.items()}
            ratios.append(rate[2] / rate[1])
            for n in rate:
                rates[n].append(rate[n])
            first, second = (pair[n]["weights"] for n in (1, 2))
            apart = max(float((first[name] - second[name]).abs().max()) for name in first)
            print(
                f"1: {rate[1]:.1f} rows/s, 2: {rate[2]:.1f}, weights apart {apart:.1e}", flush=True
            )  # noqa: T201
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    told = f"median: {one:.1f} and {two:.1f} rows/s, ratio {statistics.median(ratios):.2f}"
    print(f"{told} ({platform.machine()}, {os.cpu_count()} cores)")  # noqa: T201
    return None


if __name__ == "__main__":
    main()
