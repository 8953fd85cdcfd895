"""TrainingArguments of a recipe: its ``training`` block, and what a run needs beside it."""

from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_sft.errors import RecipeError
from hf_sft.output_folder import CHECKPOINTS
from hf_sft.recipe import Recipe

DEFAULTS = {
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "report_to": "none",
}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The block as written over the defaults; pushing is left to ``publish``.

    Raises:
        RecipeError: TrainingArguments refuses the combination, or the task does.
    """
    watching = {
        "eval_strategy": "epoch",
        "metric_for_best_model": recipe.task.selection_metric,
        "greater_is_better": recipe.task.greater_is_better,
    }
    selection = {**watching, "load_best_model_at_end": True}
    needed = {
        "output_dir": str(recipe.output_dir / CHECKPOINTS),
        "remove_unused_columns": False,  # the task's encode keeps exactly what the model takes
        "batch_eval_metrics": True,
        "prediction_loss_only": False,
        "push_to_hub": False,
        "resume_from_checkpoint": None,
        **of_task(recipe.task),
    }
    alike = {"train_sampling_strategy": "group_by_length"} if recipe.task.unequal else {}
    chosen = watching if "score" in recipe.freeze.watches else {}
    chosen = selection if recipe.keeps_best else chosen
    if chosen and (metric := recipe.training.get("metric_for_best_model")):
        chosen = {**chosen, "greater_is_better": _rises(recipe.task, metric)}
    kind = Seq2SeqTrainingArguments if recipe.task.writes else TrainingArguments
    settings = {**DEFAULTS, **alike, **chosen, **recipe.training, **needed}
    try:
        args = kind(**settings)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"{recipe.path.name}: training: {error}") from error
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False
    return args


def _rises(task: Any, metric: str) -> bool:
    """Whether a higher value is better."""
    name = metric.removeprefix("eval_")
    if name == task.selection_metric:
        return task.greater_is_better
    return not name.endswith("loss") and name not in task.lower_is_better


def of_task(task: Any) -> dict[str, Any]:
    """What a task decides of how its model is evaluated."""
    found: dict[str, Any] = {"predict_with_generate": True} if task.writes else {}
    found["include_for_metrics"] = ["loss"]  # to weigh batches by their tokens
    if task.in_order:
        found["include_for_metrics"] += ["inputs"]  # to see that they are the rows next in line
    return found | ({} if task.label_names is None else {"label_names": task.label_names})
