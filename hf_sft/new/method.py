"""What a new recipe starts with for each task: a source, a method, and why."""

from dataclasses import dataclass, field
from typing import Any

HOLD_FUNCTION = {"type": "similarity", "weight": 10.0}
FAST_HEAD = [{"role": "head", "multiplier": 100}]
BEST_PAIR = (
    "The head alone first, then everything, held to the source's similarities: in docs/evidence.md "
    "(heads on averaged features) the pair that kept most of the source at no cost to the "
    "target that was seen. With another head, compare it with penalty=null freeze=null."
)
PAIR_ON_IMAGES = (
    "The head alone first, then everything, held to the source's similarities: in docs/evidence.md "
    "the best pair for images near the source's (MNIST to digits); far from them (ImageNet to "
    "MNIST) it cost 3.9 points against fine-tuning. Compare it with penalty=null freeze=null."
)
USUAL = (
    "The head alone first, then everything, with a pull to the source's weights: a usual start "
    "that was not measured for this task."
)
OLD_HEAD = (
    "The source's own head goes on; everything trains, with a pull to the source's weights: a "
    "usual start that was not measured for this task."
)


@dataclass(frozen=True)
class Method:
    """Defaults of one task.

    Attributes:
        model: a widely used source on the Hub.
        blocks: penalty, policy and learning rates.
        training: of TrainingArguments; the number of epochs follows from the data.
        why: a comment above them.
        limit: tokens that this source reads; None where longer texts are read in windows.
        models: the source for some of the values of ``task.problem``.
    """

    model: str
    blocks: dict[str, Any]
    training: dict[str, Any]
    why: str = BEST_PAIR
    limit: int | None = 512
    models: dict[str, str] = field(default_factory=dict)

    def source(self, task: dict[str, Any]) -> str:
        """The source for a ``task`` block."""
        return self.models.get(str(task.get("problem")), self.model)


TUNED = {
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 32,
    "eval_strategy": "epoch",
}
BATCH = {**TUNED, "per_device_train_batch_size": 16}
HELD = {"penalty": HOLD_FUNCTION, "freeze": {"type": "lp-ft"}, "learning_rates": FAST_HEAD}
PROBED = {
    "penalty": {"type": "l2-sp", "lambda": 0.01},
    "freeze": {"type": "lp-ft"},
    "learning_rates": [{"role": "head", "multiplier": 10}],
}
UNMEASURED = (
    "Everything trains, the new parts faster, with a pull to the source's weights: a usual start "
    "that was not measured for this task. Boxes and masks take many epochs."
)
FOUND = {
    "penalty": {"type": "l2-sp", "lambda": 0.01},
    "learning_rates": [{"role": "head", "multiplier": 10}],
}
PULLED = {"penalty": {"type": "l2-sp", "lambda": 0.01}}
METHODS = {
    "text-classification": Method("sentence-transformers/all-MiniLM-L6-v2", HELD, TUNED),
    "image-classification": Method("timm/resnet18.a1_in1k", HELD, TUNED, PAIR_ON_IMAGES),
    "object-detection": Method(
        "facebook/detr-resnet-50",
        FOUND,
        BATCH | {"learning_rate": 2e-5, "per_device_train_batch_size": 4, "num_train_epochs": 40},
        UNMEASURED,
        None,
    ),
    "image-segmentation": Method(
        "nvidia/segformer-b0-finetuned-ade-512-512",
        FOUND,
        BATCH | {"learning_rate": 6e-5, "per_device_train_batch_size": 4, "num_train_epochs": 40},
        UNMEASURED,
        None,
        {"instance": "facebook/mask2former-swin-tiny-coco-instance"},
    ),
    "masked-image-modeling": Method(
        "google/vit-base-patch16-224-in21k", PULLED, BATCH, OLD_HEAD, None
    ),
    "token-classification": Method(
        "distilbert/distilbert-base-cased", PROBED, BATCH | {"learning_rate": 5e-5}, USUAL, None
    ),
    "question-answering": Method(
        "distilbert/distilbert-base-cased", PROBED, BATCH | {"learning_rate": 5e-5}, USUAL, None
    ),
    "multiple-choice": Method(
        "distilbert/distilbert-base-uncased", PROBED, BATCH | {"learning_rate": 5e-5}, USUAL
    ),
    "text-generation": Method(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        PULLED,
        BATCH | {"learning_rate": 2e-5, "per_device_train_batch_size": 8},
        OLD_HEAD,
        8192,
    ),
    "fill-mask": Method(
        "distilbert/distilbert-base-uncased", PULLED, BATCH | {"learning_rate": 5e-5}, OLD_HEAD
    ),
    "summarization": Method(
        "google-t5/t5-small", PULLED, BATCH | {"learning_rate": 3e-4}, OLD_HEAD
    ),
    "translation": Method("google-t5/t5-small", PULLED, BATCH | {"learning_rate": 3e-4}, OLD_HEAD),
}


def epochs(rows: int) -> int:
    """Passes over the training rows: more of them where there are few."""
    return 3 if rows > 20000 else 5 if rows > 5000 else 8 if rows > 500 else 15
