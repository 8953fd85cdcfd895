"""Peak memory of text-classification by the number of rows: reading, preparing, one evaluation.

    python benchmarks/text_memory.py [--rows 1000 10000 100000] [--words 40]

As many rows of train as of test, of random words, in csv; a BERT of two layers made from a config,
so that the rows are all that grows. Each number of rows is a process of its own, and its peak that
of the operating system (resident, with the pages of files that are mapped). Nothing is fetched.
"""

import argparse
import csv
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
VOCABULARY, CLASSES = 1000, 10
RECIPE = """
task: {type: text-classification}
data: {type: table, train: train.csv, test: test.csv}
model: {name: ./source}
penalty: {type: l2-sp, lambda: 0.01}
training: {output_dir: out, use_cpu: true, disable_tqdm: true, per_device_eval_batch_size: 64}
"""


def write(folder, rows, words):
    """Tables, source and recipe of one run."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    draw = random.Random(0)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(VOCABULARY))]
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for i in range(rows):
                text = " ".join(draw.choices(known[5:], k=draw.randint(words // 2, words)))
                table.writerow([text, f"class {i % CLASSES}"])
    source = folder / "source"
    BertForMaskedLM(BertConfig(vocab_size=len(known), **MODEL)).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(known), "utf-8")
    BertTokenizerFast(vocab=str(source / "vocab.txt")).save_pretrained(source)
    recipe = RECIPE.replace("./source}", "./source, fresh: [bert.pooler.dense.*]}")
    (folder / "recipe.yaml").write_text(recipe, "utf-8")


def peak():
    """Of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(rows, words):
    """Print one row of the table: this process's peaks after each part."""
    import torch
    from datasets import disable_progress_bars

    from hf_sft.recipe import Recipe
    from hf_sft.running import prepare
    from hf_sft.training_arguments import training_arguments

    torch.set_num_threads(1)
    disable_progress_bars()
    folder = Path.cwd()
    write(folder, rows, words)
    size = sum((folder / f"{split}.csv").stat().st_size for split in ("train", "test")) / 1e6
    recipe = Recipe.load(folder / "recipe.yaml")
    arguments = training_arguments(recipe)
    before, began = peak(), time.perf_counter()
    prepared = prepare(recipe, arguments)
    made = peak()
    prepared.trainer.evaluate(prepared.encoded["test"])
    taken = time.perf_counter() - began
    print(f"{rows:9,} {size:8.1f} {before:8.0f} {made:10.0f} {peak():11.0f} {taken:8.0f}")  # noqa: T201


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        return measure(asked.rows[0], asked.words)
    print("     rows   csv MB   before   prepared   evaluated  seconds   (peak MB)", flush=True)  # noqa: T201
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(Path(__file__).resolve()), "--alone"]
            command += ["--rows", str(rows), "--words", str(asked.words)]
            env = os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
            subprocess.run(command, cwd=folder, env=env, check=True)
    return None


if __name__ == "__main__":
    main()
