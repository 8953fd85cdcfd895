"""SQuAD's json: both forms are the same rows, bad answers are named, articles stay together."""

import json
import os
from pathlib import Path

import pytest

from hf_sft.errors import DataError
from hf_sft.loaders import Squad, Table
from hf_sft.loaders.splits import split
from hf_sft.resources import locator
from hf_sft.squad_files import answer_problem, read_questions, read_squad
from hf_sft.tasks import TextClassification

CONTEXT = "The old oak stands by the red rose."


def question(number, text="red rose", start=26, **more):
    answers = [] if text is None else [{"text": text, "answer_start": start}]
    return {"id": f"q{number}", "question": f"What is it, {number}?", "answers": answers, **more}


def article(title, *questions, context=CONTEXT):
    return {"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}


def written(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, "utf-8")
    return path


def nested(path, articles):
    return written(path, {"version": "1.1", "data": articles})


def flat(row, title="A"):
    lists = {key: [a[key] for a in row["answers"]] for key in ("text", "answer_start")}
    return {"title": title, "context": CONTEXT, **row, "answers": lists}


def refused(folder, content, name="bad.json"):
    with pytest.raises(DataError) as error:
        read_squad(written(folder / name, content), "data.train")
    return str(error.value)


def test_nested_flat_and_lines_are_the_same_rows(tmp_path):
    rows = [question(1), question(2, "The old oak", 0)]
    single = [{**row, "title": "A", "context": CONTEXT} for row in rows]  # answers one by one
    forms = {
        "nested.json": {"data": [article("A", *rows)]},
        "flat.json": [flat(row) for row in rows],
        "single.json": single,
        "below.json": {"data": [flat(row) for row in rows]},
        "lines.jsonl": "\n".join(json.dumps(flat(row)) for row in rows),
        "lines.json": "\n".join(json.dumps(flat(row)) for row in rows),
    }
    found = [read_squad(written(tmp_path / n, c), "").to_list() for n, c in forms.items()]
    assert all(rows == found[0] for rows in found)
    assert found[0][1] == {
        "id": "q2",
        "title": "A",
        "context": CONTEXT,
        "question": "What is it, 2?",
        "answers": {"text": ["The old oak"], "answer_start": [0]},
    }


def test_a_question_that_cannot_be_answered_has_no_answers(tmp_path):
    hopeless = question(1, "red rose", 26, is_impossible=True)  # v2 lists plausible answers, too
    rows = read_squad(nested(tmp_path / "v2.json", [article("A", hopeless, question(2, None))]), "")
    assert rows["answers"][:] == [{"text": [], "answer_start": []}] * 2


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [("red rose", 25, "stands at 26"), ("red rose", -9, "stands at 26"),
     ("elm", 0, "nowhere in the context"), (" ", 3, "is empty")],
)  # fmt: skip
def test_an_answer_that_is_not_where_it_says(tmp_path, text, start, words):
    message = refused(tmp_path, {"data": [article("A", question(7, text, start))]})
    assert "data.train: 'bad.json' id 'q7'" in message
    assert words in message


def test_characters_are_counted_not_bytes():
    assert answer_problem("Größe 5½ 中文", "中文", 9) is None
    assert "stands at 9" in answer_problem("Größe 5½ 中文", "中文", 12)


