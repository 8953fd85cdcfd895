"""What a person is told, in messages, in the log and at a terminal: nothing hidden, no token."""

import logging
from typing import Any, TextIO

from hf_sft.tokens import without_tokens
from hf_sft.visible import visible


def told(text: object) -> str:
    """``text`` with control characters as escapes, and without tokens."""
    return without_tokens(visible(text))


class Told(logging.Formatter):
    """The log's messages, as `told` writes them."""

    def format(self, record: logging.LogRecord) -> str:
        return told(super().format(record))


class Terminal:
    """A terminal that takes text from data: to files and pipes it goes as it is."""

    def __init__(self, out: TextIO):
        self.out = out

    def write(self, text: str) -> Any:
        return self.out.write(told(text.replace("\r\n", "\n")) if self.out.isatty() else text)
