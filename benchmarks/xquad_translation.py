"""XQuAD's questions as parallel text, and an untrained T5 with a tokenizer of their words.

    python benchmarks/xquad_translation.py FOLDER

XQuAD has the same 1,190 questions in every language, so they are pairs of translations. Its 48
articles are parted: those of ``first`` are what a source learns from, those of ``second`` what the
source is fine-tuned on; every eighth article of a part is its test. The tokenizer (byte-level BPE,
1,000 words) is made from the training lines of ``first`` in English and German, so its words, like
the weights of the T5 (2 + 2 layers of 64, random, seed 0), know nothing that ``first`` does not.
Read from ``$HF_SFT_DATA/xquad_en_de_zh``; for recipes/translation/xquad_t5tiny_*.yaml.
"""

import json
import os
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

LANGUAGES = ("en", "de", "zh")
WORDS = 1000
SPECIAL = ["<pad>", "</s>", "<unk>"]


def questions(folder: Path, language: str) -> list[dict[str, str]]:
    """{question's id: question} of every article."""
    articles = json.loads((folder / f"xquad.{language}.json").read_text("utf-8"))["data"]
    return [
        {qa["id"]: " ".join(qa["question"].split()) for p in a["paragraphs"] for qa in p["qas"]}
        for a in articles
    ]


def write_pairs(given: Path, output: Path) -> None:
    """``first`` and ``second``, each with train.LANGUAGE and test.LANGUAGE, line by line."""
    articles = {language: questions(given, language) for language in LANGUAGES}
    parts: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for number, article in enumerate(articles["en"]):
        part = "first" if number % 2 == 0 else "second"
        split = "test" if number // 2 % 8 == 7 else "train"
        parts.setdefault((part, split), []).extend((number, name) for name in article)
    for (part, split), found in parts.items():
        (output / part).mkdir(parents=True, exist_ok=True)
        for language in LANGUAGES:
            lines = [articles[language][number][name] for number, name in found]
            text = "".join(f"{line}\n" for line in lines)
            (output / part / f"{split}.{language}").write_text(text, "utf-8")
        print(f"{part} {split}: {len(found)} pairs")  # noqa: T201


def words_of(files: list[Path]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``</s>`` behind every text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train([str(file) for file in files], trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def untrained(words: int) -> T5ForConditionalGeneration:
    """A small T5 with random weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=words, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def main(output: Path) -> None:
    """Write first/, second/ and untrained/."""
    write_pairs(Path(os.environ.get("HF_SFT_DATA", ".")) / "xquad_en_de_zh", output)
    tokenizer = words_of([output / "first" / f"train.{language}" for language in ("en", "de")])
    tokenizer.save_pretrained(output / "untrained")
    untrained(len(tokenizer)).save_pretrained(output / "untrained")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
