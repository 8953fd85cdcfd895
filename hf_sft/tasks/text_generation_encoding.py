"""Rows of a causal language model: token ids, and which of them are learned."""

from typing import Any

from hf_sft.errors import DataError
from hf_sft.tasks.chat import asking, learned, rendered
from hf_sft.tasks.language_collator import IGNORED

Ids = list[int]


def encode_row(row: dict, number: int, task: Any, tokenizer: Any, limit: int | None) -> dict:
    """``input_ids`` and ``labels`` of one example, at most ``limit`` tokens from its start.

    The label of a token is the token itself where it is learned, else -100; so is the first,
    which nothing predicts. ``tokens``: how many there were; ``learned``: how many are left.

    Raises:
        DataError: the chat template does not take the row.
    """
    try:
        ids, labels = _parts(row, task, tokenizer)
    except DataError as error:
        raise DataError(f"data row {number + 1}: {error}") from error
    tokens, ids, labels = len(ids), ids[:limit], labels[:limit]
    labels[:1] = [IGNORED] * len(labels[:1])
    count = sum(label != IGNORED for label in labels)
    return {"input_ids": ids, "labels": labels, "tokens": tokens, "learned": count}


def _parts(row: dict, task: Any, tokenizer: Any) -> tuple[Ids, Ids]:
    eos = [tokenizer.eos_token_id]
    if task.messages:
        return _conversation(row[task.messages], tokenizer)
    if task.text:
        ids = opening(row[task.text], tokenizer) + eos
        return ids, list(ids)
    prompt = opening(task.asked(row), tokenizer)
    completion = tokenizer(row[task.completion], add_special_tokens=False)["input_ids"] + eos
    return prompt + completion, [IGNORED] * len(prompt) + completion


def _conversation(messages: list[dict], tokenizer: Any) -> tuple[Ids, Ids]:
    """Token by token: learned where it starts inside what the assistant says."""
    text, spans = learned(messages, tokenizer)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = found["input_ids"]
    labels = [
        token if any(start <= at < end for start, end in spans) else IGNORED
        for token, (at, _) in zip(ids, found["offset_mapping"], strict=True)
    ]
    if messages[-1]["role"] == "assistant" and ids[-1] != tokenizer.eos_token_id:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return ids, labels


def opening(text: str, tokenizer: Any) -> Ids:
    """The tokens a text starts with, the tokenizer's start token included, its end token not."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def prompt_ids(row: dict, task: Any, tokenizer: Any) -> Ids:
    """What the model is given to go on from."""
    if task.messages:
        text = rendered(asking(row[task.messages]), tokenizer, asks=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return opening(row[task.text] if task.text else task.asked(row), tokenizer)
