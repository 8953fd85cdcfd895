"""SmolLM2 on small talk, with and without a pull: what it learns, and what it forgets.

    python benchmarks/chat_smollm2.py --model FOLDER --texts FILE [--seeds 1] [--conversations 120]

FOLDER: SmolLM2-135M-Instruct in the Transformers format, or its Hub id. FILE: .json in the form of
SQuAD, whose paragraphs the model is asked to predict before and after. The conversations are those
of the chatterbot-corpus package, one for each opening line, so that no question of the test part
was trained on; a seed decides the parts and the order of the data, the same for all arms. Target:
perplexity of the assistant's turns. Kept: the source's function on them (KL), and the perplexity
of the paragraphs, which have nothing to do with the conversations.
"""

import argparse
import contextlib
import io
import json
import random
import tempfile
from pathlib import Path

import datasets
import torch
import transformers
import yaml
from datasets import Dataset

from hf_sft import Recipe, run
from hf_sft.resources import locator
from hf_sft.saved import load, measure

RECIPE = "recipes/text-generation/chat_smollm2_l2sp.yaml"
ARMS = {
    "l2-sp": [],
    "no penalty": ["penalty=null"],
    "no penalty, lr / 4": ["penalty=null", "training.learning_rate=2.5e-5"],
    "train-last 8": ["penalty=null", "freeze={type: train-last, count: 8}"],
}


def conversations():
    """One per opening line, in the order of the files, as rows of ``messages``."""
    folder, found = locator(Path())("package:chatterbot_corpus/data/english"), {}
    for file in sorted(folder.glob("*.yml")):
        for talk in yaml.safe_load(file.read_text("utf-8"))["conversations"]:
            turns = [str(text).strip() for text in talk]
            if len(turns) > 1 and all(turns):
                found.setdefault(turns[0].lower(), turns)
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
        for turns in found.values()
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def paragraphs(file, count):
    articles = json.loads(Path(file).read_text("utf-8"))["data"]
    texts = [p["context"] for article in articles for p in article["paragraphs"]]
    return Dataset.from_dict({"text": texts[:: max(1, len(texts) // count)][:count]})


def general(folder, texts):
    """Perplexity of plain texts, at most 128 tokens each, under the model in a run's folder."""
    recipe, model, processor = load(folder)
    task = type(recipe.task)(text="text", max_length=128)
    plain = type("Plain", (), {"task": task, "training": {"per_device_eval_batch_size": 8}})
    return measure(plain, model, processor, texts, quiet=True)["perplexity"]


def one(arguments, overrides, seed, texts):
    """Numbers of one run, which leaves nothing behind."""
    rows = conversations()
    random.Random(seed).shuffle(rows)
    rows = rows[: arguments.conversations]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder, test = Path(name), len(rows) // 5
        write(folder / "train.jsonl", rows[test:])
        write(folder / "test.jsonl", rows[:test])
        blocks = [
            f"data={{type: table, train: {folder}/train.jsonl, test: {folder}/test.jsonl}}",
            f"model.name={arguments.model}",
            f"training.output_dir={folder}/run",
            f"training.seed={seed}",
            "training.save_strategy=no",
            "training.disable_tqdm=true",
            "training.use_cpu=true",
            *SMALL,
        ]
        report = run(Recipe.load(RECIPE, [*blocks, *overrides])).data
        kept = general(folder / "run", texts)
    found = report["metrics"]["test"]
    return {
        "perplexity": found["perplexity"],
        "token_accuracy": found["token_accuracy"],
        "kl": report["retention"].get("kl"),
        "top1_agreement": report["retention"].get("top1_agreement"),
        "paragraphs": kept,
        "seconds": report["timing"]["train_seconds"],
        "steps": report["timing"]["steps"],
        "memory": report["peak_memory_bytes"] // 2**20,
    }


SMALL = [
    "task.max_length=256",
    "task.generate=0",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=1",
    "training.warmup_steps=2",
    "training.learning_rate=1e-4",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--conversations", type=int, default=120)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    texts = paragraphs(arguments.texts, 12)
    for seed in range(arguments.seeds):
        source = ["penalty=null", "training.learning_rate=0", "training.max_steps=1"]
        for arm, overrides in {"source": source, **ARMS}.items():
            if arm in ("source", *arguments.arms):
                numbers = one(arguments, overrides, seed, texts)
                shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}
                print(json.dumps({"arm": arm, "seed": seed, **shown}), flush=True)


if __name__ == "__main__":
    main()
