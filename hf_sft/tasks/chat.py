"""Conversations as the text of a chat template, and which parts of it the assistant says."""

from typing import Any

from datasets import Dataset
from jinja2 import TemplateError

from hf_sft.errors import DataError
from hf_sft.tasks.text_inputs import SILENCE

Span = tuple[int, int]  # characters [start, end)


def rendered(messages: list[dict], tokenizer: Any, asks: bool = False) -> str:
    """The conversation in the tokenizer's chat template; ``asks``: the assistant is to go on.

    Raises:
        DataError: the template refuses these roles, or their order.
    """
    turns = [{"role": one["role"], "content": one["content"]} for one in messages]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
    except (TemplateError, TypeError, ValueError, IndexError) as error:
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise DataError(
            f"the chat template does not take these turns ({roles}): {error}. Correct the rows, or "
            "set task.chat_template."
        ) from error


def learned(messages: list[dict], tokenizer: Any) -> tuple[str, list[Span]]:
    """The text of a conversation, and the spans of it that the assistant answers with.

    A span is what a turn of the assistant adds to the text in which the assistant was asked to go
    on, its end-of-turn token included, white space after it left out. An assistant's turn that
    opens the conversation answers nothing and is not learned.

    Raises:
        DataError: the template writes earlier turns otherwise when later ones follow.
    """
    text, spans = rendered(messages, tokenizer), []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number == 0:
            continue
        before = rendered(messages[:number], tokenizer, asks=True)
        said = rendered(messages[: number + 1], tokenizer)
        if not (said.startswith(before) and text.startswith(said.rstrip())):
            raise DataError(
                f"the chat template writes turn {number + 1} otherwise once more follows, so that "
                "its answer cannot be found. Set task.chat_template to one that does not."
            )
        spans.append((len(before), len(said.rstrip())))
    return (text.rstrip() if messages[-1]["role"] == "assistant" else text), spans


def asking(messages: list[dict]) -> list[dict]:
    """The conversation up to what the assistant is to answer: without its own last turn."""
    last = len(messages) - (messages[-1]["role"] == "assistant")
    return messages[: max(1, last)]


def problem(messages: Any, answered: bool) -> str | None:
    """What is wrong with a conversation; with ``answered``, the assistant must answer something."""
    if not isinstance(messages, list) or not messages:
        return f"is {str(messages)[:40]!r}; a list of {{role, content}} is wanted"
    for number, one in enumerate(messages, 1):
        known = isinstance(one, dict) and all(isinstance(one.get(k), str) for k in KEYS)
        if not known:
            return (
                f"turn {number} is {str(one)[:60]!r}; a role and a content, both text, are wanted"
            )
    if answered and not any(one["role"] == "assistant" for one in messages[1:]):
        return "has no turn of the assistant after the first, so that nothing can be learned"
    silent = [n for n, one in enumerate(messages, 1) if n > 1 and _says_nothing(one)]
    if answered and silent:
        return f"has an empty answer (turn {silent[0]}): {SILENCE}"
    return None


def _says_nothing(turn: dict) -> bool:
    return turn["role"] == "assistant" and not turn["content"].strip()


KEYS = ("role", "content")
SHARED = ("from", "value")  # of ShareGPT's turns
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}


def with_roles(rows: Dataset, column: str) -> Dataset:
    """Rows whose turns {from, value}, as ShareGPT has them, have become {role, content}.

    human is the user, gpt (chatgpt, model) the assistant; other roles keep their names.
    """
    turns = getattr(rows.features.get(column), "feature", None)
    if not isinstance(turns, dict) or not set(SHARED) <= set(turns) or set(KEYS) <= set(turns):
        return rows
    made = [found and [_turn(one) for one in found] for found in rows[column]]
    named = f"{column} with roles"  # a table without a column has no rows
    rows = rows.add_column(named, made).remove_columns(column)
    return rows.rename_column(named, column)


def _turn(one: dict | None) -> dict | None:
    if one is None:
        return None
    name = one["from"]
    return {"role": ROLES.get(name, name), "content": one["value"]}
