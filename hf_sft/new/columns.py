"""Which columns of a data set a task reads, by their names and types."""

import re
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from hf_sft.new.column_roles import Roles, inner, is_text, named, unseen
from hf_sft.new.image_columns import (
    image_column,
    image_segmentation,
    masked_image_modeling,
    object_detection,
)
from hf_sft.new.label_columns import label_of, labels_among, problem_of, sample, yes_and_no
from hf_sft.tasks.translation_column import DOT, languages

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
LISTED = ("options", "choices", "endings", "answers", "candidates")
RIGHT = ("label", "answer", "answerkey", "answer_key", "target", "correct", "gold", "answer_index")
SIDES = {
    "summarization": (
        ("document", "article", "text", "dialogue", "source", "body", "content"),
        ("summary", "highlights", "abstract", "target", "headline", "title"),
    ),
    "translation": (("source", "src", "en", "input"), ("target", "tgt", "output")),
}
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}  # of T5


def roles(task: str, rows: Dataset, given: dict[str, Any]) -> Roles:
    """The columns of ``rows`` (train) that ``task`` reads; those in ``given`` are settled.

    Raises:
        DataError: no column looks like what the task needs; it names them and says how to.
    """
    return GUESSES[task](rows, given)


def _text_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    texts = given.get("text") or []
    label = given.get("label") or yes_and_no(rows, texts) or label_of(rows, texts)
    answer = label if isinstance(label, str) else None
    strings = [c for c in rows.column_names if is_text(rows.features[c]) and c != answer]
    lower = {column.lower(): column for column in strings}
    if not texts:
        pairs = [[lower[a], lower[b]] for a, b in PAIRS if a in lower and b in lower]
        texts = pairs[0] if pairs else [_text(rows, strings)]
    more, form = _label_form(rows, label, given)
    keys = {"text": texts, "label": label, **more}
    return Roles(keys, texts, answer, form, others=_other_labels(rows, texts, answer, given))


def _image_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    image = image_column(rows, given)
    label = given.get("label") or yes_and_no(rows, [image]) or label_of(rows, [image])
    more, form = _label_form(rows, label, given)
    answer = label if isinstance(label, str) else None
    keys = {"image": image, "label": label, **more}
    others = _other_labels(rows, [image], answer, given)
    return Roles(keys, [image], answer, form, "image", others)


def _other_labels(
    rows: Dataset, inputs: list[str], answer: str | None, given: dict[str, Any]
) -> tuple[str, ...]:
    """What could have been guessed in place of ``answer``."""
    if given.get("label") or answer is None:
        return ()
    return tuple(column for column in labels_among(rows, inputs) if column != answer)


def _label_form(
    rows: Dataset, label: str | list[str], given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Keys beside ``label`` that say which problem it is, and the form of the answer."""
    more = {"problem": given["problem"]} if given.get("problem") else problem_of(rows, label)
    problem = more.get("problem", "single-label")
    if problem == "single-label":
        return more, "class"
    return more, "classes" if problem == "multi-label" and isinstance(label, str) else "none"


def _text(rows: Dataset, strings: list[str]) -> str:
    """By name, else the longest texts."""
    if (by_name := named(strings, TEXTS)) is not None:
        return by_name
    if not strings:
        raise unseen("texts", ["task.text"], rows)
    part = sample(rows)
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
        keys, asked = {"prompt": prompt, "completion": completion}, [prompt]
        more = given.get("input") or named(found, ("input",))  # Alpaca's
        if more and more != prompt and any(rows[more]):
            keys, asked = (
                {"prompt": prompt, "input": more, "completion": completion},
                [prompt, more],
            )
        return Roles(keys, asked, completion)
    return _plain_text(rows, given)


def _plain_text(rows: Dataset, given: dict[str, Any]) -> Roles:
    strings = [c for c in rows.column_names if is_text(rows.features[c])]
    text = given.get("text") or _text(rows, strings)
    return Roles({"text": text}, [text])


def _summarization(rows: Dataset, given: dict[str, Any]) -> Roles:
    return _sides("summarization", rows, given, {"prefix": "summarize: "})


def _translation(rows: Dataset, given: dict[str, Any]) -> Roles:
    """T5's prefix where both languages are its own; of a column translation, English first."""
    codes = sorted(languages(rows), key=lambda code: (code != "en", code))
    if len(codes) == 2:
        sides = [DOT + code for code in codes]
        if given.get("source") == sides[1] or given.get("target") == sides[0]:
            sides.reverse()
        given = {"source": sides[0], "target": sides[1]} | given
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
    endings = endings or _listed_endings(rows)
    context = given.get("context") or named(found, ("sent1", "context", "article", "passage"))
    question = given.get("question") or named(found, ("sent2", "question", "query"))
    context, question = (context, question) if context else (question, None)
    label = given.get("label") or named(found, RIGHT)
    if len(endings) < 2 or context is None or label is None:
        keys = ["task.context", "task.endings", "task.label"]
        raise unseen("a context, its endings and the number of the right one", keys, rows)
    keys = {"context": context, "question": question, "endings": endings, "label": label}
    asked = [context, question] if isinstance(endings, str) else [context, question, *endings]
    return Roles(keys, [c for c in asked if c], label)


def _listed_endings(rows: Dataset) -> str | list[str]:
    """A column of lists of texts, or one inside a column (ARC's ``choices.text``)."""
    lists = [c for c in rows.column_names if is_text(inner(rows.features[c]))]
    if (by_name := named(lists, LISTED)) is not None:
        return by_name
    outer = named(rows.column_names, LISTED)
    nested = rows.features[outer] if outer else None
    return f"{outer}.text" if isinstance(nested, dict) and "text" in nested else []


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
