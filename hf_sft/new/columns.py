"""Which columns of a data set a task reads, by their names and types."""

import re
from collections.abc import Callable
from typing import Any

from datasets import ClassLabel, Dataset

from hf_sft.new.column_roles import Roles, dtype, inner, is_text, named, unseen
from hf_sft.new.image_columns import (
    image_column,
    image_segmentation,
    masked_image_modeling,
    object_detection,
)

LABELS = (
    "label", "labels", "class", "category", "intent", "target", "sentiment", "topic",
    "coarse_label", "fine_label", "label_text", "label_name", "tag", "tags", "emotion", "genre",
    "language", "y", "score", "rating", "stars",
)  # fmt: skip
TEXTS = (
    "text", "sentence", "content", "review", "comment", "message", "utterance", "query", "question",
    "tweet", "document", "body", "article", "description", "title",
)  # fmt: skip
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
TOKENS = ("tokens", "words", "sentence", "text")
TAGS = ("ner_tags", "tags", "ner", "labels", "pos_tags", "pos", "chunk_tags", "tag", "label")
PROMPTS = ("prompt", "instruction", "question", "query", "input")
COMPLETIONS = ("completion", "response", "output", "answer", "chosen")
MESSAGES = ("messages", "conversations", "conversation", "chat")
ENDING = re.compile(r"(ending|choice|option|answer|opt)_?([0-9]|[a-e])", re.IGNORECASE)
SIDES = {
    "summarization": (
        ("document", "article", "text", "dialogue", "source", "body", "content"),
        ("summary", "highlights", "abstract", "target", "headline", "title"),
    ),
    "translation": (("source", "src", "en", "input"), ("target", "tgt", "output")),
}
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}  # of T5
SAMPLE = 1000  # rows that a guess looks at


def roles(task: str, rows: Dataset, given: dict[str, Any]) -> Roles:
    """The columns of ``rows`` (train) that ``task`` reads; those in ``given`` are settled.

    Raises:
        DataError: no column looks like what the task needs; it names them and says how to.
    """
    return GUESSES[task](rows, given)


def _text_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    texts = given.get("text") or []
    label = given.get("label") or _label(rows, taken=texts)
    problem = given.get("problem") or _problem(rows, label)
    answer = label if isinstance(label, str) else None
    strings = [c for c in rows.column_names if is_text(rows.features[c]) and c != answer]
    lower = {column.lower(): column for column in strings}
    if not texts:
        pairs = [[lower[a], lower[b]] for a, b in PAIRS if a in lower and b in lower]
        texts = pairs[0] if pairs else [_text(rows, strings)]
    keys = {"text": texts, "label": label}
    if problem == "single-label":
        return Roles(keys, texts, answer, "class")
    lists = answer is not None and inner(rows.features[answer]) is not None
    form = "classes" if problem == "multi-label" and lists else "none"
    return Roles(keys | {"problem": problem}, texts, answer, form)


def _problem(rows: Dataset, label: str | list[str]) -> str:
    """Several labels where they are lists or columns; a number where it is no whole one."""
    if not isinstance(label, str) or inner(rows.features[label]) is not None:
        return "multi-label"
    if dtype(rows.features[label]).startswith(("float", "double")):
        values = [v for v in rows.select(range(min(SAMPLE, len(rows))))[label] if v is not None]
        if any(not value.is_integer() for value in values):
            return "regression"
    return "single-label"


def _image_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    image = image_column(rows, given)
    label = given.get("label") or _label(rows, taken=[image])
    return Roles({"image": image, "label": label}, [image], label, "class", "image")


def _label(rows: Dataset, taken: list[str]) -> str:
    """By name, else a ClassLabel, else the column with the fewest values that repeat."""
    found = [column for column in rows.column_names if column not in taken]
    if (by_name := named(found, LABELS)) is not None:
        return by_name
    for column in found:
        if isinstance(rows.features[column], ClassLabel):
            return column
    part = rows.select(range(min(SAMPLE, len(rows))))
    values = {
        column: len({*part[column]} - {None})
        for column in found
        if dtype(rows.features[column]).startswith(("string", "large_string", "int", "bool"))
    }
    few = {column: count for column, count in values.items() if 2 <= count <= len(part) / 2}
    if not few:
        raise unseen("labels", ["task.label"], rows)
    return min(few, key=few.__getitem__)


def _text(rows: Dataset, strings: list[str]) -> str:
    """By name, else the longest texts."""
    if (by_name := named(strings, TEXTS)) is not None:
        return by_name
    if not strings:
        raise unseen("texts", ["task.text"], rows)
    part = rows.select(range(min(SAMPLE, len(rows))))
    return max(strings, key=lambda column: sum(len(text or "") for text in part[column]))


