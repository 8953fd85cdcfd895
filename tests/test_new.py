"""`hf-sft new`: what it sees in data, and that the recipe it writes runs."""

import csv
import json
import os
from pathlib import Path

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Translation, Value
from PIL import Image
from tiny_image_run import image_recipe
from tiny_run import ROWS, picture, source_folder, write_csv
from transformers import BertForMaskedLM

from hf_sft.cli import main
from hf_sft.new.columns import roles
from hf_sft.new.data import data_block, split_of
from hf_sft.new.findings import class_findings, empty_texts, long_texts, missing_labels
from hf_sft.new.recipe import propose
from hf_sft.new.repeats import duplicates, inputs_of, leakage, normal_form
from hf_sft.recipe import Recipe

QUICK = ["training.use_cpu=true", "training.max_steps=2", "training.disable_tqdm=true"]
DATA = os.environ.get("HF_SFT_DATA")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_SFT_DATA", raising=False)
    return tmp_path


def table(path, rows, header=("text", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_csv(path, rows, header)


def plants(folder):
    """The folder ``plants`` with a train and a test file."""
    table(folder / "plants" / "train.csv", ROWS)
    table(folder / "plants" / "test.csv", [(f"{text}!", label) for text, label in ROWS[::3]])
    return folder / "plants"


def new(*words):
    return main(["new", *(str(word) for word in words)])


def refused(capsys, *words):
    """The one message of a command that leaves nothing behind."""
    before = sorted(Path.cwd().rglob("*"))
    assert new(*words) == 2
    printed = capsys.readouterr()
    assert sorted(Path.cwd().rglob("*")) == before
    assert "Traceback" not in printed.err
    return printed.err


def found(task, given, *overrides):
    return propose(task, str(given), Path(), None, overrides)


def kinds(proposal):
    return {finding.kind: finding for finding in proposal.findings}


# The whole way.


def test_a_folder_of_tables_becomes_a_recipe_that_runs(here, capsys):
    source_folder(here / "source")
    plants(here)
    assert new("text-classification", "plants", "--model", "source", *QUICK) == 0
    told = capsys.readouterr().out
    assert "plants.yaml: written" in told
    assert "hf-sft check plants.yaml" in told
    assert "flower" in told
    assert main(["check", "plants.yaml"]) == 0
    assert main(["run", "plants.yaml"]) == 0
    assert (here / "outputs" / "plants" / "report.json").is_file()
    written = yaml.safe_load((here / "plants.yaml").read_text("utf-8"))
    assert written["data"] == {
        "type": "table", "train": "plants/train.csv", "test": "plants/test.csv",
    }  # fmt: skip
    assert written["model"] == {"name": "./source"}
    assert written["freeze"] == {"type": "lp-ft"}
    assert written["penalty"]["type"] == "similarity"


def test_a_single_file_gets_a_test_split_and_runs(here, capsys):
    source_folder(here / "source")
    table(here / "garden.csv", ROWS, ("Sentence", "Kind"))
    (here / "recipes").mkdir()
    target = here / "recipes" / "mine.yaml"
    given = ("--output", target, "--model", "source", *QUICK)
    assert new("text-classification", "garden.csv", *given) == 0
    assert "20% of train is carved off" in capsys.readouterr().out
    written = yaml.safe_load(target.read_text("utf-8"))
    assert written["data"] == {"type": "table", "train": "../garden.csv", "test_fraction": 0.2}
    assert written["task"] == {
        "type": "text-classification", "text": ["Sentence"], "label": "Kind",
    }  # fmt: skip
    assert written["model"] == {"name": "../source"}
    assert main(["check", str(target)]) == 0
    assert main(["run", str(target)]) == 0


def test_a_folder_of_images_becomes_a_recipe_that_runs(here, capsys):
    given = yaml.safe_load(image_recipe(here).read_text("utf-8"))["model"]
    settings = [f"model.{key}={value}" for key, value in given.items() if key != "name"]
    words = ("--model", "source.pth", *settings, "task.image_size=32", *QUICK)
    assert new("image-classification", "images", *words) == 0
    assert "dark" in capsys.readouterr().out
    assert main(["run", "images.yaml"]) == 0


def test_a_model_may_be_given_as_a_whole_block(here, capsys):
    given = yaml.safe_load(image_recipe(here).read_text("utf-8"))["model"]
    words = ("--model", json.dumps({**given, "name": "source.pth"}), "task.image_size=32")
    assert new("image-classification", "images", *words) == 0
    assert yaml.safe_load(Path("images.yaml").read_text("utf-8"))["model"] == given
    assert "does not fit" not in capsys.readouterr().out  # it was loaded
    Path("images.yaml").unlink()
    assert "no YAML" in refused(capsys, "image-classification", "images", "--model", "{name: [}")
    for nameless in ("{}", "{architecture: resnet10t}", "{name: 3}"):
        told = refused(capsys, "image-classification", "images", "--model", nameless)
        assert "has no name" in told
    assert "model.name" in refused(capsys, "image-classification", "images", "model.name=3")


def test_a_guessed_label_is_the_fullest_and_most_even_and_the_others_are_named(here, capsys):
    regions = ["north"] * 30 + ["south"] * 29 + ["west"] + [""] * 4
    rows = [
        (f"word{n} and so on", regions[n], "" if n == 5 else ("good", "bad", "none")[n % 3], n % 4)
        for n in range(64)
    ]
    table(here / "r.csv", rows, ("Bewertung", "Region", "Urteil", "Sterne im Netz"))
    told = "'Urteil'; others that could be: 'Region', 'Sterne im Netz'"
    assert new("text-classification", "r.csv", "--model", "none/such") == 0
    assert told in capsys.readouterr().out
    text = Path("r.yaml").read_text("utf-8")
    assert yaml.safe_load(text)["task"]["label"] == "Urteil"
    assert told in text.replace("\n# ", " ")
    settled = found("text-classification", "r.csv", "task.label=Region")
    assert not any("others" in line for line in settled.decisions)


def test_the_comments_say_what_was_found(here):
    plants(here)
    assert new("text-classification", "plants") == 0
    comments = [
        line for line in Path("plants.yaml").read_text("utf-8").splitlines() if line[:1] == "#"
    ]
    assert any("8 rows occur in train too" in line for line in comments)
    assert all(len(line) <= 100 for line in comments)
    assert Recipe.load("plants.yaml").name == "plants"


def test_what_the_command_line_says_is_not_guessed(here):
    table(here / "t.csv", [(f"a{i}", f"b{i}", i % 2, i % 3) for i in range(30)],
          ("text", "title", "label", "other"))  # fmt: skip
    words = ["task.text=[title]", "task.label=other", "penalty=null", "data.test_fraction=0.5"]
    assert new("text-classification", "t.csv", *words, "training.num_train_epochs=1") == 0
    written = yaml.safe_load(Path("t.yaml").read_text("utf-8"))
    assert written["task"]["text"] == ["title"]
    assert written["task"]["label"] == "other"
    assert "penalty" not in written
    assert written["data"]["test_fraction"] == 0.5
    assert written["training"]["num_train_epochs"] == 1


def bio(count):
    """Sentences of two words, every other one with an entity."""
    tags = (["B-plant", "O"], ["O", "O"])
    return [{"tokens": [f"red{i}", "rose"], "ner_tags": tags[i % 2]} for i in range(count)]


def dump_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def squad(path, count=20):
    rows = [
        {"id": str(i), "title": f"t{i}", "context": "red rose old oak", "question": f"red {i}",
         "answers": {"text": ["rose"], "answer_start": [4]}} for i in range(count)
    ]  # fmt: skip
    path.write_text(json.dumps({"version": "1", "data": rows}), "utf-8")


def choices(count):
    return [
        {"context": f"red {i}", "question": "rose", "choice_a": "old", "choice_b": "oak",
         "answer": i % 2} for i in range(count)
    ]  # fmt: skip


def conversations(count):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    return [{"messages": [dict(turn) for turn in turns]} for _ in range(count)]


def write_sides(folder):
    """Parallel files, English and German."""
    folder.mkdir()
    for split in ("train", "test"):
        for language in ("de", "en"):
            lines = "".join(f"{language} {split} {i}\n" for i in range(8))
            (folder / f"{split}.{language}").write_text(lines, "utf-8")


OTHERS = {  # task: (makes the data, what is given, keys of the task block)
    "token-classification": (
        lambda: dump_lines(Path("d/train.jsonl"), bio(20)),
        "d", {"tokens": "tokens", "tags": "ner_tags"},
    ),
    "question-answering": (
        lambda: squad(Path("d.json")),
        "d.json", {"question": "question", "context": "context", "answers": "answers"},
    ),
    "multiple-choice": (
        lambda: dump_lines(Path("d/train.jsonl"), choices(20)),
        "d", {"context": "context", "question": "question", "endings": ["choice_a", "choice_b"],
              "label": "answer"},
    ),
    "text-generation": (
        lambda: dump_lines(Path("d.jsonl"), [{"instruction": f"a{i}", "output": f"b{i}"}
                                             for i in range(9)]),
        "d.jsonl", {"prompt": "instruction", "completion": "output"},
    ),
    "fill-mask": (
        lambda: Path("d.txt").write_text("red rose\nold oak\nnew elm\n"),
        "d.txt", {"text": "text"},
    ),
    "summarization": (
        lambda: dump_lines(Path("d.jsonl"), [{"id": i, "article": f"red {i}", "highlights": "r"}
                                             for i in range(9)]),
        "d.jsonl", {"source": "article", "target": "highlights", "prefix": "summarize: "},
    ),
    "translation": (
        lambda: write_sides(Path("d")),
        "d", {"source": "source", "target": "target"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", OTHERS)
def test_data_of_other_tasks(here, task):
    make, given, keys = OTHERS[task]
    make()
    proposal = found(task, given)
    assert proposal.raw["task"] == {"type": task, **keys}
    assert proposal.refusal is None
    assert new(task, given) == 0
    assert Recipe.load("d.yaml").task.type == task


HEADS = ["token-classification", "question-answering", "multiple-choice", "fill-mask"]


@pytest.mark.parametrize("task", HEADS)
def test_recipes_of_other_tasks_run(here, task):
    source_folder(here / "source")
    make, given, _ = OTHERS[task]
    make()
    length = ["task.max_length=8"] if task == "question-answering" else []
    assert new(task, given, "--model", "source", *QUICK, *length) == 0
    assert main(["check", "d.yaml"]) == 0
    assert main(["run", "d.yaml"]) == 0


def test_conversations_and_languages_of_the_hub(here):
    dump_lines(Path("d.jsonl"), conversations(9))
    assert found("text-generation", "d.jsonl").raw["task"]["messages"] == "messages"
    rows = [{"translation": {"en": f"a {i}", "de": f"b {i}"}} for i in range(9)]
    dump_lines(Path("t.jsonl"), rows)
    proposal = found("translation", "t.jsonl")
    assert proposal.raw["task"] == {
        "type": "translation", "source": "translation.en", "target": "translation.de",
        "prefix": "translate English to German: ",
    }  # fmt: skip
    assert proposal.refusal is None


def translations(form):
    """Nine rows as the Hub keeps them, or as an export of them to csv or json does."""
    pairs = [{"de": f"b {i}", "en": f"a {i}"} for i in range(9)]
    if form == "hub":
        features = Features({"id": Value("string"), "translation": Translation(["de", "en"])})
        rows = {"id": [str(i) for i in range(9)], "translation": pairs}
        Path("d").mkdir()
        Dataset.from_dict(rows, features=features).to_parquet("d/train-00000-of-00001.parquet")
        return "d"
    if form == "json":
        dump_lines(Path("d.jsonl"), [{"id": str(i), "translation": p} for i, p in enumerate(pairs)])
        return "d.jsonl"
    write = json.dumps if form == "csv of json" else str
    table(Path("d.csv"), [(i, write(p)) for i, p in enumerate(pairs)], ("id", "translation"))
    return "d.csv"


@pytest.mark.parametrize("form", ["hub", "json", "csv of json", "csv of Python"])
def test_a_column_translation_names_both_languages(here, form):
    """English first, as of parallel files; the other way round when one of them is given."""
    given = translations(form)
    proposal = found("translation", given)
    assert proposal.raw["task"]["source"] == "translation.en"
    assert proposal.raw["task"]["target"] == "translation.de"
    assert proposal.data["train"][1]["translation.en"] == "a 1"
    assert proposal.refusal is None
    turned = found("translation", given, "task.source=translation.de").raw["task"]
    assert (turned["source"], turned["target"]) == ("translation.de", "translation.en")
    assert turned["prefix"] == "translate German to English: "


def test_a_folder_of_documents(here):
    for name in ("one", "two"):
        (here / "docs").mkdir(exist_ok=True)
        (here / "docs" / f"{name}.txt").write_text("red rose\nold oak\n", "utf-8")
    proposal = found("text-generation", "docs")
    assert proposal.raw["data"] == {"type": "text-files", "train": "docs", "test_fraction": 0.2}
    assert kinds(proposal)["duplicates"].count == 2


def test_a_configuration_that_has_to_be_named(here, capsys):
    for name in ("first", "second"):
        table(here / "many" / name / "train.csv", ROWS)
    files = "".join(
        f"- config_name: {name}\n  data_files: {name}/train.csv\n" for name in ("first", "second")
    )
    (here / "many" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    message = refused(capsys, "text-classification", "many")
    assert "second" in message
    assert "data.name=NAME" in message
    assert found("text-classification", "many", "data.name=second").refusal is None


def test_several_labels_and_numbers(here):
    dump_lines(Path("m.jsonl"), [{"text": f"a {i}", "labels": ["x", "yz"[i % 2]]}
                                 for i in range(9)])  # fmt: skip
    several = found("text-classification", "m.jsonl")
    assert several.raw["task"]["problem"] == "multi-label"
    assert several.labels["train"].count("x") == 9
    dump_lines(Path("n.jsonl"), [{"text": f"a {i}", "score": 0.5 + i} for i in range(9)])
    number = found("text-classification", "n.jsonl")
    assert number.raw["task"]["problem"] == "regression"
    assert several.refusal is None
    assert number.refusal is None


SPELLINGS = {  # the same three entities of X and two of Y
    "BIO": ["B-X I-X O B-Y", "B-X O", "B-X B-Y"],
    "BIOES": ["B-X E-X O S-Y", "S-X O", "S-X S-Y"],
    "BILOU": ["B-X L-X O U-Y", "U-X O", "U-X U-Y"],
    "IOB1": ["I-X I-X O I-Y", "I-X O", "I-X I-Y"],
    "IO": ["X X O Y", "X O", "X Y"],
}


@pytest.mark.parametrize("scheme", SPELLINGS)
def test_entities_are_counted_however_tags_spell_them(here, scheme):
    tags = [line.split() for line in SPELLINGS[scheme]]
    rows = [{"tokens": [f"w{i}" for i in range(len(one))], "tags": one} for one in tags]
    dump_lines(Path("d.jsonl"), rows * 4)
    labels = found("token-classification", "d.jsonl").labels
    every = [name for names in labels.values() for name in names]
    assert sorted(every) == ["X"] * 12 + ["Y"] * 8


def test_labels_in_one_text_or_in_columns_of_yes_and_no(here):
    values = ["a;b", "b", "a", "a;c", "c;b", "a; b;c"]
    dump_lines(Path("s.jsonl"), [{"text": f"t {i}", "labels": values[i % 6]} for i in range(24)])
    several = found("text-classification", "s.jsonl")
    assert several.raw["task"]["problem"] == "multi-label"
    assert several.raw["task"]["label_separator"] == ";"
    assert set(several.labels["train"]) == {"a", "b", "c"}
    assert several.refusal is None
    rows = [{"comment_text": f"t {i}", "toxic": i % 2, "threat": i % 3 % 2} for i in range(24)]
    dump_lines(Path("c.jsonl"), rows)
    columns = found("text-classification", "c.jsonl")
    assert columns.raw["task"]["label"] == ["toxic", "threat"]
    assert columns.raw["task"]["problem"] == "multi-label"
    assert columns.refusal is None
    names = ["news, world", "sport", "news, home"]
    dump_lines(Path("o.jsonl"), [{"text": f"t {i}", "label": names[i % 3]} for i in range(24)])
    assert "problem" not in found("text-classification", "o.jsonl").raw["task"]


def test_pairs_with_a_score_are_a_regression_and_hidden_numbers_are_left_out(here):
    """STS-B: as csv it has a column genre too; on the Hub the labels of test are -1."""
    rows = [{"genre": "news", "score": i % 6 + 0.2, "sentence1": f"a {i}", "sentence2": f"b {i}"}
            for i in range(24)]  # fmt: skip
    dump_lines(Path("d/train.jsonl"), rows)
    dump_lines(Path("d/test.jsonl"), [{**row, "score": -1.0} for row in rows])
    proposal = found("text-classification", "d")
    assert proposal.raw["task"] == {
        "type": "text-classification",
        "label": "score",
        "text": ["sentence1", "sentence2"],
        "problem": "regression",
    }
    assert "test" not in proposal.raw["data"]
    assert any("test is left out" in line for line in proposal.decisions)
    assert proposal.refusal is None


def test_instructions_with_inputs_and_shared_conversations(here):
    rows = [{"instruction": f"a{i}", "input": "x" if i % 2 else "", "output": "b"}
            for i in range(9)]  # fmt: skip
    dump_lines(Path("a.jsonl"), rows)
    proposal = found("text-generation", "a.jsonl")
    assert proposal.raw["task"] == {"type": "text-generation", "prompt": "instruction",
                                    "input": "input", "completion": "output"}  # fmt: skip
    assert proposal.refusal is None
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    dump_lines(Path("g.jsonl"), [{"conversations": turns} for _ in range(9)])
    assert found("text-generation", "g.jsonl").refusal is None


@pytest.mark.parametrize("form", ["race", "arc"])
def test_choices_in_one_column(here, form):
    texts = ["old", "oak", "elm"]
    rows = [{"article": f"red {i}", "question": "rose", "answer": "ABC"[i % 3]} for i in range(20)]
    for row in rows:
        row |= {"options": texts} if form == "race" else {"choices": {"text": texts}}
    dump_lines(Path("d.jsonl"), rows)
    proposal = found("multiple-choice", "d.jsonl")
    assert proposal.raw["task"]["endings"] == ("options" if form == "race" else "choices.text")
    assert proposal.refusal is None


def test_questions_in_several_languages(here):
    (here / "x").mkdir()
    for language in ("en", "de"):
        squad(here / "x" / f"xquad.{language}.json")
    proposal = found("question-answering", "x")
    assert proposal.raw["data"]["train"] == {"de": "x/xquad.de.json", "en": "x/xquad.en.json"}
    assert proposal.refusal is None
    for split in ("train", "dev"):
        (here / split).mkdir()
        for language in ("en", "de"):
            squad(here / "x" / f"{split}.{language}.json")
            (here / "x" / f"xquad.{language}.json").unlink(missing_ok=True)
    block = found("question-answering", "x").raw["data"]
    assert block["validation"] == {"de": "x/dev.de.json", "en": "x/dev.en.json"}


# What is refused.


def test_an_existing_recipe_is_not_overwritten(here, capsys):
    plants(here)
    Path("plants.yaml").write_text("mine", "utf-8")
    assert "'plants.yaml' exists" in refused(capsys, "text-classification", "plants")
    assert Path("plants.yaml").read_text("utf-8") == "mine"
    words = ("text-classification", "plants", "--output")
    assert "exists" in refused(capsys, *words, "plants.yaml")
    assert "does not exist" in refused(capsys, *words, "no/x.yaml")
    assert "should end in .yaml" in refused(capsys, *words, "x.txt")


def test_a_task_that_is_none_names_the_choices(here, capsys):
    plants(here)
    message = refused(capsys, "text-clasification", "plants")
    assert "image-classification" in message
    assert "Did you mean 'text-classification'" in message


def test_an_option_that_is_none_names_the_one_that_is_meant(here, capsys):
    plants(here)
    message = refused(capsys, "text-classification", "plants", "--modle", "x")
    assert "Did you mean '--model'" in message


def test_data_that_are_not_there_or_no_data(here, capsys):
    plants(here)
    message = refused(capsys, "text-classification", "plant")
    assert "Did you mean 'plants'" in message
    assert "user/name" in message
    (here / "empty").mkdir()
    assert "no files" in refused(capsys, "text-classification", "empty")
    Path("notes.doc").write_text("x")
    assert "Choices by ending: csv" in refused(capsys, "text-classification", "notes.doc")
    assert "someone/nothing" in refused(capsys, "text-classification", "someone/nothing")


def test_columns_that_are_not_seen_are_asked_for(here, capsys):
    table(here / "t.csv", [(f"a {i}", 0.5 + i) for i in range(9)], ("text", "amount"))
    message = refused(capsys, "text-classification", "t.csv")
    assert "amount (float64)" in message or "amount (double)" in message
    assert "task.label=COLUMN" in message
    table(here / "n.csv", [(i, i % 2) for i in range(9)], ("number", "label"))
    assert "task.text=COLUMN" in refused(capsys, "text-classification", "n.csv")


@pytest.mark.parametrize("word", ["task.txt=[text]", "data.tst=x", "training.learning_rat=1"])
def test_an_override_that_is_no_key(here, capsys, word):
    plants(here)
    assert "no such key" in refused(capsys, "text-classification", "plants", word)


def test_two_files_for_one_split(here, capsys):
    folder = plants(here)
    table(folder / "train_more.csv", ROWS)
    assert "two files for train" in refused(capsys, "text-classification", "plants")
    more = "data.test=plants/test.csv"
    assert new("text-classification", "plants/train.csv", more) == 0


# Data with faults.


def test_rows_that_the_run_refuses_are_told_and_the_recipe_is_there(here, capsys):
    table(here / "t.csv", [*ROWS, ("a text", ""), ("", "tree")])
    assert new("text-classification", "t.csv") == 0
    told = capsys.readouterr().out
    assert "the data need a correction" in told
    assert "row 25" in told
    assert "row 26" in told


def test_classes_too_small_to_be_split_are_left_out(here):
    table(here / "t.csv", [*ROWS, ("one more", "moss")])
    proposal = found("text-classification", "t.csv")
    assert proposal.raw["data"]["keep_labels"] == ["flower", "tree"]
    assert proposal.refusal is None
    assert "'moss' (1)" in kinds(proposal)["tiny classes"].text


def test_classes_that_train_lacks_are_left_out(here):
    folder = plants(here)
    table(folder / "test.csv", [*ROWS[::5], ("a thing", "stone")])
    proposal = found("text-classification", folder)
    assert proposal.raw["data"]["keep_labels"] == ["flower", "tree"]
    assert proposal.refusal is None
    assert kinds(proposal)["strange classes"].rows == (6,)


def test_a_test_split_without_labels_is_left_out(here):
    folder = plants(here)
    table(folder / "test.csv", [(text, "") for text, _ in ROWS[:5]])
    proposal = found("text-classification", folder)
    assert "test" not in proposal.raw["data"]
    assert proposal.raw["data"]["test_fraction"] == 0.2
    assert "none of its rows has a label" in proposal.decisions[0]


def test_a_local_folder_as_the_hub_lays_it_out(here):
    features = Features({"q": Value("string"), "kind": ClassLabel(names=["flower", "tree"])})
    for split, label in (("train", 0), ("validation", 0), ("test", -1)):
        rows = {"q": [t for t, _ in ROWS], "kind": [label if i % 2 else 1 for i in range(24)]}
        rows["kind"] = [-1] * 24 if label < 0 else rows["kind"]
        part = Dataset.from_dict(rows, features=features)
        (here / "hub" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(here / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    proposal = found("text-classification", "hub")
    splits = {"train": "train", "validation": "validation"}
    assert proposal.raw["data"] == {"type": "hub", "path": "hub", "splits": splits}
    assert proposal.raw["task"]["text"] == ["q"]
    assert proposal.raw["task"]["label"] == "kind"
    assert proposal.refusal is None


# Which loader.


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"), ("banking_Train.csv.gz", "train"), ("wnut17train.conll", "train"),
        ("emerging.dev.conll", "validation"), ("val.jsonl", "validation"),
        ("emerging.test.annotated", "test"), ("dev-v1.1.json", "validation"),
        ("categories.json", None), ("contest.csv", "test"), ("restaurant.csv", None),
    ],
)  # fmt: skip
def test_the_split_that_a_name_tells(name, split):
    assert split_of(Path(name)) == split


def test_files_beside_the_splits_are_passed_over(here):
    folder = plants(here)
    (folder / "categories.json").write_text('["flower", "tree"]')
    (folder / "README.txt").write_text("About.")
    block, name = data_block("text-classification", "plants", here)
    assert block == {"type": "table", "train": "plants/train.csv", "test": "plants/test.csv"}
    assert name == "plants"


def test_one_file_that_holds_all_splits(here):
    rows = {split: [[text, label] for text, label in ROWS] for split in ("train", "val", "test")}
    (here / "d").mkdir()
    (here / "d" / "data_small.json").write_text(json.dumps(rows))
    assert data_block("text-classification", "d", here) == (
        {"type": "clinc", "path": "d/data_small.json"}, "d",
    )  # fmt: skip


@pytest.mark.parametrize("front", [True, False])
def test_images_written_as_rows_of_pixels(here, front):
    rows = []
    for i in range(12):
        pixels = [0, *[(7 * i + j) % 256 for j in range(62)], 0]
        rows.append([i % 3, *pixels] if front else [*pixels, i % 3])
    with (here / "p.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    block, _ = data_block("image-classification", "p.csv", here)
    assert block["type"] == "pixel-table"
    assert (block["height"], block["width"], block["header"]) == (8, 8, False)
    assert block["label_position"] == ("first" if front else "last")
    assert found("image-classification", "p.csv").refusal is None


def test_data_below_the_shared_folder_keep_their_short_name(here, monkeypatch):
    plants(here / "shared")
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    monkeypatch.setenv("HF_SFT_DATA", str(here / "shared"))
    for given in ("plants", here / "shared" / "plants"):
        block, _ = data_block("text-classification", str(given), here / "work")
        assert block["train"] == "plants/train.csv"


# Which columns.


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        ({"id": "n", "text": "t", "label": "c"}, ["text"], "label"),
        ({"Label": "c", "Review": "t"}, ["Review"], "Label"),
        ({"premise": "t", "hypothesis": "t", "label": "c"}, ["premise", "hypothesis"], "label"),
        ({"a": "t", "b": "c"}, ["a"], "b"),
        ({"note": "s", "words": "t", "kind": "c"}, ["words"], "kind"),
        ({"text": "t", "label": "c", "label_text": "c"}, ["text"], "label"),
    ],
)
def test_columns_by_name_and_by_what_they_hold(columns, texts, label):
    make = {
        "n": lambda i: i,
        "t": lambda i: f"a longer text of row {i}",
        "s": lambda i: f"row {i}",
        "c": lambda i: "ab"[i % 2],
    }
    rows = Dataset.from_dict({c: [make[k](i) for i in range(20)] for c, k in columns.items()})
    seen = roles("text-classification", rows, {})
    assert (seen.inputs, seen.answer) == (texts, label)
    assert seen.keys == {"text": texts, "label": label}


# What looks wrong: laws of the checks.


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("What's up?", "whats  UP", True), ("top-up", "top up", True), ("top-up", "topup", False),
        ("C++", "C", False), ("good 😀", "good 😡", False), ("?!", "...", False),
        ("Ａｂｃ", "abc", True), ("I like it.", "I like it!", True), ("5 %", "5", True),
    ],
)  # fmt: skip
def test_what_is_the_same_text(first, second, same):
    assert (normal_form(first) == normal_form(second)) is same


def inputs(*rows):
    texts, labels = zip(*rows, strict=True)
    return inputs_of(texts, labels)


def test_duplicates_are_counted_once_each_and_blank_rows_are_none():
    rows = [("a b", "x"), ("c", "x"), ("A, b", "x"), (" ", "x"), ("", "x"), ("c", "y"), ("c", "x")]
    again, other = duplicates("train", inputs(*rows))
    assert again.count == 3
    assert again.rows == (3, 6, 7)
    assert "2 exactly, 1 but for case" in again.text
    assert (other.count, other.rows) == (1, (6,))
    assert "train row 6 'c' = train row 2" in other.example


def test_no_repetition_no_finding():
    train, test = inputs(("a", "x"), ("b", "y")), inputs(("c", "x"), ("d", "y"))
    assert duplicates("train", train) == []
    assert leakage("test", test, "train", train) == []


def test_leakage_with_the_same_and_with_another_label():
    train = inputs(("one", "x"), ("two", "x"), ("two", "y"), ("three", "x"))
    test = inputs(("new", "x"), ("ONE", "x"), ("two", "y"), ("three!", "y"))
    (leak,) = leakage("test", test, "train", train)
    assert leak.count == 3
    assert leak.rows == (2, 3, 4)
    assert "1 exactly, 2 but for case" in leak.text
    assert "1 with another label" in leak.text  # "two" has both labels in train
    assert "75.0% of test" in leak.text
    assert "test row 4 'three!' = train row 4 'three'" in leak.example


def test_leakage_without_labels():
    (leak,) = leakage("test", inputs_of(["a"], None), "train", inputs_of(["b", "a"], None))
    assert "another" not in leak.text


def test_the_files_of_images_are_compared_byte_by_byte(here):
    for i in range(6):
        picture(here / "im" / "train" / "ab"[i % 2] / f"{i}.png", (40 * i, 0, 0))
        picture(here / "im" / "test" / "ab"[i % 2] / f"{i}.png", (0, 40 * i + 9, 0))
    copied = (here / "im" / "train" / "a" / "2.png").read_bytes()
    (here / "im" / "test" / "b" / "copy.png").write_bytes(copied)
    leak = kinds(found("image-classification", "im"))["leakage"]
    assert leak.count == 1
    assert "1 with another label" in leak.text
    assert "b/copy.png' = train row 2 'a/2.png'" in leak.example


def test_an_image_that_cannot_be_opened_is_told(here):
    for i in range(8):
        picture(here / "im" / "ab"[i % 2] / f"{i}.png", (30 * i, 0, 0))
    (here / "im" / "a" / "bad.png").write_bytes(b"no image")
    assert "bad.png' cannot be decoded" in found("image-classification", "im").refusal
    assert Image.open(here / "im" / "a" / "0.png").size == (16, 16)


def test_empty_texts():
    (finding,) = empty_texts("train", "text", ["a", "", None, " \t", "b"])
    assert (finding.count, finding.rows) == (3, (2, 3, 4))
    assert empty_texts("train", "text", ["a"]) == []


def test_long_texts():
    texts = ["one two", "a b c d", None, "a b c d e", "漢字漢字漢字"]
    (finding,) = long_texts("test", texts, 3)
    assert (finding.count, finding.rows) == (3, (2, 4, 5))
    assert "row 5 has 6 words" in finding.example
    assert long_texts("test", texts, 6) == []


def test_the_limit_is_that_of_the_model_at_hand(here):
    source_folder(here / "source")  # 8 positions
    table(here / "t.csv", [*ROWS, ("red rose " * 5, "flower")])
    proposal = propose("text-classification", "t.csv", Path(), "source", [])
    assert "longer than 8 words" in kinds(proposal)["long"].text
    assert "long" not in kinds(found("text-classification", "t.csv"))


def test_texts_that_are_read_in_windows_or_blocks_are_not_told_as_cut(here):
    source_folder(here / "source")  # 8 positions
    table(here / "t.csv", [*ROWS, ("red rose " * 5, "flower")])
    words = ["task.long_texts=windows"]
    read = propose("text-classification", "t.csv", Path(), "source", words)
    assert "long" not in kinds(read)
    assert read.raw["task"]["long_texts"] == "windows"
    for group in (False, True):
        given = propose("fill-mask", "t.csv", Path(), "source", [f"task.group={group}"])
        assert ("long" in kinds(given)) is not group


def test_a_source_that_lacks_a_part_is_told_with_the_remedy(here, capsys):
    """A checkpoint of masked words has no pooler, which classification reads."""
    whole = source_folder(here / "whole")
    bare = source_folder(here / "bare")
    BertForMaskedLM.from_pretrained(whole).save_pretrained(bare)
    plants(here)
    assert new("text-classification", "plants", "--model", "bare", *QUICK) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "The source does not fit" in told
    assert "model.fresh: ['bert.pooler.dense.*']" in told
    written = Path("plants.yaml").read_text("utf-8")
    assert "# The source does not fit" in written
    Path("plants.yaml").unlink()
    allowed = ["model.fresh=['bert.pooler.dense.*']", *QUICK]
    assert new("text-classification", "plants", "--model", "bare", *allowed) == 0
    assert "does not fit" not in capsys.readouterr().out
    assert main(["check", "plants.yaml"]) == 0
    assert propose("text-classification", "plants", Path(), "whole", []).source is None


def test_a_source_that_is_not_here_is_not_fetched(here, monkeypatch):
    def never(*_):
        raise AssertionError("a look at data loads no weights")

    monkeypatch.setattr("hf_sft.new.try_out.load_model", never)
    plants(here)
    proposal = propose("text-classification", "plants", Path(), "someone/nothing", [])
    assert proposal.source is None
    assert "'someone/nothing' is not on this computer" in proposal.decisions[-1]


def test_missing_labels():
    (finding,) = missing_labels("train", "label", ["a", None, "b", None])
    assert (finding.count, finding.rows) == (2, (2, 4))


def test_what_is_wrong_with_classes():
    train = ["Card"] * 90 + ["card "[:4]] * 5 + ["top up"] * 7 + ["top-up"] * 8 + ["rare"] * 3
    seen = {f.kind: f for f in class_findings({"train": train, "test": ["Card", "odd", "Card"]})}
    alike = [f for f in class_findings({"train": train}) if f.kind == "look-alike labels"]
    assert [f.count for f in alike] == [95, 15]
    assert "'Card' (90), 'card' (5)" in alike[0].text
    assert "'rare' (3)" in seen["tiny classes"].text
    assert "80% of it" in seen["imbalance"].text
    assert (seen["strange classes"].count, seen["strange classes"].rows) == (1, (2,))
    assert seen["absent classes"].count == 4


def test_clean_classes_are_found_clean():
    names = ["a", "b", "-1", "1", "C", "C++"] * 6
    assert class_findings({"train": names, "test": names}) == []


# Real data.


@pytest.mark.skipif(DATA is None, reason="HF_SFT_DATA does not name the folder of real data sets")
def test_banking77_has_a_little_leakage(tmp_path):
    proposal = propose("text-classification", f"{DATA}/banking77", tmp_path, None, [])
    assert isinstance(proposal.data, DatasetDict)
    assert kinds(proposal)["leakage"].count == 26
    assert {f.count for f in proposal.findings if f.kind == "contradictions"} == {1}
    assert proposal.raw["task"]["label"] == "category"
    assert proposal.refusal is None


@pytest.mark.skipif(DATA is None, reason="HF_SFT_DATA does not name the folder of real data sets")
def test_clinc150_has_a_little_leakage(tmp_path):
    proposal = propose("text-classification", f"{DATA}/clinc150_small", tmp_path, None, [])
    assert proposal.raw["data"]["type"] == "clinc"
    assert [f.count for f in proposal.findings if f.kind == "leakage"] == [12, 16, 5]
