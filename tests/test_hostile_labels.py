"""A whole run on labels, texts and file names that are written to break out of where they stand."""

import csv
import json
import os
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_run
import torch
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt

from hf_sft.cli import main
from hf_sft.errors import UserError
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import read
from hf_sft.training.checkpoint_code import refuse_code

TOKEN = "hf_" + "Q7" * 17
LABELS = [
    '"><script>alert(1)</script>',
    "<img src=x onerror=alert(1)>",
    "../../escaped",
    "/etc/passwd",
    "| a | b |",
    "```\n# mine",
    "---\nlicense: mine\n---",
    "\x1b[31m\x1b]0;mine\x07red",
    "=cmd()|' /C calc'!A0",
    "\u202egnp.\u2066mine",
    "a\0b",
    "a\x85license: mine\u2028penalty: null",
    "[mine](javascript:alert(1))",
    "{{ 7 * 7 }}${HOME}%s",
    "long" * 800,
]
UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FILE = '"><b>|a|`x`.jsonl'
RUNS = "<i>|r|"


def rows():
    return [
        {"text": f"{word} {label[:40]}", "label": label}
        for label in LABELS
        for word in ("old", "new", "tall")
    ]


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(folder, what the run said): a process of its own, a token in its environment."""
    folder = tmp_path_factory.mktemp("hostile")
    changes = {
        "data": {"type": "table", "train": FILE, "test": FILE},
        "training": {"output_dir": str(folder / RUNS), "num_train_epochs": 1},
    }
    recipe = tiny_run.text_recipe(folder, **changes)
    lines = [json.dumps(row) + "\n" for row in rows()]
    (folder / FILE).write_text("".join(lines), "utf-8")
    before = tree(folder)
    done = subprocess.run(
        [sys.executable, "-m", "hf_sft", "run", str(recipe)],
        env={**os.environ, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = {path for path in tree(folder) - before if path.partition("/")[0] != RUNS}
    assert not new
    return folder, done.stdout + done.stderr


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes, self.shown = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.attributes |= {f"{n}: {v[:11]}" for n, v in attributes if n in ("href", "src")}

    def handle_data(self, data):
        self.shown.append(data)


def test_the_terminal_is_not_steered(ended):
    assert not UNSEEN.search(ended[1])


def test_no_token_is_anywhere(ended):
    folder, said = ended
    assert TOKEN not in said
    assert not [p for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_the_page_shows_them_as_text(ended):
    page = Tags((ended[0] / RUNS / "report.html").read_text("utf-8"))
    assert page.found.isdisjoint({"script", "img", "iframe", "object", "link", "a", "b", "form"})
    assert not [name for name in page.attributes if name.startswith(("on", "href", "src"))]
    assert LABELS[0] in "".join(page.shown)
    assert "default-src 'none'" in (ended[0] / RUNS / "report.html").read_text("utf-8")


def test_the_card_shows_them_as_text(ended):
    card = (ended[0] / RUNS / "README.md").read_text("utf-8")
    block = REGEX_YAML_BLOCK.match(card)
    facts = yaml.safe_load(block[2])
    assert "license" not in facts
    assert facts["library_name"] == "transformers"
    html = MarkdownIt("gfm-like", {"linkify": False}).render(card[block.end() :])
    page = Tags(html)
    assert page.found.isdisjoint({"script", "a", "b", "i", "em", "strong"})
    assert html.count("<img") == html.count('<img src="drift.png"') == 1
    assert "mine" not in [line.strip() for line in html.splitlines()]
    cells = [row.count("<td") for row in html.split("<tr>")]
    assert set(cells) <= {0, 2, 3, 5, 6}
    assert not re.search(r"<h1>\s*mine", html)


def test_the_recipe_and_the_report_hold_them_exactly(ended):
    folder = ended[0] / RUNS
    assert read(folder / "recipe.yaml")["data"]["train"] == FILE
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert set(report["labels"]) == set(LABELS)
    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    assert set(config["id2label"].values()) == set(LABELS)


def test_predictions_hold_them_exactly_and_a_terminal_shows_them(ended, capsys):
    folder = ended[0]
    before = tree(folder)
    for ending in ("csv", "jsonl"):
        assert main(["predict", str(folder / RUNS), str(folder / FILE),
                     "--output", str(folder / f"p.{ending}")]) == 0  # fmt: skip
    with (folder / "p.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    told = [json.loads(line) for line in (folder / "p.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["label"] for row in found] == [row["label"] for row in told]
    assert {row["label"] for row in told} <= set(LABELS)
    assert [row["text"] for row in told] == [row["text"] for row in rows()]
    assert tree(folder) - before == {"p.csv", "p.jsonl"}
    capsys.readouterr()


def test_formulas_in_a_csv_are_told(ended, caplog, capsys):
    folder = ended[0]
    (folder / "t.jsonl").write_text(json.dumps({"text": "=1+1"}) + "\n", "utf-8")
    run = [str(folder / RUNS), str(folder / "t.jsonl"), "--output", str(folder / "f.csv")]
    assert main(["predict", *run]) == 0
    assert "formula" in caplog.text


def test_show_and_evaluate_show_them(ended, capsys):
    for command in ("show", "evaluate"):
        assert main([command, str(ended[0] / RUNS)]) == 0
    assert not UNSEEN.search(capsys.readouterr().out)


def test_new_writes_a_recipe_that_holds_nothing_of_theirs(ended, capsys):
    folder = ended[0]
    out = folder / "new.yaml"
    given = ["new", "text-classification", str(folder / FILE), "--output", str(out)]
    assert main([*given, "--model", str(folder / "source")]) == 0
    raw = read(out)
    assert "license" not in raw
    assert raw["data"]["train"] == FILE
    assert set(raw) <= {"task", "data", "model", "penalty", "freeze", "learning_rates", "training"}
    comments = [line for line in out.read_text("utf-8").splitlines() if "mine" in line]
    assert all(line.startswith("#") for line in comments)
    assert not UNSEEN.search(capsys.readouterr().out)


@pytest.mark.parametrize("label", ["", "   "])
def test_an_empty_label_is_refused(tmp_path, label, capsys):
    recipe = tiny_run.text_recipe(tmp_path)
    tiny_run.write_csv(tmp_path / "train.csv", [*tiny_run.ROWS, ("a text", label)])
    assert main(["check", str(recipe)]) == 2
    assert f"row {len(tiny_run.ROWS) + 1}" in capsys.readouterr().err


# Tokens


@pytest.mark.parametrize(
    "given",
    [
        f"training.hub_token={TOKEN}",
        "training.hub_token=secret-of-another-form",
        f"model.token={TOKEN}",
        f"model.use_auth_token={TOKEN}",
        f"training.hub_tokn={TOKEN}",
        f"data.name={TOKEN}",
        f"penalty={{type: l2-sp, note: [{TOKEN}]}}",
        f"{TOKEN}=1",
        f"training={{hub_token: {TOKEN}}}",
        f"training.run_name=[{TOKEN}",
        f"--token={TOKEN}",
        "data.password=secret-of-another-form",
    ],
)
def test_a_token_in_a_recipe_is_refused_and_not_repeated(tmp_path, given, capsys):
    recipe = tiny_run.text_recipe(tmp_path)
    before = tree(tmp_path)
    capsys.readouterr()  # what saving the source has shown
    assert main(["run", str(recipe), given]) == 2
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    assert "secret-of-another-form" not in out + err
    assert err.startswith("hf-sft: ")
    assert tree(tmp_path) == before


def test_a_token_written_in_the_file_is_refused_with_its_place(tmp_path):
    recipe = tiny_run.text_recipe(tmp_path, model={"name": "./source", "token": TOKEN})
    with pytest.raises(UserError, match="model.token: a recipe is kept and published") as error:
        Recipe.load(recipe)
    assert TOKEN not in str(error.value)


def test_the_token_in_use_is_hidden_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-a-company-0123")
    assert str(UserError("asked with of-a-company-0123.")) == "asked with <token>."


def test_words_that_are_no_tokens_are_left(tmp_path):
    recipe = tiny_run.text_recipe(tmp_path, data={"columns": {"label": "label", "text": "text"}})
    assert Recipe.load(recipe, ["training.run_name=hf_sft_run", "task.max_length=8"])
    assert str(UserError("hf_sft and token: hf_x")) == "hf_sft and token: hf_x"


# Checkpoints and models of somebody else


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def stopped(ended):
    """The run, as if it had been stopped before its report."""
    folder = ended[0]
    report = folder / RUNS / "report.json"
    content = report.read_bytes()
    report.unlink()
    yield folder
    report.write_bytes(content)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    "form", [torch.save, lambda trap, file: file.write_bytes(pickle.dumps(trap))]
)
def test_code_in_a_checkpoint_is_not_run(stopped, name, form, capsys):
    (checkpoint,) = (stopped / RUNS / "checkpoints").glob("checkpoint-*")
    file, trap = checkpoint / name, Trap(str(stopped / "ran"))
    content = file.read_bytes()
    try:
        form({"state": trap}, file)
        with pytest.raises(UserError, match="holds more than tensors"):
            refuse_code(checkpoint)
        if form is torch.save:  # a bare pickle is no whole checkpoint, and is passed over
            assert main(["run", str(stopped / "recipe.yaml")]) == 2
            assert f"{name}' holds more than tensors" in capsys.readouterr().err
    finally:
        file.write_bytes(content)
    assert not (stopped / "ran").exists()


def test_a_checkpoint_of_a_run_passes(ended):
    (checkpoint,) = (ended[0] / RUNS / "checkpoints").glob("checkpoint-*")
    refuse_code(checkpoint)
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Trap(str(ended[0] / "ran"))))
    refuse_code(checkpoint)  # which nothing ever reads


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_in_a_finished_model_is_neither_run_nor_asked_for(ended, part, capsys, monkeypatch):
    folder = ended[0] / RUNS / "model"
    file, content = folder / part, (folder / part).read_bytes()
    (folder / "evil.py").write_text(f"open({str(ended[0] / 'ran')!r}, 'w')", "utf-8")
    auto = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    told = json.loads(content) | {"auto_map": auto, "model_type": "evil", "tokenizer_class": "Evil"}
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    try:
        file.write_text(json.dumps(told), "utf-8")
        status = main(["predict", str(ended[0] / RUNS), str(ended[0] / FILE)])
    finally:
        file.write_bytes(content)
        (folder / "evil.py").unlink()
    assert not (ended[0] / "ran").exists()
    if part == "config.json":  # a tokenizer of a known model is read without the code
        assert status == 2
        assert "trust_remote_code" in capsys.readouterr().err


def test_nothing_was_written_outside(ended):
    assert not Path(ended[0], "../../escaped").exists()
    assert not (ended[0] / "ran").exists()
