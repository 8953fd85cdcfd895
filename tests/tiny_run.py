"""Files of a tiny run: a source folder, a data set and the recipe that names them."""

import csv

import yaml
from PIL import Image
from tiny import BERT
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

WORDS = ["red", "rose", "tulip", "oak", "elm", "pine", "old", "tall", "new", "dry"]
ROWS = [(f"{word} {other}", "flower" if word in WORDS[:3] else "tree")
        for word in WORDS[:6] for other in WORDS[6:]]  # fmt: skip


def source_folder(folder):
    """A BERT of two layers with a tokenizer of words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    settings = {key: value for key, value in BERT.items() if key != "num_labels"}
    config = BertConfig(**{**settings, "vocab_size": len(vocabulary)})
    BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def text_recipe(folder, **changes):
    """A recipe file with train.csv, test.csv and source/ beside it; ``changes`` replace blocks."""
    if not (folder / "source").exists():
        source_folder(folder / "source")
    write_csv(folder / "train.csv", ROWS)
    write_csv(folder / "test.csv", ROWS[::3])
    training = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    blocks = {
        "task": {"type": "text-classification"},
        "data": {"type": "table", "train": "train.csv", "test": "test.csv"},
        "model": {"name": "./source"},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        "training": training,
    }
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path


def noise(path):
    """An image whose pixels, not its header, fill the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    return path


def picture(path, colour=(200, 30, 30), size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path
