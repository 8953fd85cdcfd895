"""Imports of a command: nothing of them is garbage, so the collector need not walk over them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_own: bool | None = None  # whether this process is a command; None before it has imported anything


@contextmanager
def importing() -> Iterator[None]:
    """Inside, the imports of a command run without Python's garbage collector.

    Modules, functions and classes stay for good, about a million objects, and the collector would
    walk over all of them again and again: a quarter of the time from the command to the first step.
    At the end `gc.freeze` sets them aside for later collections too. Where torch was imported
    before, somebody else's program is running, and its collector is left alone.
    """
    global _own
    if _own is None:
        _own = "torch" not in sys.modules
    if not _own or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