@pytest.mark.parametrize(
    ("content", "words"),
    [({"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}, "form (KeyError('context'))"),
     ({"data": [{"paragraphs": 3}]}, "not SQuAD's form"),
     ({"data": []}, "no questions"), ("{", "line 1"), ("", "empty file"),
     ([{"question": "q", "context": " ", "answers": []}], "row 1: context is ' '"),
     ([{"question": "q", "context": "c", "id": 4}], "row 1 (id 4): answers is None"),
     ([{"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}], "row 1"),
     ([{"question": "q", "context": "c", "answers": [{"text": "c"}]}], "whole number"),
     ([3], "row 1: context is None")],
)  # fmt: skip
def test_what_is_no_squad_file(tmp_path, content, words):
    message = refused(tmp_path, content)
    assert words in message
    assert "bad.json" in message


def test_many_mistakes_are_counted(tmp_path):
    wrong = [question(number, "elm", 0) for number in range(9)]
    message = refused(tmp_path, {"data": [article("A", *wrong)]})
    assert "4 more like these" in message
    assert len(message.splitlines()) == 6


def test_the_language_is_in_the_name_in_the_key_or_in_the_row(tmp_path):
    for name in ("x.en.json", "x.de.json", "x.pt-BR.json", "plain.json"):
        nested(tmp_path / name, [article("A", question(1))])
    locate = locator(tmp_path)
    listed = Squad(train=["x.en.json", "x.de.json", "x.pt-BR.json"]).load(locate)["train"]
    assert listed["language"][:] == ["en", "de", "pt-BR"]
    keyed = Squad(train={"en": "plain.json", "zh": "x.de.json"}).load(locate)["train"]
    assert keyed["language"][:] == ["en", "zh"]
    assert "language" not in Squad(train="plain.json").load(locate)["train"].column_names
    own = [{**flat(question(1)), "language": "hi"}]
    assert read_squad(written(tmp_path / "own.json", own), "", "en")["language"][:] == ["hi"]


def test_every_bad_file_is_named(tmp_path):
    nested(tmp_path / "a.json", [article("A", question(1, "elm", 0))])
    nested(tmp_path / "b.json", [article("A", question(2, "elm", 0))])
    with pytest.raises(DataError) as error:
        Squad(train=["a.json", "b.json"], test="a.json").load(locator(tmp_path))
    for place in ("data.train.0: 'a.json'", "data.train.1: 'b.json'", "data.test: 'a.json'"):
        assert place in str(error.value)


def articles(count, each=3):
    return [article(f"T{n}", *(question(f"{n}.{i}") for i in range(each))) for n in range(count)]


def parts(loader, folder, validation=True):
    return split(loader.load(locator(folder)), loader, None, validation)


def test_an_article_is_in_one_part_in_all_its_languages(tmp_path):
    for language in ("en", "de"):
        nested(tmp_path / f"x.{language}.json", articles(12))
    files = {"train": ["x.en.json", "x.de.json"], "test_fraction": 0.25}
    found = parts(Squad(**files), tmp_path)
    titles = {name: set(rows["title"]) for name, rows in found.items()}
    assert {name: len(those) for name, those in titles.items()} == {
        "train": 8, "test": 3, "validation": 1}  # fmt: skip
    assert not titles["train"] & titles["test"] | titles["validation"] & titles["test"]
    assert set.union(*titles.values()) == {f"T{n}" for n in range(12)}
    again, other = (parts(Squad(**files, split_seed=s), tmp_path) for s in (0, 1))
    assert again["test"]["id"][:] == found["test"]["id"][:]
    assert other["test"]["id"][:] != found["test"]["id"][:]


def language_files(folder, ids, titles):
    """20 questions about 10 texts in two languages, with or without ids and titles."""
    for language in ("en", "de"):
        rows = []
        for n in range(20):
            row = {"context": f"{language} {CONTEXT} {n // 2}", "question": "?", "answers": []}
            row |= {"id": f"q{n}"} if ids else {}
            rows.append(row | ({"title": f"{language} {n // 2}"} if titles else {}))
        written(folder / f"x.{language}.json", rows)
    return {"train": ["x.en.json", "x.de.json"]}


@pytest.mark.parametrize(("ids", "titles"), [(True, False), (False, False), (True, True)])
def test_a_text_is_in_one_part_in_all_languages_whatever_tells_it(tmp_path, ids, titles):
    files = language_files(tmp_path, ids, titles)
    found = parts(Squad(**files, test_fraction=0.3), tmp_path)
    texts = {name: {c.rpartition(" ")[2] for c in rows["context"]} for name, rows in found.items()}
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 24, "test": 12, "validation": 4}  # fmt: skip
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["test"] & texts["validation"]
    assert set(found["test"]["language"]) == {"en", "de"}


def test_texts_with_titles_of_their_own_and_no_ids_are_no_translations(tmp_path):
    files = language_files(tmp_path, ids=False, titles=True)
    rows = Squad(**files).load(locator(tmp_path))["train"]
    assert len(set(rows["title"])) == 20


def test_numbers_as_ids_join_nothing_across_splits(tmp_path, caplog):
    for name in ("x.en.json", "y.de.json"):
        rows = [{"id": n, "context": f"{name} {CONTEXT} {n}", "question": "?", "answers": []}
                for n in range(4)]  # fmt: skip
        written(tmp_path / name, rows)
    parts(Squad(train="x.en.json", test="y.de.json"), tmp_path, False)
    assert "shares" not in caplog.text


def test_a_class_that_goes_to_test_with_its_group_is_told(tmp_path, caplog):
    lines = [f"take {n},speaker {n % 10},{'ab'[n % 10 > 7]}" for n in range(50)]
    written(tmp_path / "x.csv", "\n".join(["text,speaker,label", *lines]))
    table = Table(train="x.csv", test_fraction=0.5, group="speaker")
    data = TextClassification().check(table.load(locator(tmp_path)))
    told = []
    for seed in range(30):
        caplog.clear()
        found = split(data, table.model_copy(update={"split_seed": seed}), "label", False)
        lost = set(data["train"]["label"]) - set(found["train"]["label"])
        assert ("all rows of b went to test with their 'speaker'" in caplog.text) == bool(lost)
        told += lost
    assert told


def test_questions_about_one_text_stay_together_without_titles(tmp_path):
    rows = [
        {"context": f"{CONTEXT} {n // 2}", "question": "?", "answers": []} for n in range(20)
    ]  # two questions for each text
    written(tmp_path / "x.json", rows)
    found = parts(Squad(train="x.json", test_fraction=0.3), tmp_path, False)
    assert not set(found["train"]["context"]) & set(found["test"]["context"])
    assert len(found["test"]) == 6


def test_articles_that_are_in_two_given_files_are_told(tmp_path, caplog):
    nested(tmp_path / "x.json", articles(5))
    nested(tmp_path / "y.json", articles(3))
    parts(Squad(train="x.json", test="y.json"), tmp_path, False)
    assert "data.test shares 3 of its 'title' values with train (T0, T1, T2)" in caplog.text
    caplog.clear()
    parts(Squad(train="x.json", test_fraction=0.4), tmp_path)
    assert "shares" not in caplog.text


def test_one_article_cannot_be_in_two_parts(tmp_path):
    nested(tmp_path / "x.json", articles(1))
    with pytest.raises(DataError, match=r"data\.test_fraction: all rows have the same 'title'"):
        parts(Squad(train="x.json", test_fraction=0.3), tmp_path)


def test_any_loader_keeps_groups_together(tmp_path):
    lines = [f"take {n},speaker {n % 5},{'ab'[n % 2]}" for n in range(50)]
    written(tmp_path / "x.csv", "\n".join(["text,speaker,label", *lines]))
    table = Table(train="x.csv", test_fraction=0.4, group="speaker")
    found = parts(table, tmp_path, False)
    speakers = {name: set(rows["speaker"]) for name, rows in found.items()}
    assert len(speakers["test"]) == 2
    assert not speakers["train"] & speakers["test"]
    with pytest.raises(DataError, match=r"data\.group names column 'spaeker'.*'speaker'\?"):
        parts(table.model_copy(update={"group": "spaeker"}), tmp_path)


def test_questions_to_predict_need_no_answers(tmp_path):
    bare = {"id": "1", "question": "What?"}
    rows = read_questions(nested(tmp_path / "x.json", [article("A", bare)]))
    assert rows.to_list() == [{"id": "1", "question": "What?", "context": CONTEXT}]
    assert read_questions(written(tmp_path / "y.json", [{"question": "What?"}])) is None


DATA = Path(os.environ.get("HF_SFT_DATA", "")) / "xquad_en_de_zh"


@pytest.mark.skipif(not (DATA / "xquad.en.json").is_file(), reason="HF_SFT_DATA has no XQuAD")
def test_xquad_is_parallel_and_its_articles_do_not_leak():
    files = {language: str(DATA / f"xquad.{language}.json") for language in ("en", "de", "zh")}
    found = parts(Squad(train=files, test_fraction=0.25), DATA, False)
    ids = {
        (name, language): {r["id"] for r in rows if r["language"] == language}
        for name, rows in found.items()
        for language in files
    }
    for name in found:
        assert ids[name, "en"] == ids[name, "de"] == ids[name, "zh"]
    assert len(ids["train", "en"] | ids["test", "en"]) == 1190
    assert not ids["train", "en"] & ids["test", "en"]
