"""Train the normalisation layers and the head."""

from typing import ClassVar, Literal

from pydantic import model_validator

from hf_sft.errors import RecipeError
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class NormOnly(FreezePolicy):
    """Scale and shift of the normalisation layers train, and the head; everything else is frozen.

    Frankle, Schwab and Morcos 2021, "Training BatchNorm and only BatchNorm" (ICLR, arXiv
    2003.00152): even on random features, scale and shift alone learn far more than as many other
    weights. Batch-norm statistics move with them; ``norm_statistics: frozen`` keeps the source's.
    Cost: gradients cross the whole model; optimizer state for well under 1 % of it.
    """

    citation: ClassVar[str] = """@inproceedings{frankle2021training,
  title     = {Training {BatchNorm} and Only {BatchNorm}: On the Expressive Power of Random
               Features in {CNNs}},
  author    = {Frankle, Jonathan and Schwab, David J. and Morcos, Ari S.},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}, note = {arXiv:2003.00152}
}"""
    type: Literal["norm-only"] = "norm-only"

    @model_validator(mode="after")
    def _affine_is_what_trains(self):
        if self.norm_affine == "frozen":
            raise ValueError("norm_affine: frozen leaves norm-only nothing to train; leave it out")
        return self

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        if not groups.norm_parameters:
            raise RecipeError("freeze: norm-only finds no normalisation layer with parameters.")
        return groups.norm_parameters
