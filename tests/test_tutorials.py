"""Every example of the tutorials runs, in the order of the page, for two steps each.

``yaml`` blocks that begin with ``# name.yaml`` become files, lines of ``text`` blocks that begin
with ``hf-sft`` are commands, ``python`` is executed; models of the Hub are tiny ones here.
"""

import re
import shlex
from pathlib import Path

import pytest
import tiny
import tiny_language
import tiny_run
import yaml

from hf_sft.cli import main
from hf_sft.component import find
from hf_sft.recipe import Recipe
from hf_sft.reference import KINDS, SINGLE

DOCS = Path(__file__).parent.parent / "docs"
SLOW = {"few_shot_text", "images_timm", "detection"}  # real weights, several runs
TUTORIALS = [
    pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted((DOCS / "tutorials").glob("*.md"))
]
BLOCK = re.compile(r"^```(yaml|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = ["training.max_steps=2", "training.use_cpu=true", "training.disable_tqdm=true"]
SMALL = {"few_shot_text": ["data.max_eval_samples=24"], "images_timm": ["data.max_eval_samples=24"]}


def blocks(page):
    return BLOCK.findall(page.read_text("utf-8"))


def file_name(text):
    """Of a yaml block that is a file of its own; None of a part of one."""
    found = re.match(r"# (\S+\.yaml)\n", text)
    return found and found[1]


SOURCES = {
    "google-bert/bert-base-uncased": tiny_run.source_folder,
    "HuggingFaceTB/SmolLM2-135M-Instruct": tiny_language.source_folder,
}


def local(text, folder):
    """The text with sources of the Hub replaced by tiny ones, made when first met."""
    for name, build in SOURCES.items():
        if name in text:
            place = folder / name.rpartition("/")[2]
            if not place.exists():
                place.mkdir()
                build(place)
            text = text.replace(name, str(place))
    return text


def command(line, extra):
    """Run one line of a text block; its comment is left out."""
    words = shlex.split(line, comments=True)[1:]
    changes = [*SHORT, *extra] if words[0] in ("run", "check") else []
    assert main([*words, *changes]) == 0, line


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for kind, text in blocks(DOCS / "tutorials" / f"{name}.md"):
        text = local(text, tmp_path)
        if kind == "yaml" and file_name(text):
            (tmp_path / file_name(text)).write_text(text, "utf-8")
        elif kind == "python":
            exec(text, names)
        else:
            for line in text.splitlines():
                if kind == "text" and line.startswith("hf-sft "):
                    command(line, SMALL.get(name, ()))


PARTS = [
    (path.stem, text)
    for path in (DOCS / "tutorials").glob("*.md")
    for kind, text in blocks(path)
    if kind == "yaml" and not file_name(text)
]


@pytest.mark.parametrize(("page", "text"), PARTS, ids=range(len(PARTS)))
def test_a_part_of_a_recipe_is_good(page, text):
    for block, given in yaml.safe_load(text).items():
        for one in given if isinstance(given, list) else [given]:
            cls = SINGLE.get(block) or find(KINDS[block], one["type"])
            cls.model_validate(one)


WHOLE = [t for kind, t in blocks(DOCS / "coming_from.md") if kind == "yaml"]


@pytest.mark.parametrize("text", WHOLE, ids=file_name)
def test_a_recipe_of_coming_from_is_good(text, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    (tmp_path / file_name(text)).write_text(text, "utf-8")
    Recipe.load(tmp_path / file_name(text))


def test_the_trainer_of_coming_from_runs(tmp_path):
    rows, args = tiny.texts(16), tiny.arguments(tmp_path, num_train_epochs=1)
    names = {"model": tiny.bert(), "args": args, "train": rows, "test": rows, "tokenizer": None}
    (text,) = [text for kind, text in blocks(DOCS / "coming_from.md") if kind == "python"]
    exec(text, names)
    assert names["trainer"].state.global_step == 2
    assert names["trainer"].frozen
