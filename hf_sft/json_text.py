"""Json out of files, with every way in which it can be wrong as one exception."""

import json
from typing import Any


def parsed(text: str) -> Any:
    r"""What the text says.

    Raises:
        ValueError: it is no json, nests deeper than Python reads, or holds half of a character
            (a surrogate without its other half, as ``\ud800``), which no file could be given.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested deeper than can be read") from error
    if "\\u" in text:
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise ValueError(f"{half} is half of a character; write both halves or none") from error
    return found
