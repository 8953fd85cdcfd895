"""SQuAD's json, nested by article or flat, as rows whose answers lie where they say."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hf_sft.errors import DataError
from hf_sft.json_text import parsed
from hf_sft.table_files import ending, read_table, read_text

MOST = 5  # problems of one file that are told one by one
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
NESTED = '{"data": [{"title": …, "paragraphs": [{"context": …, "qas": [{"id": …, "question": …, '
NESTED += '"answers": [{"text": …, "answer_start": …}]}]}]}]}'
TEXTS = ("id", "title", "context", "question", "language")
Row = dict[str, Any]


def read_squad(path: Path, place: str, language: str | None = None) -> Dataset:
    """Rows with id, title, context, question and answers {text: […], answer_start: […]}.

    Nested json of SQuAD v1 and v2, or a table of flat rows, also lists of {text, answer_start}.
    Where a row has no title, one is made from its context: questions about one text belong
    together. A question that cannot be answered has no answers (v2's plausible ones are left out).

    Args:
        path: the file.
        place: the recipe key that names it, or nothing.
        language: what goes into a column ``language``, where the rows have none of their own.

    Raises:
        DataError: with file, id and remedy, for the first problems of the file.
    """
    where = f"{place}: '{path.name}'" if place else f"'{path.name}'"
    rows = list(_numbered(path, place, where))
    problems = [line for name, row in rows for line in row_problems(row, name)]
    if problems:
        raise DataError("\n".join(_few(problems, where)))
    if not rows:
        raise DataError(f"{where} holds no questions.")
    return _typed([row for _, row in rows], language)


def read_questions(path: Path) -> Dataset | None:
    """id, question and context of nested json, answers or not; None where it is something else."""
    where = f"'{path.name}'"
    found = _json(path, where)
    if not _is_nested(found):
        return None
    keys = ("id", "question", "context")
    return Dataset.from_list([{k: r[k] for k in keys} for _, r in _nested(found["data"], where)])


def answer_problem(context: str, text: str, start: int) -> str | None:
    """What is wrong with an answer that should stand at character ``start`` of the context."""
    found = context[start : start + len(text)] if start >= 0 else ""
    if found == text and text.strip():
        return None
    if not text.strip():
        return "an answer is empty. Leave the list of answers empty where there is none."
    at = context.find(text)
    remedy = (
        f"It stands at {at}: correct answer_start (characters, from 0)."
        if at >= 0
        else "It stands nowhere in the context: correct the answer, or remove the question."
    )
    return f"answer {text[:40]!r} is not at answer_start {start}; there is {found[:40]!r}. {remedy}"


def row_problems(row: Row, name: str) -> Iterator[str]:
    """A line for each thing that is wrong with a row; ``name`` is how a person finds it."""
    for key in ("context", "question"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            yield f"{name}: {key} is {row.get(key)!r}, not a text. Correct or remove the row."
            return
    answers = row.get("answers")
    texts, starts = map((answers if isinstance(answers, dict) else {}).get, ANSWERS)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        yield f"{name}: answers is {str(answers)[:60]}; wanted: {{text: […], answer_start: […]}}."
        return
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            yield f"{name}: an answer needs a text and a whole number, has {text!r}, {start!r}."
        elif problem := answer_problem(row["context"], text, start):
            yield f"{name}: {problem}"


def _few(problems: list[str], where: str) -> list[str]:
    rest = len(problems) - MOST
    shown = [f"{where} {line}" for line in problems[:MOST]]
    return [*shown, f"{where}: {rest} more like these."] if rest > 0 else shown


def _numbered(path: Path, place: str, where: str) -> Iterator[tuple[str, Row]]:
    """(How messages call it, the row), nested or flat."""
    found = _json(path, where)
    if _is_nested(found):
        yield from _nested(found["data"], where)
    elif isinstance(found, dict) and isinstance(found.get("data"), list):
        yield from _flat(found["data"])  # rows below "data"
    else:
        yield from _flat(found if isinstance(found, list) else read_table(path, place).to_list())


def _json(path: Path, where: str) -> Any:
    """What the file holds, if it is json as one value; None where it is something else."""
    if ending(path) != "json" or not path.is_file():
        return None
    try:
        return parsed(read_text(path, where))
    except ValueError:
        return None  # one object per line, or a mistake that the table reader will tell


def _is_nested(found: Any) -> bool:
    data = found.get("data") if isinstance(found, dict) else None
    first = data[0] if isinstance(data, list) and data else None
    return isinstance(first, dict) and "paragraphs" in first


def _nested(articles: list, where: str) -> Iterator[tuple[str, Row]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    impossible = bool(question.get("is_impossible"))
                    row = {
                        "id": question["id"],
                        "title": article.get("title"),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": {} if impossible else question.get("answers", []),
                    }
                    yield f"id {question['id']!r}", _with_lists(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} has not SQuAD's form ({error!r}). Wanted: {NESTED}.") from error


def _flat(rows: list) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            yield f"row {number}", {}
            continue
        name = f"row {number}" + (f" (id {row['id']!r})" if row.get("id") else "")
        yield name, _with_lists(row)


def _with_lists(row: Row) -> Row:
    """``answers`` as {text: […], answer_start: […]}, from a list of single answers or nothing."""
    answers = row.get("answers")
    if answers in ([], {}, None) and "answers" in row:
        return row | {"answers": {"text": [], "answer_start": []}}
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        lists = {key: [answer.get(key) for answer in answers] for key in ANSWERS}
        return row | {"answers": lists}
    return row


def _typed(rows: list[Row], language: str | None) -> Dataset:
    for number, row in enumerate(rows):
        row["id"] = str(number + 1 if row.get("id") is None else row["id"])
        row["title"] = str(row.get("title") or made_title(row["context"]))
        row["language"] = row.get("language") or language
        row["answers"] = {key: row["answers"][key] for key in ANSWERS}
    known = [key for key in TEXTS if key != "language" or any(row["language"] for row in rows)]
    features = Features({**{key: Value("string") for key in known}, "answers": ANSWERS})
    return Dataset.from_dict({k: [row[k] for row in rows] for k in features}, features=features)


def made_title(context: str) -> str:
    """The title of rows that have none: the same for one text."""
    return f"text {hashlib.sha256(context.encode()).hexdigest()[:12]}"
