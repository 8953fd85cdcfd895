"""What a tokenizer and a model must agree on: vocabulary, padding, how many tokens fit."""

from collections.abc import Iterator
from typing import Any

from hf_sft.errors import SourceError

NO_LIMIT = 10**9  # a tokenizer that knows no limit says 10**30


def settle(processor: Any, model: Any) -> None:
    """The tokenizer learns the model's limit, and to pad with its end-of-text token if it must.

    Both are saved with the tokenizer, so that whoever loads it cuts texts as the training did.

    Raises:
        SourceError: the tokenizer and the model do not belong together.
    """
    refuse_stranger(processor, model.config)
    if processor.pad_token_id is None:
        processor.pad_token = processor.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = processor.pad_token_id
    processor.model_max_length = min([processor.model_max_length, *limits(model)])


def refuse_stranger(tokenizer: Any, config: Any) -> None:
    """The tokenizer must have words, and no more than the model has embeddings.

    Raises:
        SourceError: it was made up for want of a vocabulary, or belongs to another model.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers 5 makes one up
        raise SourceError(
            "model.name: there is no vocabulary beside the model; every word would be unknown. "
            "Put the tokenizer's files (tokenizer.json) into its folder."
        )
    rows = getattr(config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise SourceError(
            f"model.name: the tokenizer has {len(tokenizer)} words, the model embeddings for "
            f"{rows}. Put the tokenizer the model was trained with into its folder."
        )


def limits(model: Any) -> Iterator[int]:
    """How many tokens fit: what the config says, and what its position embeddings have room for.

    RoBERTa and its kin count positions from ``padding_idx + 1``: 514 rows take 512 tokens.
    """
    if stated := getattr(model.config, "max_position_embeddings", None):
        yield stated
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            yield len(module.weight) - (padding + 1)
