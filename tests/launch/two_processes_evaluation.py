"""Measures tasks that count on the data's order, with the processes it finds.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_processes_evaluation.py RESULT
"""

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_writing
from tiny_run import ROWS, WORDS, source_folder, text_recipe, write_csv

from hf_sft.errors import DataError
from hf_sft.recipe import Recipe
from hf_sft.running import prepare
from hf_sft.training_arguments import training_arguments

SIZE = 4  # rows of all processes at a time; no multiple of it is the number of rows or windows
LONG = [
    (" ".join([text, *WORDS[: 1 + 3 * (i % 4)]]), label) for i, (text, label) in enumerate(ROWS)
]
WINDOWS = {"max_length": 6, "long_texts": "windows", "stride": 1}


def texts(folder, rows, **task):
    """Classification of texts that take one to four windows; 7 rows of test."""
    path = text_recipe(folder, task=task)
    write_csv(folder / "train.csv", rows)
    write_csv(folder / "test.csv", rows[: 3 * 7 : 3])
    return path


def questions(folder):
    """Contexts of one to four windows in two languages, some without an answer."""
    source_folder(folder / "source")
    for split, count in (("train", 4), ("test", 11)):
        rows = []
        for n in range(count):
            words = [WORDS[(3 * n + i) % len(WORDS)] for i in range(2 + 3 * (n % 4))]
            answer = {"text": [words[-1]], "answer_start": [len(" ".join(words[:-1])) + 1]}
            none = {"text": [], "answer_start": []}
            rows.append({"id": f"q{n}", "context": " ".join(words), "question": WORDS[n % 5],
                         "language": ("en", "de")[n % 2],
                         "answers": none if n % 5 == 4 else answer})  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(rows), "utf-8")
    task = {"type": "question-answering", "max_length": 8, "stride": 1, "no_answer": True}
    path = text_recipe(folder, task=task)
    raw = yaml.safe_load(path.read_text("utf-8"))
    raw["data"] = {"type": "squad", "train": "train.json", "test": "test.json"}
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return path


def lines(folder):
    """Translation, whose texts are generated."""
    return tiny_writing.recipe(folder)


CASES = {
    "question-answering": questions,
    "windows": lambda folder: texts(folder, LONG, **WINDOWS),
    "windows-regression": lambda folder: texts(
        folder, [(t, float(len(t))) for t, _ in LONG], problem="regression", **WINDOWS
    ),
    "windows-multi-label": lambda folder: texts(
        folder, [(t, f"{y};long" if len(t) > 30 else y) for t, y in LONG],
        problem="multi-label", label_separator=";", **WINDOWS,
    ),
    "translation": lines,
}  # fmt: skip


def written(case, folder):
    """The recipe of a case, with its files; before any process group, under which one writes."""
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same source wherever it is drawn
        return CASES[case](folder)


def measure(case, path, processes):
    """Metrics and tables of the untrained model, and whether another order is noticed."""
    recipe = Recipe.load(path, [f"training.per_device_eval_batch_size={SIZE // processes}"])
    args = training_arguments(recipe)
    assert args.world_size == processes
    prepared = prepare(recipe, args)
    trainer, rows = prepared.trainer, prepared.data["test"]

    def evaluated(encoded):
        metrics = recipe.task.metrics(prepared.names, prepared.loaded.processor, rows)
        trainer.compute_metrics = metrics
        found = trainer.evaluate(encoded)
        # loss: Trainer's mean of batches' means
        keep = {k for k in found if not k.endswith(("loss", "runtime", "second", "time"))}
        return {k: found[k] for k in keep}, metrics.tables

    encoded = prepared.encoded["test"]
    found, tables = evaluated(encoded)
    turned = encoded.select(range(len(encoded))[::-1])
    try:
        evaluated(turned)
        noticed = False
    except DataError:
        noticed = True
    return {"world_size": args.world_size, "metrics": found, "tables": tables, "noticed": noticed,
            "rows": len(rows), "encoded": len(encoded)}  # fmt: skip


if __name__ == "__main__":
    disable_progress_bars()
    disable_progress_bar()
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    with tempfile.TemporaryDirectory() as scratch:
        paths = {case: written(case, Path(scratch) / case) for case in CASES}
        results = {case: measure(case, path, processes=2) for case, path in paths.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[1])
    torch.distributed.destroy_process_group()
