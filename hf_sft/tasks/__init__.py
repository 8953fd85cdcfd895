"""Tasks, one Hub pipeline tag per file; each is the ``task`` block of a recipe."""

from hf_sft.tasks.base import Task
from hf_sft.tasks.fill_mask import FillMask
from hf_sft.tasks.image_classification import ImageClassification
from hf_sft.tasks.image_segmentation import ImageSegmentation
from hf_sft.tasks.masked_image_modeling import MaskedImageModeling
from hf_sft.tasks.multiple_choice import MultipleChoice
from hf_sft.tasks.object_detection import ObjectDetection
from hf_sft.tasks.question_answering import QuestionAnswering
from hf_sft.tasks.summarization import Summarization
from hf_sft.tasks.text_classification import TextClassification
from hf_sft.tasks.text_generation import TextGeneration
from hf_sft.tasks.token_classification import TokenClassification
from hf_sft.tasks.translation import Translation

__all__ = [
    "FillMask",
    "ImageClassification",
    "ImageSegmentation",
    "MaskedImageModeling",
    "MultipleChoice",
    "ObjectDetection",
    "QuestionAnswering",
    "Summarization",
    "Task",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "Translation",
]
