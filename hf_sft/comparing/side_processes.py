"""Runs in processes of their own, several at a time; one that fails takes no other with it."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path

import torch

from hf_sft.errors import UserError
from hf_sft.interruption import SIGNALS, farewell, listening
from hf_sft.output_folder import keep_report_only
from hf_sft.recipe import Recipe
from hf_sft.running import run

_SAVING = "hf-sft: what is under way saves its step first; once more ends it at once."
MESSAGE = "hf-sft: "  # before what a user can put right, as the command prints it
USERS = 2  # exit code of such a mistake


@dataclass(frozen=True)
class Order:
    """One run: its recipe, the log that takes all that it prints, and what is left of it.

    Attributes:
        threads: of torch; None leaves them as they are.
    """

    path: Path
    base: Path
    overrides: tuple[str, ...]
    log: Path
    overwrite: bool
    keep_model: bool
    threads: int | None


def run_all(orders: Sequence[Order], jobs: int, done: Callable[[Order, str | None], None]) -> None:
    """Every order, ``jobs`` at a time; ``done`` hears of each end, with what went wrong or None.

    When this process is interrupted, runs that are under way save the step they are at and end.
    """
    ours = context()
    waiting, under_way = list(orders), {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                order = waiting.pop(0)
                order.log.parent.mkdir(parents=True, exist_ok=True)
                process = ours.Process(target=_obey, args=(order,))
                with not_interrupted():  # else a run could be under way that nobody knows of
                    process.start()
                    under_way[process.sentinel] = order, process
            for sentinel in connection.wait(list(under_way)):
                order, process = under_way.pop(sentinel)
                process.join()
                done(order, problem(process.exitcode, order.log))
    finally:
        end(process for _, process in under_way.values())


def end(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """Have them save the step they are at, and wait for it; a second signal ends them at once."""
    told = [process for process in processes if process.is_alive()]
    try:
        for process in told:
            process.terminate()
        if told:
            print(_SAVING, file=sys.stderr)  # noqa: T201
        for process in told:
            process.join()
    finally:
        for process in told:
            process.kill()


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Inside, a signal waits; what is started here is born deaf to it, until it `obeys`.

    So are helpers of multiprocessing: a signal to the whole group would take runs from them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it lets signals in again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def threads_each(jobs: int) -> int | None:
    """Torch's threads of one of ``jobs`` runs; None for a single one, or where the user says."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, torch.get_num_threads() // jobs)


def context() -> multiprocessing.context.BaseContext:
    """Processes that begin fresh, with the imports done once where forking is safe."""
    if "forkserver" not in multiprocessing.get_all_start_methods() or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_sft.comparing.side_processes"])
    return context


def _obey(order: Order) -> None:
    """Train as the order says, in a process of its own; its exit code is the command's."""
    with obeying(order.log):
        if order.threads is not None:
            torch.set_num_threads(order.threads)
        recipe = Recipe.load(order.path, order.overrides, base=order.base)
        print(run(recipe, overwrite=order.overwrite).table())  # noqa: T201 (into the log)
        if not order.keep_model:
            keep_report_only(recipe.output_dir)


@contextmanager
def obeying(log: Path) -> Iterator[None]:
    """In a process of its own: print into ``log``, hear signals, exit with the command's code."""
    try:
        with listening(patient=True):
            _redirect(log)
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            yield
    except UserError as error:
        print(f"{MESSAGE}{error}", file=sys.stderr)  # noqa: T201
        sys.exit(USERS)
    except KeyboardInterrupt as stop:
        sys.exit(farewell(stop, anew=False))
    except Exception:  # whatever it is: it is told, with its place in the log
        traceback.print_exc()
        sys.exit(1)


def _redirect(file: Path) -> None:
    """Print into ``file``, end with the process that started this one."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # an interrupt at the terminal is the parent's, which then ends this run
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    log = file.open("w", encoding="utf-8")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A run whose comparison was killed would be begun a second time beside itself."""
    parent.join()
    os._exit(1)


def problem(code: int | None, log: Path) -> str | None:
    """What to tell about an end; None where all went well."""
    if code == 0:
        return None
    text = log.read_text("utf-8", errors="replace").strip() if log.is_file() else ""
    if code == USERS and MESSAGE in text:
        return text[text.rindex(MESSAGE) + len(MESSAGE) :]
    if code is not None and code < 0:
        return f"it was ended by signal {-code} (9: perhaps out of memory); see '{log}'."
    last = text.splitlines()[-1] if text else f"exit code {code}"
    return f"{last} (see '{log}')"
