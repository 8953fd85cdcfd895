"""How near training the last k blocks comes to the least it can cost, in time and in memory.

    python benchmarks/frozen_limit.py [--rounds 4] [--threads 1]

MiniLM and EfficientNet-Lite0, k = 1, 2, half of the blocks, all of them and the stem. The limit of
time is measured: a bare PyTorch loop, in which what is frozen runs without a graph
(``requires_grad=False``, eval mode), with fused AdamW over what trains: forward of everything,
backward above the cut only. Beside it the FLOP of a TransferTrainer's forward and backward, over
those of training everything (torch's FlopCounterMode). Memory: gradients and the optimizer's
moments, in copies of what trains (1 and 2 is the least), and the peak of a fresh process above what
it held before its first step, the median of three processes per arm.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

import torch
from loop_overhead import bare
from measured import (
    MODELS,
    Clock,
    arguments,
    held,
    keep,
    markdown,
    middle,
    quiet,
    ratios,
    source,
    steps,
    told,
    turns,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import default_data_collator

from hf_sft import LayerGroups, Signals, TrainAll, TrainLast, TransferTrainer
from hf_sft.reporting.measured import peak_memory

STEPS, PROCESSES = 6, 3


def policies(groups):
    """k -> policy; the last one trains everything."""
    blocks = sum(group.role == "block" for group in groups)
    found = {f"last {k} of {blocks}": TrainLast(count=k) for k in (1, 2, blocks // 2)}
    return {**found, "everything": TrainAll()}


def limit(name, policy, count=STEPS):
    """(arm, model, rows) of the bare loop."""
    model, fresh, rows = source(name)
    groups = LayerGroups.of(model, fresh=fresh)
    plan = policy.plan(groups, 0.0, Signals())
    plan.apply_(model, groups)
    return bare(model, rows, len(rows), count, lambda: plan.apply_(model, groups)), model, rows


def ours(name, policy, folder, count=STEPS):
    """(arm, trainer) of TransferTrainer."""
    model, fresh, rows = source(name)
    clock = Clock()
    built = TransferTrainer(
        model, arguments(folder, count, len(rows)), train_dataset=rows, freeze=policy, fresh=fresh,
        callbacks=[clock],
    )  # fmt: skip

    def run():
        built.train()
        return steps(clock.ends)

    return run, built


def flops(model, rows, prepare):
    """Of forward and backward, as the counter sees them."""
    batch = default_data_collator(rows)
    model.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter:
        model.train()
        prepare()
        model(**batch).loss.backward()
    return counter.get_total_flops()


def copies(trainer):
    """(gradients, optimizer state) that a training has left, in copies of what trains."""
    parameters = list(trainer.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    state = sum(
        value.numel()
        for entry in optimizer.state.values()
        for value in entry.values()
        if torch.is_tensor(value) and value.ndim
    )
    batch = default_data_collator(trainer.train_dataset)
    trainer.model(**batch).loss.backward()
    grads = sum(p.grad.numel() for p in parameters if p.grad is not None)
    trainer.model.zero_grad(set_to_none=True)
    return grads / trained, state / trained


def peak(arm, name, which):
    """Print the MiB that three steps took at most: run in a fresh process."""
    model, fresh, _ = source(name)
    policy = policies(LayerGroups.of(model, fresh=fresh))[which]
    del model
    with tempfile.TemporaryDirectory() as folder:
        if arm == "ours":
            run, built = ours(name, policy, folder, 3)
            model = built.model
        else:
            run, model, _ = limit(name, policy, 3)
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        before = held()
        run()
    print(json.dumps({"mib": peak_memory() / 2**20 - before, "trained": trained / 2**20}))


def peaks(arm, name, which, threads):
    """The median peak of `PROCESSES` fresh processes, in MiB; the allocator makes them differ."""
    command = [sys.executable, __file__, "--peak", arm, name, which, "--threads", str(threads)]
    found = []
    for _ in range(PROCESSES):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1])["mib"])
    return statistics.median(found)


def measured(name, rounds, threads):
    """policy -> its figures."""
    figures = {}
    model, fresh, _ = source(name)
    for which, policy in policies(LayerGroups.of(model, fresh=fresh)).items():
        with tempfile.TemporaryDirectory() as folder:
            least, _, rows = limit(name, policy)
            run, built = ours(name, policy, folder)
            found = turns({"limit": least, "ours": run}, rounds)
            counted = flops(built.model, rows, built.follower.hold)
            gradients, moments = copies(built)
        mib = {arm: peaks(arm, name, which, threads) for arm in ("limit", "ours")}
        figures[which] = {
            "found": found, "flops": counted, "gradients": gradients,
            "moments": moments, "mib": mib,
        }  # fmt: skip
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--peak", nargs=3)
    asked = parser.parse_args()
    quiet(asked.threads)
    if asked.peak:
        peak(*asked.peak)
        return
    lines, kept = [], {}
    for name in asked.models:
        figures = measured(name, asked.rounds, asked.threads)
        whole = figures["everything"]
        for which, f in figures.items():
            cpu, clock = (ratios(f["found"], "ours", "limit", of) for of in ("cpu", "clock"))
            took = [a / b for a, b in zip(
                f["found"]["ours"]["cpu"], whole["found"]["ours"]["cpu"], strict=True
            )]  # fmt: skip
            share, memory = f["flops"] / whole["flops"], f["mib"]
            lines.append([
                MODELS[name], which, told(cpu), told(clock), told(took), f"{share:.2f}",
                f"{f['gradients']:.2f}, {f['moments']:.2f}",
                f"{memory['ours']:.0f}, {memory['limit']:.0f}",
            ])  # fmt: skip
            kept[f"{name}: {which}"] = {
                "cpu_ratio_to_limit": middle(cpu), "clock_ratio_to_limit": middle(clock),
                "cpu_ratio_to_everything": middle(took), "flops_to_everything": round(share, 4),
                "gradient_copies": f["gradients"], "moment_copies": f["moments"],
                "peak_mib": memory,
            }  # fmt: skip
    print(markdown(HEADER, lines))
    keep("frozen_limit", asked.threads, asked.rounds, kept)


HEADER = ["model", "trains", "CPU, limit = 1", "clock, limit = 1", "CPU, everything = 1",
          "FLOP, everything = 1", "gradients, moments (copies of what trains)",
          "peak MiB: ours, limit"]  # fmt: skip

if __name__ == "__main__":
    main()
