"""Penalty: the base of all that pulls θ toward θ⁰, or the model toward what its source computes."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from hf_sft.component import Component

Parameters = Mapping[str, Tensor]


class Penalty(Component):
    """The ``penalty`` block.

    Attributes:
        formula: the method in one line, for reports and cards.
        citation: BibTeX of the paper.
    """

    formula: ClassVar[str] = ""
    citation: ClassVar[str] = ""
