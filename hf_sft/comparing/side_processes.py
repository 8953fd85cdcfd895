"""Runs in processes of their own, several at a time; one that fails takes no other with it."""

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import torch

from hf_sft.errors import UserError
from hf_sft.output_folder import keep_report_only
from hf_sft.recipe import Recipe
from hf_sft.running import run

PATIENCE = 20  # seconds that a run has to end when it is told to
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

    Runs that are under way are told to end when this one is interrupted.
    """
    ours = context()
    waiting, under_way = list(orders), {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                order = waiting.pop(0)
                order.log.parent.mkdir(parents=True, exist_ok=True)
                process = ours.Process(target=_obey, args=(order,))
                process.start()
                under_way[process.sentinel] = order, process
            for sentinel in connection.wait(list(under_way)):
                order, process = under_way.pop(sentinel)
                process.join()
                done(order, problem(process.exitcode, order.log))
    finally:
        for _, process in under_way.values():
            process.terminate()
        for _, process in under_way.values():
            process.join(PATIENCE)
            process.kill()


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
    redirect(order.log)
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    try:
        recipe = Recipe.load(order.path, order.overrides, base=order.base)
        print(run(recipe, overwrite=order.overwrite).table())  # noqa: T201 (into the log)
        if not order.keep_model:
            keep_report_only(recipe.output_dir)
    except UserError as error:
        print(f"{MESSAGE}{error}", file=sys.stderr)  # noqa: T201
        sys.exit(USERS)
    except Exception:  # whatever it is: it is told, with its place in the log
        traceback.print_exc()
        sys.exit(1)


def redirect(file: Path) -> None:
    """In a process of its own: print into ``file``, end with the process that started this one."""
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
