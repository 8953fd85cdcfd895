"""How many processes were asked for, where the launcher silently starts fewer."""

import logging
from pathlib import Path

import psutil
import yaml

log = logging.getLogger(__name__)


def warn_if_fewer(running: int) -> None:
    """Say so when ``accelerate launch`` was asked for more processes than run, and how to get them.

    accelerate 1.15 starts one process for ``--cpu --num_processes 2`` and for a MULTI_CPU
    configuration unless mpirun is there.
    """
    asked = asked_of_launcher()
    if asked is not None and asked != running:
        log.warning(
            "%d processes were asked for, %d runs: accelerate starts CPU processes only through "
            "MPI. For %d CPU processes: torchrun --nproc_per_node %d -m hf_sft run RECIPE, or "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes %d -m hf_sft run "
            "RECIPE (recipes/accelerate/cpu_2.yaml).",
            asked, running, asked, asked, asked,
        )  # fmt: skip


def asked_of_launcher() -> int | None:
    """``num_processes`` of the ``accelerate launch`` that started this process, if one did."""
    try:
        command = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    if "launch" not in command or not any("accelerate" in Path(part).name for part in command[:3]):
        return None
    before = command[command.index("launch") : _end_of_options(command)]
    count = _option(before, "--num_processes") or _option(before, "--num-processes")
    if count is not None and count.isdecimal():
        return int(count)
    return _configured(_option(before, "--config_file") or _option(before, "--config-file"))


def _end_of_options(command: list[str]) -> int:
    for i, part in enumerate(command):
        if part in ("-m", "--module") or Path(part).name in ("hf_sft", "hf-sft"):
            return i
    return len(command)


def _option(command: list[str], name: str) -> str | None:
    for part, following in zip(command, [*command[1:], ""], strict=True):
        if part == name:
            return following
        if part.startswith(f"{name}="):
            return part.partition("=")[2]
    return None


def _configured(file: str | None) -> int | None:
    try:
        settings = yaml.safe_load(Path(file).read_text("utf-8")) if file else None
    except (OSError, yaml.YAMLError):
        return None
    return settings.get("num_processes") if isinstance(settings, dict) else None
