"""The mistakes a user can fix: one message, no traceback, exit code 2."""

import difflib
from collections.abc import Iterable

from hf_sft.told import told
from hf_sft.visible import one_line


class UserError(Exception):
    """A mistake outside the program; the message names the place, the value and the remedy.

    As text, nothing in it that comes from data can steer a terminal, and no token is in it.
    """

    def __str__(self) -> str:
        return told(super().__str__())


class OneProcessError(UserError):
    """What one process of several may meet alone: it tells it, whatever its rank."""


class RecipeError(UserError):
    """The recipe, or an override on the command line, cannot be understood."""


class DataError(UserError):
    """The data set is missing, or its content does not fit the task."""


class SourceError(UserError):
    """The pretrained model is missing, or would not be loaded whole."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Say which of ``choices`` is meant: `` Did you mean 'x'?``, or nothing when none is close."""
    close = difflib.get_close_matches(
        str(name), [str(choice) for choice in choices], n=1, cutoff=0.6
    )
    return f" Did you mean {close[0]!r}?" if close else ""


def listing(names: Iterable[object], most: int = 12) -> str:
    """Write names as one line, cut after ``most`` with the count of the rest."""
    names = [one_line(name) for name in names]
    rest = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
