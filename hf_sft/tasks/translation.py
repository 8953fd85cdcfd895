"""translation: a text in one language becomes one in another."""

from typing import Any, ClassVar, Literal

from datasets import Dataset

from hf_sft.tasks.seq2seq import Seq2Seq
from hf_sft.tasks.translation_metrics import SCALARS, StreamingTranslation


class Translation(Seq2Seq):
    """Pairs of texts, or the Hub's column ``translation`` ({en: …, de: …}).

    Scored by chrF, which chooses the best checkpoint (it tells bad translations apart where BLEU is
    0), and BLEU. ``tokenize``: sacreBLEU's way to find words for BLEU; default ``zh`` for Chinese
    targets, else ``13a``, the one that papers report.
    """

    type: Literal["translation"] = "translation"
    written: ClassVar[str] = "translation_text"
    selection_metric: ClassVar[str] = "chrf"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    tokenize: Literal["13a", "intl", "zh", "char", "none"] | None = None

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingTranslation:
        chinese = (self.target_lang or self.target.rpartition(".")[2]).startswith(("zh", "zho"))
        words = self.tokenize or ("zh" if chinese else "13a")
        return StreamingTranslation(processor, rows, (self.source, self.target), words)
