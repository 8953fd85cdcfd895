"""How many processes were asked for, where the launcher silently starts fewer."""

import logging
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
import yaml
from accelerate.commands.config.config_args import default_yaml_config_file

from hf_sft.errors import UserError

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
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes %d -m hf_sft "
            "run RECIPE (recipes/accelerate/cpu_2.yaml).",
            asked, running, asked, asked, asked,
        )  # fmt: skip


def refuse_sharded(trainer: Any) -> None:
    """A recipe's run looks at whole models after training, which a sharded one leaves nowhere.

    Raises:
        UserError: FSDP or DeepSpeed is active.
    """
    if trainer.is_fsdp_enabled:
        raise UserError(
            "hf-sft run under FSDP: its report compares the whole model with its source, and each "
            "process holds a part. Train with TransferTrainer in a script of your own "
            "(docs/processes.md), or launch with recipes/accelerate/gpu_multi.yaml (DDP)."
        )
    if trainer.is_deepspeed_enabled:
        raise UserError(
            "hf-sft run under DeepSpeed: its report compares the whole model with its source, and "
            "DeepSpeed's engine holds the weights. Launch with "
            "recipes/accelerate/gpu_multi.yaml (DDP)."
        )


def asked_of_launcher() -> int | None:
    """``num_processes`` of the ``accelerate launch`` that started this process, if one did."""
    try:
        return asked_in(psutil.Process().parent().cmdline())
    except (psutil.Error, AttributeError):
        return None


def asked_in(command: list[str]) -> int | None:
    """``num_processes`` in a command line of accelerate's launcher; None where it is none.

    The launcher is called ``accelerate launch``, ``accelerate-launch`` or
    ``python -m accelerate.commands.launch``; its options end where the script begins.
    """
    start = _start_of_options(command)
    if start is None:
        return None
    options = command[start : _end_of_options(command, start)]
    count = _option(options, "--num_processes") or _option(options, "--num-processes")
    if count is not None and count.isdecimal():
        return int(count)
    return _configured(_option(options, "--config_file") or _option(options, "--config-file"))


def _start_of_options(command: list[str]) -> int | None:
    for i, (part, following) in enumerate(zip_longest(command, command[1:])):
        name = Path(part).name
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and following == "launch":
            return i + 2
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return i + 1
        if i >= 4:
            return None
    return None


def _end_of_options(command: list[str], start: int) -> int:
    for i in range(start, len(command)):
        if command[i] in ("-m", "--module") or Path(command[i]).name in ("hf_sft", "hf-sft"):
            return i
    return len(command)


def _option(command: list[str], name: str) -> str | None:
    for part, following in zip_longest(command, command[1:]):
        if part == name:
            return following
        if part.startswith(f"{name}="):
            return part.partition("=")[2]
    return None


def _configured(file: str | None) -> int | None:
    """``num_processes`` in a configuration file, by default in accelerate's own."""
    try:
        settings = yaml.safe_load(Path(file or default_yaml_config_file).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return settings.get("num_processes") if isinstance(settings, dict) else None
