"""The reference says what the classes say: every key is told, every example and link is good."""

import importlib.util
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from hf_sft.cli import main
from hf_sft.penalties import StepRule
from hf_sft.reference import Key, entries, named, texts

ROOT = Path(__file__).parent.parent
ENTRIES = {entry.name: entry for entry in entries()}
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")


def written():
    """docs/make_reference.py, which is no module of the package."""
    path = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ENTRIES)
def test_every_key_has_its_line_and_every_line_its_key(name):
    entry = ENTRIES[name]
    assert [key.name for key in entry.keys if not key.text] == [], "no line under Keys:"
    assert set(texts(entry.cls)) <= {key.name for key in entry.keys}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_example_is_good(name):
    entry = ENTRIES[name]
    entry.cls.model_validate(yaml.safe_load(entry.example))
    (block,) = yaml.safe_load(entry.recipe)
    assert block == name.partition(".")[0]


def test_the_pages_are_what_the_classes_say():
    module, folder = written(), ROOT / "docs" / "reference"
    found = {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in folder.rglob("*.md")}
    pages = module.pages()
    assert sorted(found) == sorted(pages), f"run: {module.COMMAND}"
    assert [name for name in pages if found[name] != pages[name]] == [], f"run: {module.COMMAND}"


def test_every_link_of_the_docs_leads_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in LINK.findall(page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_explain_tells_a_type_by_either_name(capsys):
    assert main(["explain", "l2-sp"]) == 0
    short = capsys.readouterr().out
    assert main(["explain", "penalty.l2-sp"]) == 0
    assert capsys.readouterr().out == short
    assert "penalty: {type: l2-sp}" in short
    assert "lambda: number ≥ 0; default 0.01" in short
    assert "@inproceedings{li2018explicit" in short


def test_explain_lists_a_block_and_everything(capsys):
    assert main(["explain", "freeze"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [n for n in ENTRIES if n.startswith("freeze.")]
    assert main(["explain"]) == 0
    *entries, elsewhere = capsys.readouterr().out.splitlines()
    assert len(entries) == len(ENTRIES)
    assert "retention" in elsewhere


def test_explain_finds_the_types_that_have_a_key(capsys):
    assert main(["explain", "task.pooling"]) == 0
    assert "pooling: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "told"), [("training", "TrainingArguments"), ("retention", "data")]
)
def test_explain_says_where_the_keys_of_the_other_blocks_are(block, told, capsys):
    assert main(["explain", block]) == 0
    assert told in capsys.readouterr().out


def test_explain_says_nothing_twice(capsys):
    assert main(["explain", "search"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if len(line) > 40]
    assert len([line for line in lines if "hf-sft search" in line and "tries" in line]) == 1


def test_explain_names_the_nearest(capsys):
    assert main(["explain", "l2sp"]) == 2
    assert "'l2-sp'" in capsys.readouterr().err


class Mine(StepRule):
    """Nothing is done.

    Keys:
        strength: of nothing,
            twice.
    """

    type: Literal["mine"] = "mine"
    strength: float = Field(1.5, ge=0)


def test_a_class_of_your_own_is_told_too():
    (found,) = named(f"penalty.{__name__}:Mine")
    assert found.keys == (Key("strength", "number ≥ 0", "1.5", "of nothing, twice."),)
    assert found.body == "Nothing is done."
    assert "mine" not in ENTRIES
