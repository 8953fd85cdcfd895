"""question-answering: the part of a text that answers a question (SQuAD v1 and v2)."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field
from transformers import DataCollatorWithPadding

from hf_sft.errors import DataError, SourceError
from hf_sft.squad_files import read_questions, row_problems
from hf_sft.table_files import read_table
from hf_sft.tasks.base import Task
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.question_answering_metrics import StreamingSpans, first_answer
from hf_sft.tasks.question_answering_windows import Candidates, Collector, Cutter, Window
from hf_sft.tasks.text_inputs import with_texts
from hf_sft.tasks.tokenizers import settle

FOUND = ("answer", "score", "start", "end", "n_best")  # columns of the predictions


class QuestionAnswering(Task):
    """Question and context -> windows of ``max_length`` tokens that share ``stride`` of them.

    The head gives every token a score to be the answer's first, s, and last, e; the answer is the
    span with the largest s_i + e_j over all windows, at most ``max_answer_length`` tokens.
    ``no_answer`` (SQuAD v2): there may be none; that is what the model says where
    s_null + e_null − (s_i + e_j) is above ``no_answer_threshold``. Training takes the first answer.

    Keys:
        question, context, answers: columns; answers are {text, answer_start}.
        language: a column, which may be missing; scores are told for each.
        max_length: tokens of a window.
        stride: tokens that windows share; a third of a window by default.
        max_answer_length: tokens of an answer.
        no_answer: there may be none (SQuAD v2).
        no_answer_threshold: how far "none" has to be ahead of the best span.
        n_best: answers of each prediction.
    """

    type: Literal["question-answering"] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "f1"
    metric_names: ClassVar[tuple[str, ...]] = ("exact_match", "f1")
    in_order: ClassVar[bool] = True
    label_names: ClassVar[list[str]] = ["start_positions", "end_positions"]
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    language: str = "language"
    max_length: int = Field(384, ge=8)
    stride: int | None = Field(None, ge=0)
    max_answer_length: int = Field(30, ge=1)
    no_answer: bool = False
    no_answer_threshold: float = 0.0
    n_best: int = Field(20, ge=1)

    def columns(self) -> dict[str, str]:
        return {f"task.{k}": getattr(self, k) for k in ("question", "context", "answers")}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        problems = [line for split, rows in data.items() for line in self._problems(split, rows)]
        if keep is not None:
            problems.append("data.keep_labels: this task has no classes; leave the key out.")
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _problems(self, split: str, rows: Dataset) -> list[str]:
        found, unanswered = [], []
        for number, row in enumerate(rows, 1):
            name = f"row {number}" + (f" (id {row['id']!r})" if row.get("id") else "")
            keys = ("question", "context", "answers")
            found += row_problems({key: row[getattr(self, key)] for key in keys}, name)
            if isinstance(row[self.answers], dict) and not row[self.answers].get("text"):
                unanswered.append(name)
        problems = first_few(f"data.{split}", found)
        if unanswered and not self.no_answer:
            problems.append(
                f"data.{split}: {len(unanswered)} questions have no answer, the first is "
                f"{unanswered[0]}. Set task.no_answer: true (SQuAD v2), or remove them."
            )
        return problems

    def configure(self, config: Any, names: list[str]) -> None:
        config.num_labels = 2  # a start and an end, whatever the source's head was for

    def prepare(self, processor: Any, model: Any) -> None:
        """Tokenizer and model agree on the length; windows are padded and cut at their right end.

        Raises:
            SourceError: they do not belong together, or the tokenizer does not know where in the
                text its tokens stand.
            DataError: the stride leaves no room for new tokens.
        """
        settle(processor, model)
        if not processor.is_fast:
            raise SourceError(
                f"model.name: {type(processor).__name__} does not say which characters its tokens "
                "stand for. Take a source with a fast tokenizer (tokenizer.json)."
            )
        processor.padding_side = processor.truncation_side = "right"
        limit = self._limit(processor)
        if self._stride(limit) >= limit // 2:
            raise DataError(
                f"task.stride: {self.stride} tokens shared by windows of {limit} leave no room "
                f"beside a long question. Set it below {limit // 2}, or leave it out."
            )

    def _limit(self, processor: Any) -> int:
        return min(self.max_length, processor.model_max_length)

    def _stride(self, limit: int) -> int:
        return limit // 3 if self.stride is None else self.stride

    def cutter(self, processor: Any) -> Cutter:
        """What makes windows, in the same way for training, evaluation and prediction."""
        limit = self._limit(processor)
        return Cutter(processor, limit, self._stride(limit))

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        """One encoded row per window, the windows of a row in order."""
        return rows.map(
            _encode,
            batched=True,
            batch_size=100,  # a window is a few hundred spans while it is cut
            fn_kwargs={"cutter": self.cutter(processor), "task": self},
            remove_columns=rows.column_names,
        )

    def collator(self, processor: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def summary(self, logits: Any, labels: Any) -> Any:
        return logits[:2]  # an encoder-decoder gives its hidden states as well

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingSpans:
        return StreamingSpans(
            self.cutter(processor),
            rows,
            {k: getattr(self, k) for k in ("question", "context", "answers", "language")},
            self.max_answer_length,
            self.no_answer_threshold if self.no_answer else None,
        )

    def read_inputs(self, path: Path) -> Dataset:
        names = {"question": self.question, "context": self.context}
        rows = read_questions(path)
        rows = read_table(path, "") if rows is None else rows.rename_columns(names)
        missing = self.missing_columns(f"'{path.name}'", rows.column_names)
        if missing := [line for line in missing if not line.startswith("task.answers")]:
            raise DataError("\n".join(missing))
        taken = {self.answers, *FOUND} - {self.question, self.context}
        rows = rows.remove_columns([c for c in rows.column_names if c in taken])
        problems = [
            f"row {number}: {column!r} is {value!r}, not a text. Correct or remove the row."
            for column in names.values()
            for number, value in enumerate(rows[column], 1)
            if value is not None and not (isinstance(value, str) and value.strip())
        ]
        if problems:
            raise DataError("\n".join(first_few(f"'{path.name}'", problems)))
        rows = with_texts(path, rows, [*names.values()])
        if len(rows) == 0:
            raise DataError(f"'{path}': no questions there.")
        return rows

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """The rows with answer, score, start, end and the n best.

        ``score``: softmax over the n best, and "no answer" where there may be none; start and end
        are characters of the context, the end not included.
        """
        collate, collector = (
            self.collator(processor),
            Collector(self.n_best, self.max_answer_length),
        )
        windows = self.cutter(processor).of_rows(rows, self.question, self.context)
        while part := list(islice(windows, size)):
            batch = collate([window.inputs for window in part]).to(model.device)
            found = model(**batch)
            for row in collector.add(part, found["start_logits"], found["end_logits"]):
                yield self.record(rows[row.row], row)
        for row in collector.close():
            yield self.record(rows[row.row], row)

    def record(self, given: dict, found: Candidates) -> dict:
        """A row of the predictions."""
        best = [
            {**_trimmed(given[self.context], *span), "score": score}
            for span, score in found.best(self.n_best)
        ]
        silent = {"answer": "", "score": found.null, "start": None, "end": None}
        chosen = best[0] if best else silent
        if self.no_answer:
            above = found.null - chosen["score"] > self.no_answer_threshold
            best, chosen = [*best, silent], silent if above else chosen
        shares = torch.tensor([one["score"] for one in best], dtype=torch.float64).softmax(-1)
        for one, share in zip(best, shares.tolist(), strict=True):
            one["score"] = share
        best.sort(key=lambda one: -one["score"])
        return {**given, **chosen, "n_best": best}


def _trimmed(context: str, start: int, end: int) -> dict[str, Any]:
    """An answer without the spaces that some tokenizers (SentencePiece) count to a word."""
    answer = context[start:end].strip()
    start += len(context[start:end]) - len(context[start:end].lstrip())
    return {"answer": answer, "score": 0.0, "start": start, "end": start + len(answer)}


def _encode(batch: dict[str, list], cutter: Cutter, task: QuestionAnswering) -> dict[str, list]:
    windows: list[Window] = list(cutter(batch[task.question], batch[task.context]))
    found = {name: [w.inputs[name] for w in windows] for name in windows[0].inputs}
    if task.answers in batch:
        answers = [first_answer(answers) for answers in batch[task.answers]]
        places = [window.positions(answers[window.row]) for window in windows]
        found["start_positions"] = [start for start, _ in places]
        found["end_positions"] = [end for _, end in places]
    return found