def _token_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    lists = [c for c in rows.column_names if inner(rows.features[c]) is not None]
    words = [c for c in lists if is_text(inner(rows.features[c]))]
    tokens = given.get("tokens") or named(words, TOKENS)
    tags = given.get("tags") or named([c for c in lists if c != tokens], TAGS)
    if tokens is None or tags is None:
        raise unseen("lists of words and of their tags", ["task.tokens", "task.tags"], rows)
    return Roles({"tokens": tokens, "tags": tags}, [tokens], tags, "tags", "tokens")


def _question_answering(rows: Dataset, given: dict[str, Any]) -> Roles:
    keys = {key: given.get(key) or key for key in ("question", "context", "answers")}
    if not {*keys.values()} <= {*rows.column_names}:
        raise unseen("questions, contexts and answers", [f"task.{key}" for key in keys], rows)
    inputs, answers = [keys["question"], keys["context"]], keys["answers"]
    if any(not (answer or {}).get("text") for answer in rows[answers]):
        keys["no_answer"] = True
    return Roles(keys, inputs, answers)


def _text_generation(rows: Dataset, given: dict[str, Any]) -> Roles:
    found = rows.column_names
    if messages := given.get("messages") or named(found, MESSAGES):
        return Roles({"messages": messages}, [messages])
    prompt = given.get("prompt") or named(found, PROMPTS)
    completion = given.get("completion") or named(found, COMPLETIONS)
    if prompt and completion and not given.get("text"):
        return Roles({"prompt": prompt, "completion": completion}, [prompt], completion)
    return _plain_text(rows, given)


def _plain_text(rows: Dataset, given: dict[str, Any]) -> Roles:
    strings = [c for c in rows.column_names if is_text(rows.features[c])]
    text = given.get("text") or _text(rows, strings)
    return Roles({"text": text}, [text])


def _summarization(rows: Dataset, given: dict[str, Any]) -> Roles:
    return _sides("summarization", rows, given, {"prefix": "summarize: "})


def _translation(rows: Dataset, given: dict[str, Any]) -> Roles:
    """T5's prefix where both languages are its own."""
    found = _sides("translation", rows, given, {})
    names = [found.keys[side].rpartition(".")[2].lower() for side in ("source", "target")]
    if all(name in LANGUAGES for name in names):
        source, target = (LANGUAGES[name] for name in names)
        return Roles(
            {"prefix": f"translate {source} to {target}: "} | found.keys, found.inputs, found.answer
        )
    return found


def _sides(task: str, rows: Dataset, given: dict[str, Any], keys: dict[str, Any]) -> Roles:
    """By name, else the only two columns of text, the first one the source."""
    strings = [c for c in rows.column_names if is_text(rows.features[c])]
    source, target = SIDES[task]
    chosen = [given.get("source") or named(strings, source)]
    chosen.append(given.get("target") or named(strings, target))
    if None in chosen and len(strings) == 2:
        chosen = [chosen[0] or strings[strings[0] == chosen[1]]] + [chosen[1]]
        chosen[1] = chosen[1] or strings[strings[0] == chosen[0]]
    if None in chosen:
        raise unseen("a source and a target text", ["task.source", "task.target"], rows)
    return Roles({**keys, "source": chosen[0], "target": chosen[1]}, chosen[:1], chosen[1])


def _multiple_choice(rows: Dataset, given: dict[str, Any]) -> Roles:
    found = rows.column_names
    endings = given.get("endings") or sorted(c for c in found if ENDING.fullmatch(c))
    context = given.get("context") or named(found, ("sent1", "context", "article", "passage"))
    question = given.get("question") or named(found, ("sent2", "question", "query"))
    context, question = (context, question) if context else (question, None)
    label = given.get("label") or named(found, ("label", "answer", "target", "correct"))
    if len(endings) < 2 or context is None or label is None:
        keys = ["task.context", "task.endings", "task.label"]
        raise unseen("a context, its endings and the number of the right one", keys, rows)
    keys = {"context": context, "question": question, "endings": endings, "label": label}
    return Roles(keys, [c for c in (context, question, *endings) if c], label)


GUESSES: dict[str, Callable[[Dataset, dict[str, Any]], Roles]] = {
    "text-classification": _text_classification,
    "image-classification": _image_classification,
    "object-detection": object_detection,
    "image-segmentation": image_segmentation,
    "masked-image-modeling": masked_image_modeling,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "multiple-choice": _multiple_choice,
    "text-generation": _text_generation,
    "fill-mask": _plain_text,
    "summarization": _summarization,
    "translation": _translation,
}
