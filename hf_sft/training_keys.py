"""The ``training`` block: TrainingArguments key for key, with the checks it does not make."""

import dataclasses
import enum
import math
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from hf_sft.errors import listing, nearest

KEYS = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
MANY = math.inf
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, MANY),
    "weight_decay": (0, MANY),
    "max_grad_norm": (0, MANY),
    "warmup_steps": (0, MANY),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, MANY),
    "label_smoothing_factor": (0, 1),
    "per_device_train_batch_size": (1, MANY),
    "per_device_eval_batch_size": (1, MANY),
    "gradient_accumulation_steps": (1, MANY),
    "eval_accumulation_steps": (1, MANY),
    "save_total_limit": (1, MANY),
    "dataloader_num_workers": (0, MANY),
    "dataloader_prefetch_factor": (1, MANY),
    "seed": (0, 2**32 - 1),  # numpy takes no other
    "data_seed": (0, 2**32 - 1),
}
ABOVE_ZERO = {  # Trainer takes 0 as something else: never, as logging_steps, only at the end
    "num_train_epochs": "with 0 nothing would be trained",
    "logging_steps": "logging_strategy: 'no' logs nothing",
    "eval_steps": "eval_strategy: 'no' evaluates nothing",
    "save_steps": "save_strategy: 'no' saves nothing",
}
WRITING = {  # of Seq2SeqTrainingArguments; the saved model is to write as it was evaluated
    "generation_max_length": "Set task.generation.max_length",
    "generation_num_beams": "Set task.generation.num_beams",
    "generation_config": "Set task.generation",
    "predict_with_generate": "Leave it out: tasks that write do so",
}
OURS = {"resume_from_checkpoint": bool | None}  # which checkpoint, a run finds out by itself


def check_training(raw: Any, problems: list[str]) -> dict[str, Any]:
    """The block with values of their types; what is wrong is told in ``problems``."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.append(f"training: a mapping of TrainingArguments is wanted, found {raw!r}.")
        return {}
    hints = typing.get_type_hints(TrainingArguments) | OURS
    checked = {}
    for key, value in raw.items():
        if key in WRITING:
            problems.append(f"training.{key}: the task decides that. {WRITING[key]}.")
            continue
        if key not in KEYS:
            problems.append(
                f"training.{key}: no such key of TrainingArguments (value {value!r})."
                f"{nearest(key, KEYS)}"
            )
            continue
        try:
            checked[key] = _typed(hints[key], value)
        except ValueError as error:
            problems.append(f"training.{key}: {_reason(error)}, found {value!r}.")
            continue
        if problem := _range_problem(key, checked[key]) or _choice_problem(hints[key], value):
            problems.append(f"training.{key}: {problem}")
    return checked


def metric_problems(blocks: dict[str, Any]) -> list[str]:
    """Trainer looks for ``metric_for_best_model`` only after the first epoch."""
    metric, task = blocks["training"].get("metric_for_best_model"), blocks.get("task")
    if metric is None or task is None:
        return []
    known = ["loss", *task.metric_names]
    if metric.removeprefix("eval_") in known:
        return []
    return [
        f"training.metric_for_best_model: {metric!r} is not measured. Choices: {listing(known)}."
        f"{nearest(metric, known)}"
    ]


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, bool) and bool not in _members(hint):
        raise ValueError(f"should be {_named(hint)}")  # pydantic would read true as 1
    return TypeAdapter(hint).validate_python(value)


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Input ")
    return str(error)


def _range_problem(key: str, value: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    if key in ABOVE_ZERO and value <= 0:
        return f"should be above 0 ({ABOVE_ZERO[key]}), found {value!r}."
    if key == "max_steps" and value != -1 and value < 1:  # 0 would be one step at rate 0
        return f"should be at least 1, or -1 (num_train_epochs decides), found {value!r}."
    least, most = RANGES.get(key, (-MANY, MANY))
    finite = isinstance(value, int) or math.isfinite(value)  # 10**400 is, and is no float
    if not (least <= value <= most and finite):
        limit = f"at least {least}" if most == MANY else f"between {least} and {most}"
        return f"should be {limit if key in RANGES else 'a finite number'}, found {value!r}."
    return None


def _choice_problem(hint: Any, value: Any) -> str | None:
    """An enumeration that TrainingArguments would look the value up in."""
    for member in _members(hint):
        if isinstance(member, type) and issubclass(member, enum.Enum):
            known = [choice.value for choice in member]
            if value not in known:
                return (
                    f"{value!r} is not known. Choices: {listing(known, 50)}.{nearest(value, known)}"
                )
    return None


def _members(hint: Any) -> tuple:
    return typing.get_args(hint) or (hint,)


def _named(hint: Any) -> str:
    return " or ".join(getattr(m, "__name__", str(m)) for m in _members(hint))
