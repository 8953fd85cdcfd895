"""Imports of a command: nothing of them is garbage, so the collector need not walk over them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Inside, the first imports of a process run without Python's garbage collector.

    Modules, functions and classes stay for good, about a million objects, and the collector would
    walk over all of them again and again: a quarter of the time from the command to the first step.
    At the end `gc.freeze` sets them aside for later collections too. Where torch is imported
    already, somebody else's program is running, and its collector is left alone.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
