"""Text from data as a person may see it: what a terminal would obey stands there as an escape."""

import re

# C0 and C1 but tab and line feed; lone surrogates; signs that turn the direction of what follows;
# what ends a line in YAML and JavaScript, not in Python's or a person's eyes.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff]"
)


def visible(text: object) -> str:
    r"""``text`` with control characters as ``\x1b``, ``\u202e``, …; its line ends and tabs stay.

    A label, a file name or a cell of somebody's data may hold the codes by which terminals move,
    erase and write (ECMA-48), or turn the order of letters (Unicode TR36, 3.4).
    """
    return UNSEEN.sub(_escape, str(text))


def one_line(text: object) -> str:
    """The same, where a line end would begin a line of its own."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def _escape(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
