"""Which script texts are in, and their words where a script has no spaces."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

LOOKED_AT = 100  # texts
# Scripts without spaces between words: a letter with its marks counts as one.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def script_of(letter: str) -> str:
    """LATIN, CJK, HIRAGANA, THAI, …: how the names of its letters begin in Unicode."""
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]


def scripts(texts: Iterable[str]) -> Counter[str]:
    """How many letters of each script the first texts have."""
    few = (text for text, _ in zip(texts, range(LOOKED_AT), strict=False))
    return Counter(script_of(c) for text in few for c in text if c.isalpha())


def foreign_share(texts: Iterable[str]) -> float:
    """The share of letters other than a to z, of either case, in the first texts."""
    few = [text for text, _ in zip(texts, range(LOOKED_AT), strict=False)]
    letters = [c for text in few for c in text if c.isalpha()]
    return sum(not c.isascii() for c in letters) / max(1, len(letters))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of every script, in small letters.

    Of a script without spaces (Chinese, Japanese, Thai, …), every letter by itself.
    """
    found: list[str] = []
    inside = False  # the last word goes on
    for c in unicodedata.normalize("NFC", text).lower():
        kind = unicodedata.category(c)[0]
        if kind == "M" and inside:
            found[-1] += c
        elif kind not in "LN":
            inside = False
        elif script_of(c) in UNSPACED:
            found.append(c)
            inside = True
        elif inside and script_of(found[-1][0]) not in UNSPACED:
            found[-1] += c
        else:
            found.append(c)
            inside = True
    return found
