"""Linear probing: the head alone trains."""

from typing import ClassVar, Literal

from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class LinearProbe(FreezePolicy):
    """Only the head trains; the backbone is the source's, bit for bit.

    Kumar et al. 2022, "Fine-tuning can distort pretrained features" (ICLR, arXiv 2202.10054): mean
    accuracy in distribution 83.5 against 85.8 of full fine-tuning, out of it 71.6 against 66.8.
    """

    citation: ClassVar[str] = """@inproceedings{kumar2022finetuning,
  title     = {Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution},
  author    = {Kumar, Ananya and Raghunathan, Aditi and Jones, Robbie and Ma, Tengyu and
               Liang, Percy},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2022}, note = {arXiv:2202.10054}
}"""

    type: Literal["linear-probe"] = "linear-probe"

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return frozenset()
