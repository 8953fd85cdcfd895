"""Numbers on the command line: what argparse says of those that cannot be."""

from argparse import ArgumentTypeError


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number of at least 1 is wanted, found {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    wrong = ArgumentTypeError(f"a number from 0 to 1 is wanted, found {text!r}")
    try:
        number = float(text)
    except ValueError:
        raise wrong from None
    if not 0 <= number <= 1:
        raise wrong
    return number
