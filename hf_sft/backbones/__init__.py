"""A source that becomes the backbone of a Transformers detector or segmenter."""

from hf_sft.backbones.as_it_is import AsItIs
from hf_sft.backbones.surround import surround

__all__ = ["AsItIs", "surround"]
