"""XQuAD's paragraphs with the titles of their articles, and an untrained T5 with their words.

    python benchmarks/xquad_titles.py FOLDER

A title as the shortest summary: of each of the 48 articles the last of its five paragraphs is test,
so that every title of test is one of train, and no text is in both parts. The tokenizer is made
from the training texts, the T5 is random (``xquad_translation.py``). Read from
``$HF_SFT_DATA/xquad_en_de_zh``; for recipes/summarization/xquad_t5tiny_titles.yaml.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from xquad_translation import untrained, words_of


def write_rows(given: Path, output: Path) -> list[dict[str, str]]:
    """train.jsonl and test.jsonl; the rows of train."""
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for article in json.loads(given.read_text("utf-8"))["data"]:
        title = article["title"].replace("_", " ")
        texts = [" ".join(p["context"].split()) for p in article["paragraphs"]]
        rows = [{"document": text, "summary": title} for text in texts]
        parts["train"] += rows[:-1]
        parts["test"] += rows[-1:]
    for split, rows in parts.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / f"{split}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{split}: {len(rows)} paragraphs")  # noqa: T201
    return parts["train"]


def main(output: Path) -> None:
    """Write train.jsonl, test.jsonl and untrained/."""
    output.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ.get("HF_SFT_DATA", ".")) / "xquad_en_de_zh"
    rows = write_rows(data / "xquad.en.json", output)
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts"
        texts.write_text("".join(f"{row['document']}\n{row['summary']}\n" for row in rows), "utf-8")
        tokenizer = words_of([texts])
    tokenizer.save_pretrained(output / "untrained")
    untrained(len(tokenizer)).save_pretrained(output / "untrained")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
