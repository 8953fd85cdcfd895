"""AsItIs: in the task's place where a source is loaded as what it was, a classifier of images."""

from typing import Any

import transformers


class AsItIs:
    """Its own head, its own labels, its own image size."""

    type = "image-classification"
    auto_processor = "AutoImageProcessor"
    chooses, locates, own_weights = True, False, ()

    def auto_model(self, config: Any) -> Any:
        """Of every source alike."""
        return transformers.AutoModelForImageClassification

    def reshaped(self, config: Any, find: Any) -> Any:
        """The source's own configuration."""
        return config

    def configure(self, config: Any, names: list[str]) -> None:
        """Nothing is asked of it."""

    def prepare(self, processor: Any, model: Any) -> None:
        """Nothing is to be settled."""
