"""A million rows of text through ``hf-sft check``, encoding and one evaluation: peak memory.

    python benchmarks/million_rows.py [--rows 1000000] [--test 50000] [--format parquet]

Texts of BANKING77 (``HF_SFT_DATA``), each with the number of its row for one of its words, so that
no two rows are equal, in one file per split; 77 classes; MiniLM's tokenizer would do the same work,
a BERT of two layers made from a config evaluates them in minutes. Every phase is a process of its
own and its peak that of the operating system: resident, with the pages of files that are mapped;
"own" is what no file backs. Nothing is fetched.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
RECIPE = """
task: {{type: text-classification, label: category}}
data: {{type: table, train: train.{ending}, test: test.{ending}}}
model: {{name: ./source, fresh: [bert.pooler.dense.*]}}
penalty: {{type: l2-sp, lambda: 0.01}}
training: {{output_dir: out, use_cpu: true, disable_tqdm: true, per_device_eval_batch_size: 64}}
"""
PHASES = ("import", "check", "encode", "evaluate")
AT_ONCE = 10_000  # rows that are written at a time


def write(folder, rows, test, ending):
    """Tables, source and recipe."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    with (Path(os.environ["HF_SFT_DATA"]) / "banking77" / "train.csv").open(
        encoding="utf-8"
    ) as file:
        known = [(row["text"].split(), row["category"]) for row in csv.DictReader(file)]
    for split, count in (("train", rows), ("test", test)):
        _write(folder / f"{split}.{ending}", known, count, split)
    words = sorted({word.lower() for text, _ in known for word in text})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    source = folder / "source"
    BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **MODEL)).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab=str(source / "vocab.txt")).save_pretrained(source)
    (folder / "recipe.yaml").write_text(RECIPE.format(ending=ending), "utf-8")


def _write(path, known, count, split):
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    schema = pa.schema({"text": pa.string(), "category": pa.string()})
    kind = parquet.ParquetWriter if path.suffix == ".parquet" else arrow_csv.CSVWriter
    with kind(str(path), schema) as file:
        for start in range(0, count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, count))
            texts = [" ".join(_changed(known[i % len(known)][0], i, split)) for i in numbers]
            labels = [known[i % len(known)][1] for i in numbers]
            file.write_table(pa.table([texts, labels], schema=schema))


def _changed(words, number, split):
    place = number % len(words)
    return [*words[:place], f"{split}{number}", *words[place + 1 :]]


def phase(name):
    """Do this one and print its row."""
    import torch
    from datasets import disable_progress_bars

    from hf_sft.recipe import Recipe
    from hf_sft.running import load_data, prepare
    from hf_sft.training_arguments import training_arguments

    torch.set_num_threads(1)
    disable_progress_bars()
    recipe = Recipe.load(Path("recipe.yaml"))
    arguments, began = training_arguments(recipe), time.perf_counter()
    if name == "check":
        from hf_sft.cli import main

        main(["check", "recipe.yaml"])
    elif name == "encode":
        prepare(recipe, arguments)
    elif name == "evaluate":
        prepared = prepare(recipe, arguments)
        prepared.trainer.evaluate(prepared.encoded["test"])
    elif name == "load":
        load_data(recipe)
    told(name, time.perf_counter() - began)


def told(name, seconds):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, own = (int(status[key].split()[0]) / 1024 for key in ("VmHWM", "RssAnon"))
    print(f"{name:9} {peak:10.0f} {own:14.0f} {seconds:8.0f}", flush=True)  # noqa: T201


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--phases", nargs="+", default=PHASES)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.phase:
        return phase(asked.phase)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), asked.rows, asked.test, asked.format)
        size = (Path(folder) / f"train.{asked.format}").stat().st_size / 2**20
        print(f"{asked.rows:,} rows to train, {asked.test:,} to test; train is {size:.0f} MiB")  # noqa: T201
        print("phase       peak MiB   own at end MiB  seconds", flush=True)  # noqa: T201
        for name in asked.phases:
            env = os.environ | {"HF_DATASETS_CACHE": f"{folder}/{name}", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__).resolve()), "--phase", name]
            subprocess.run(command, cwd=folder, env=env, check=True)
    return None


if __name__ == "__main__":
    main()
