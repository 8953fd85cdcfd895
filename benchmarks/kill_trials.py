"""SIGKILL at random moments, the same command again: is the end always the same, bit for bit?

    python benchmarks/kill_trials.py --trials 50

A small BERT (dropout, L2-SP, a policy over time, an exponential average, evaluations, two
checkpoints kept) is trained once undisturbed and then once per trial, killed up to three times on
the way: every second trial at any moment from reading the recipe to the model's last byte, every
other while a checkpoint is being written. Processes are forked after the imports, and no report is
made: both would be most of the time.
Prints what was found at each restart; ends with 1 where a trial differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

import hf_sft.running
from hf_sft.cli import main as hf_sft_main
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint, torn_checkpoints

WORDS = ["good", "bad", "fine", "poor", "film", "book", "meal", "the", "a", "very", "not", "was"]
WRITING = 0.03  # s after a checkpoint's folder has appeared
STEPS, EVERY = 18, 2
LIMIT = 300  # s for one process: a fork of a process with threads may never wake


def make_recipe(folder: Path) -> Path:
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=256, **sizes)
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    rows = [
        f"{WORDS[i % 4]} {WORDS[4 + i % 3]} {WORDS[7 + i % 5]},{'yes' if i % 2 else 'no'}"
        for i in range(60)
    ]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    recipe = {
        "task": {"type": "text-classification", "text": ["text"]},
        "data": {"type": "table", "train": "train.csv", "test_fraction": 0.2},
        "model": {"name": "./bert"},
        "penalty": {"type": "l2-sp", "lambda": 0.1, "head": 0.01},
        "freeze": {"type": "gradual"},
        "averaging": {"type": "ema", "decay": 0.9},
        "training": {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "eval_strategy": "epoch",
            "save_strategy": "steps",
            "save_steps": EVERY,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def start(recipe: Path, output: Path) -> int:
    """Run in a forked process, its words appended to a log beside ``output``; its id."""
    if process := os.fork():
        return process
    log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = hf_sft_main(["run", str(recipe), f"training.output_dir={output}"])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def end_of(process: int) -> int:
    """Exit code of a process; it is killed after LIMIT seconds, and then it is -9."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class NoReport:
    """In place of a report: measures nothing, and marks the run as finished."""

    @classmethod
    def of(cls, recipe, *_):
        (recipe.output_dir / "report.json").write_text("{}")
        return cls()

    def table(self) -> str:
        return "done"


def kill_once(process: int, output: Path, draw: random.Random, seconds: float, writing: bool):
    """SIGKILL; whether it came before the run's own end."""
    if writing:
        until = time.monotonic() + LIMIT
        wanted, seen = draw.randint(1, STEPS // EVERY), set()
        while len(seen) < wanted and time.monotonic() < until:
            seen |= {p.name for p in output.glob("checkpoints/checkpoint-*")}
            if os.waitpid(process, os.WNOHANG)[0]:
                return False
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, WRITING))
    else:
        time.sleep(draw.uniform(0, seconds))
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def found_at_restart(output: Path) -> str:
    torn = torn_checkpoints(output / "checkpoints")
    whole = newest_whole_checkpoint(output / "checkpoints")
    if whole is None:
        return "no whole checkpoint: starts anew" + (", a torn one there" if torn else "")
    newer = [path for path in torn if int(path.name[11:]) > int(whole.name[11:])]
    return "a torn checkpoint is passed over" if newer else "goes on from the newest checkpoint"


def trial(recipe, output, draw, seconds, writing, expected, counts) -> bool:
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not kill_once(start(recipe, output), output, draw, seconds, writing):
            break
        counts[found_at_restart(output)] += 1
    if not (output / "report.json").exists():
        code = end_of(start(recipe, output))
        if code == -signal.SIGKILL:  # it hung: once more is what a user would do
            counts["hung, and killed after the limit"] += 1
            code = end_of(start(recipe, output))
        if code != 0:
            print(Path(f"{output}.log").read_text()[-2000:], file=sys.stderr)
            return False
    weights = load_file(output / "model" / "model.safetensors")
    same = weights.keys() == expected.keys()
    return same and all(torch.equal(weights[key], expected[key]) for key in weights)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--trials", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    hf_sft.running.Report, hf_sft.running.publish = NoReport, lambda *_: None
    draw, counts, equal = random.Random(given.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe, began = make_recipe(folder), time.monotonic()
        if end_of(start(recipe, folder / "whole")):
            sys.exit((folder / "whole.log").read_text())
        seconds = time.monotonic() - began
        expected = load_file(folder / "whole" / "model" / "model.safetensors")
        for number in range(given.trials):
            output = folder / f"trial-{number}"
            equal += trial(recipe, output, draw, seconds, number % 2 == 1, expected, counts)
            print(number, equal, dict(counts), file=sys.stderr, flush=True)
    kills = sum(counts.values())
    print(json.dumps({"trials": given.trials, "kills": kills, "bit_equal": equal, **counts}))
    return 0 if equal == given.trials else 1


if __name__ == "__main__":
    sys.exit(main())
