"""translation: a text in one language becomes one in another."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from datasets import Dataset, DatasetDict

from hf_sft.errors import DataError
from hf_sft.tasks.scripts import UNSPACED, scripts
from hf_sft.tasks.seq2seq import Seq2Seq
from hf_sft.tasks.translation_metrics import SCALARS, StreamingTranslation

FLORES = (
    "sentencepiece and a file of pieces",
    "pip install sentencepiece, and use it once with a network, where sacreBLEU fetches the file",
)
CHINESE = ("zh", "zho", "yue", "cmn")
NEEDS = {  # tokenize -> what it takes beside sacreBLEU, and how to get it
    "ja-mecab": ("MeCab and its dictionary", "pip install 'sacrebleu[ja]'"),
    "ko-mecab": ("MeCab-ko and its dictionary", "pip install 'sacrebleu[ko]'"),
    "flores101": FLORES,
    "flores200": FLORES,
}
BY_LETTER = ("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo")


class Translation(Seq2Seq):
    """Pairs of texts, or the Hub's column ``translation`` ({en: …, de: …}).

    Scored by chrF, which chooses the best checkpoint (it tells bad translations apart where BLEU is
    0), and BLEU. ``tokenize``: sacreBLEU's way to find words for BLEU. By default ``zh`` for
    Chinese targets, ``char`` for Japanese, Korean, Thai, Lao, Khmer, Burmese and Tibetan ones, else
    ``13a``, the one that papers report; without ``target_lang``, the letters of the targets tell.
    The report has the signature.

    Keys:
        tokenize: sacreBLEU's words for BLEU; by the target's language by default. ja-mecab and
            ko-mecab need a package: pip install "sacrebleu[ja]" or "sacrebleu[ko]".
    """

    type: Literal["translation"] = "translation"
    written: ClassVar[str] = "translation_text"
    selection_metric: ClassVar[str] = "chrf"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    tokenize: (
        Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "flores101",
                "flores200"] | None
    ) = None  # fmt: skip

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        if self.tokenize in NEEDS:
            refuse_unusable(self.tokenize)
        return super().check(data, keep)

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingTranslation:
        language = self.target_lang or self.target.rpartition(".")[2]
        words = self.tokenize or usual(language, [] if rows is None else rows[self.target])
        columns = (self.source, self.target)
        return StreamingTranslation(processor, rows, columns, words, self.reads(processor))


def usual(language: str, texts: Iterable[str]) -> str:
    """sacreBLEU's tokenizer for a language, or where its code says nothing, for these texts."""
    code = language.replace("-", "_").partition("_")[0].lower()
    if code in CHINESE or code in BY_LETTER:
        return "zh" if code in CHINESE else "char"
    found = scripts(texts)
    unspaced = sum(found[script] for script in (*UNSPACED, "HANGUL"))
    if 2 * unspaced <= found.total():
        return "13a"
    return "zh" if 2 * found["CJK"] > found.total() and not found["HIRAGANA"] else "char"


def refuse_unusable(tokenize: str) -> None:
    """One of `NEEDS` may lack its package, or its file from the network.

    Raises:
        DataError: sacreBLEU cannot make it here; it names the package.
    """
    from sacrebleu.metrics import BLEU

    try:
        BLEU(tokenize=tokenize)
    except Exception as error:  # RuntimeError, ImportError, or whatever a download ends in
        what, how = NEEDS[tokenize]
        raise DataError(
            f"task.tokenize: {tokenize} needs {what}, not found here ({type(error).__name__}): "
            f"{how}; or set tokenize: char, or leave the key out."
        ) from error
