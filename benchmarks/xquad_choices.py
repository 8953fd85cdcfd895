"""XQuAD's questions as multiple choice: which of four phrases of the paragraph is the answer.

    python benchmarks/xquad_choices.py FOLDER

Three other answers to questions about the same paragraph are the wrong endings, in an order drawn
by the question's id; questions with fewer are left out. Every fourth of the 48 articles is test: no
text is in both parts. Read from ``$HF_SFT_DATA/xquad_en_de_zh``; for
recipes/multiple-choice/xquad_minilm_lpft.yaml.
"""

import csv
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ENDINGS = 4
HEADER = ["context", "question", *(f"ending{i}" for i in range(ENDINGS)), "label"]


def choices(paragraph: dict) -> Iterator[list]:
    """A row of the table for each question that has enough wrong answers."""
    answers = list(dict.fromkeys(qa["answers"][0]["text"] for qa in paragraph["qas"]))
    for qa in paragraph["qas"]:
        right = qa["answers"][0]["text"]
        wrong = [text for text in answers if text != right]
        if len(wrong) < ENDINGS - 1:
            continue
        draw = random.Random(qa["id"])
        endings = [right, *draw.sample(wrong, ENDINGS - 1)]
        draw.shuffle(endings)
        context, question = (
            " ".join(text.split()) for text in (paragraph["context"], qa["question"])
        )
        yield [context, question, *endings, endings.index(right)]


def main(output: Path) -> None:
    """Write train.csv and test.csv."""
    given = Path(os.environ.get("HF_SFT_DATA", ".")) / "xquad_en_de_zh" / "xquad.en.json"
    parts: dict[str, list[list]] = {"train": [], "test": []}
    for number, article in enumerate(json.loads(given.read_text("utf-8"))["data"]):
        rows = parts["test" if number % 4 == 3 else "train"]
        rows += [row for paragraph in article["paragraphs"] for row in choices(paragraph)]
    output.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        with (output / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        print(f"{split}: {len(rows)} questions")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
