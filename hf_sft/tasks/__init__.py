"""Tasks, one Hub pipeline tag per file; each is the ``task`` block of a recipe."""

from hf_sft.tasks.base import Task
from hf_sft.tasks.image_classification import ImageClassification
from hf_sft.tasks.text_classification import TextClassification

__all__ = ["ImageClassification", "Task", "TextClassification"]
