"""Chain-thaw: the head, then every layer alone, then all."""

from typing import ClassVar, Literal

from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.freezing.phases import names_of, parts, phase
from hf_sft.layer_groups import LayerGroups


class ChainThaw(FreezePolicy):
    """The head trains alone, then stem and blocks each alone, bottom up, then everything.

    Every one of these phases has the same share of training. While a block trains alone, the head
    is frozen too.

    Felbo et al. 2017, "Using millions of emoji occurrences" (EMNLP, arXiv 1708.00524): each phase
    lasts until the validation score stalls there. Cost: below fine-tuning for the same steps, as
    few weights get a gradient; memory: optimizer state of all, in the end.
    """

    dynamic: ClassVar[bool] = True
    citation: ClassVar[str] = """@inproceedings{felbo2017using,
  title     = {Using Millions of Emoji Occurrences to Learn Any-Domain Representations for
               Detecting Sentiment, Emotion and Sarcasm},
  author    = {Felbo, Bjarke and Mislove, Alan and S{\\o}gaard, Anders and Rahwan, Iyad and
               Lehmann, Sune},
  booktitle = {Conference on Empirical Methods in Natural Language Processing (EMNLP)},
  year      = {2017}, note = {arXiv:1708.00524}
}"""
    type: Literal["chain-thaw"] = "chain-thaw"

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        below, number = parts(groups), self._phase(groups, progress)
        if number > len(below):
            return frozenset(groups.parameters)
        return names_of(below[number - 1 : number] if number else ())

    def always(self, groups: LayerGroups, progress: float) -> frozenset[str]:
        alone = 1 <= self._phase(groups, progress) <= len(parts(groups))
        return frozenset() if alone else super().always(groups, progress)

    def _phase(self, groups: LayerGroups, progress: float) -> int:
        """0 for the head, 1 to L for the parts below it, L + 1 for all."""
        count = len(parts(groups)) + 2
        return min(count - 1, phase(progress, 1 / count))
