"""A wish to stop, by SIGTERM or SIGINT: at once, or put off until what was done is saved."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TWICE = 0.2  # s: `timeout` signals a process and then its group; nobody presses Ctrl+C so fast
_FIRST = "hf-sft: {}: the step is finished and saved first; once more stops at once.\n"


class Stopped(KeyboardInterrupt):
    """Somebody wants this process to end.

    Attributes:
        number: of the signal.
        saved: the checkpoint where training will go on; None where none was written for this.
        later: the command that does the rest, where all but a push is done.
    """

    later: str | None = None

    def __init__(self, number: int = signal.SIGINT, saved: Path | None = None):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved


class _Wish:
    """What this process has been asked, and whether it may put it off; there is one handler."""

    asked: int | None = None
    heard: float | None = None  # when the first signal came
    patient = False
    may_wait = False
    process: int | None = None  # a loader's workers have the handler too, and wait without a word

    def hear(self, number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), self.heard
        if before is not None and (self.patient or now - before < TWICE):
            return
        self.heard = now
        if not self.may_wait or self.asked is not None:
            raise Stopped(number)
        self.asked = number
        own = os.getpid() == self.process and os.environ.get("RANK", "0") == "0"
        if own:  # print may be what was interrupted
            os.write(2, _FIRST.format(signal.Signals(number).name).encode())


_wish = _Wish()


@contextmanager
def listening(patient: bool = False) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT raise `Stopped`, or wait where `put_off` says so.

    ``patient``: all but the first are ignored. So is it with a process whose parent ends it by
    SIGKILL where it has to: whoever signals every process would end it by the parent's signal.
    Only the main thread can hear signals; in another one nothing changes. A signal that whoever
    started this process has it ignore (a shell ``&``: SIGINT) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _wish.asked, _wish.heard, _wish.process = None, None, os.getpid()
    _wish.patient = patient
    before = {number: signal.getsignal(number) for number in SIGNALS}
    left = (None, signal.SIG_IGN)  # somebody else's, which could not be put back; meant to be deaf
    before = {number: handler for number, handler in before.items() if handler not in left}
    for number in before:
        signal.signal(number, _wish.hear)
    try:
        yield
    finally:
        _wish.asked = None  # nobody has asked what this process does next
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_off() -> Iterator[None]:
    """Inside, the first signal only makes `asked` tell it; the second one stops at once.

    Raises:
        Stopped: at the end, where nobody has acted upon the first.
    """
    _wish.may_wait = True
    try:
        yield
    finally:
        _wish.may_wait = False
    if _wish.asked is not None:
        raise Stopped(_wish.asked)


def asked() -> int | None:
    """The number of the signal that waits, if one does."""
    return _wish.asked


def may_wait() -> bool:
    """Whether a signal would wait now."""
    return _wish.may_wait


def turn_deaf() -> None:
    """For a process of this one's: who signals the whole group means the parent, which ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def farewell(stop: KeyboardInterrupt, anew: bool | None) -> int:
    """Say in one message what was interrupted and how to go on; the exit code, 128 + the signal.

    ``anew``: the command had ``--overwrite``, which would begin again; None: it keeps nothing.
    """
    stop = stop if isinstance(stop, Stopped) else Stopped()
    same = "the same command without --overwrite" if anew else "the same command"
    last = "its last checkpoint, or starts anew where there is none"
    rest = f"{same} goes on from {stop.saved.name if stop.saved else last}."
    if anew is None:
        rest = "give the command again."
    if stop.later is not None:
        rest = f"nothing local was lost; try again with: {stop.later}"
    if os.environ.get("RANK", "0") == "0":
        print(f"hf-sft: interrupted by {stop}; {rest}", file=sys.stderr)  # noqa: T201
    return 128 + stop.number
