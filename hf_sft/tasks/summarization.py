"""summarization: a long text becomes a short one."""

from typing import Any, ClassVar, Literal

from datasets import Dataset

from hf_sft.tasks.seq2seq import Seq2Seq
from hf_sft.tasks.summarization_metrics import SCALARS, StreamingSummarization


class Summarization(Seq2Seq):
    """Documents and their summaries, scored by ROUGE; ROUGE-2 chooses the best checkpoint.

    ``stem``: compare word stems, as most papers do; for English only.
    """

    type: Literal["summarization"] = "summarization"
    written: ClassVar[str] = "summary_text"
    selection_metric: ClassVar[str] = "rouge2"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    source: str = "document"
    target: str = "summary"
    stem: bool = True

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingSummarization:
        return StreamingSummarization(processor, rows, (self.source, self.target), self.stem)
