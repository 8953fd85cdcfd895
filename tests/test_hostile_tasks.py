"""Every task's report page and card show the labels, texts and file names of data as text."""

import json
from html.parser import HTMLParser

import pytest
import tiny_detection
import tiny_image_run
import tiny_language
import tiny_masks
import tiny_run
import tiny_writing
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt

from hf_sft.cli import main

BAD = '"><script>alert(1)</script><img src=x onerror=alert(1)><b>|`x`|'
NAME = '"><script>alert(1)<img src=x onerror=alert(1)><b>|`x`|'  # of a file or folder: no /
ALLOWED = {"img": "data:image/"}  # pictures within the page


class Tags(HTMLParser):
    """What a browser would act upon, and what it would show."""

    def __init__(self, text):
        super().__init__()
        self.active, self.shown = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        inline = tag in ALLOWED and (values.get("src") or "").startswith(ALLOWED[tag])
        if tag in ("script", "iframe", "object", "b", "img", "form") and not inline:
            self.active.append(tag)
        self.active += [name for name in values if name.startswith("on")]

    def handle_data(self, data):
        self.shown.append(data)


def rewritten(recipe, **blocks):
    raw = yaml.safe_load(recipe.read_text("utf-8"))
    raw = {**raw, **{key: {**raw.get(key, {}), **value} for key, value in blocks.items()}}
    recipe.write_text(yaml.safe_dump(raw), "utf-8")
    return recipe


def tokens(folder):
    kind = BAD.replace(" ", "/")  # columns end at spaces
    lines = [f"{word} O\n{other} B-{kind}\n\n" for word in ["red", "old", "tall"] for other in
             ("rose", "oak", "elm")]  # fmt: skip
    (folder / "train.conll").write_text("".join(lines), "utf-8")
    data = {"type": "conll", "train": "train.conll", "test": "train.conll"}
    return tiny_run.text_recipe(folder, task={"type": "token-classification"}, data=data)


def answers(folder):
    rows = [{"id": f"{n}{BAD}", "question": f"which {BAD}", "context": f"red {BAD} rose",
             "answers": {"text": [BAD], "answer_start": [4]}} for n in range(8)]  # fmt: skip
    squad = {"version": "1", "data": [{"title": BAD, "paragraphs": [
        {"context": row["context"], "qas": [
            {"id": row["id"], "question": row["question"],
             "answers": [{"text": BAD, "answer_start": 4}]}]} for row in rows]}]}  # fmt: skip
    (folder / "train.json").write_text(json.dumps(squad), "utf-8")
    task = {"type": "question-answering", "max_length": 128}
    data = {"type": "squad", "train": ["train.json"], "test": ["train.json"]}
    return tiny_run.text_recipe(folder, task=task, data=data)


def writing(folder):
    recipe = tiny_writing.recipe(folder)
    for split in ("train", "test"):
        for side in ("en", "de"):
            tiny_writing.write_lines(folder / f"{split}.{side}", [f"{n} {BAD}" for n in range(8)])
    return recipe


def chat(folder):
    recipe = tiny_language.recipe(folder, task={"generate": 4, "max_new_tokens": 4})
    rows = [{"prompt": f"{n} {BAD}", "completion": BAD} for n in range(8)]
    for split in ("train", "test"):
        tiny_language.write_jsonl(folder / f"{split}.jsonl", rows)
    return recipe


def boxes(folder):
    recipe = tiny_detection.recipe(folder)
    for split in ("train", "test"):
        raw = json.loads((folder / f"{split}.json").read_text("utf-8"))
        raw["categories"][0]["name"] = BAD
        for image in raw["images"]:
            given = folder / "images" / image["file_name"]
            image["file_name"] = f"{NAME}{given.name}"
            given.rename(given.with_name(image["file_name"]))
        (folder / f"{split}.json").write_text(json.dumps(raw), "utf-8")
    return recipe


def masks(folder):
    tiny_masks.mask_folder(folder / "data")
    (folder / "data" / "classes.txt").write_text(f"ground\n{BAD}\nlight", "utf-8")
    for image in [*(folder / "data").glob("*/*/*.png")]:
        image.rename(image.with_name(f"{NAME}{image.name}"))
    tiny_masks.segformer_source(folder / "source")
    data = {"type": "mask-folder", "path": "data"}
    return tiny_masks.recipe(folder, {}, data, {"name": "./source"})


def pictures(folder):
    recipe = tiny_image_run.image_recipe(folder)
    for split in ("train", "test"):
        dark = folder / "images" / split / "dark"
        for number, image in enumerate(sorted(dark.iterdir())):
            image.rename(dark / f"{NAME}{number}.png")
        dark.rename(dark.with_name(NAME))
    return recipe


CASES = {
    "token-classification": tokens,
    "question-answering": answers,
    "translation": writing,
    "text-generation": chat,
    "object-detection": boxes,
    "image-segmentation": masks,
    "image-classification": pictures,
}


@pytest.mark.parametrize("task", CASES)
def test_page_and_card_show_what_is_in_the_data(task, tmp_path):
    recipe = rewritten(CASES[task](tmp_path), training={"num_train_epochs": 1})
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert main(["run", str(recipe)]) == 0
    after = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in [path, *path.parents]}
    assert after == before
    page = Tags((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert page.active == []
    assert "<script>alert(1)" in "".join(page.shown), "nothing hostile came as far as the page"
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    block = REGEX_YAML_BLOCK.match(card)
    assert yaml.safe_load(block[2])["pipeline_tag"] in {task, "text2text-generation"}
    text = Tags(MarkdownIt("gfm-like", {"linkify": False}).render(card[block.end() :]))
    assert set(text.active) <= {"img"}, "its drift picture is a file beside it"
