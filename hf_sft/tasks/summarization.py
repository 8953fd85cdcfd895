"""summarization: a long text becomes a short one."""

from typing import Any, ClassVar, Literal

from datasets import Dataset

from hf_sft.tasks.seq2seq import Seq2Seq
from hf_sft.tasks.summarization_metrics import SCALARS, StreamingSummarization


class Summarization(Seq2Seq):
    """Documents and their summaries, scored by ROUGE; ROUGE-2 chooses the best checkpoint.

    Keys:
        stem: compare word stems, as most papers do; for English only.
        tokenize: words of a-z and 0-9, as scores are published for English (rouge), or of every
            script (unicode); by the letters of the summaries by default, and told in the report.
    """

    type: Literal["summarization"] = "summarization"
    written: ClassVar[str] = "summary_text"
    selection_metric: ClassVar[str] = "rouge2"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    source: str = "document"
    target: str = "summary"
    stem: bool = True
    tokenize: Literal["rouge", "unicode"] | None = None

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingSummarization:
        columns = (self.source, self.target)
        reads = self.reads(processor)
        return StreamingSummarization(processor, rows, columns, self.stem, self.tokenize, reads)
