"""Files of tiny runs that write: sources with a tokenizer of words, pairs of lines, recipes."""

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SPECIAL = ["<pad>", "</s>", "<unk>"]
PAIRS = {"one": "eins", "two": "zwei", "six": "sechs", "red": "rot", "old": "alt", "house": "haus",
         "tree": "baum", "water": "wasser", "big": "gross", "is": "ist"}  # fmt: skip
LINES = [(f"{a} {b} {c}", f"{PAIRS[a]} {PAIRS[b]} {PAIRS[c]}")
         for a in list(PAIRS)[:3] for b in list(PAIRS)[3:7] for c in list(PAIRS)[7:]]  # fmt: skip
SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
}


def tokenizer(words=()):
    """Words at spaces, ``</s>`` behind every text."""
    known = [*SPECIAL, "translate:", *PAIRS, *PAIRS.values(), *words]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def model(kind, words, tied=True):
    """An untrained t5 (which is always tied), marian or bart with so many words."""
    if kind == "t5":
        small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = T5Config(vocab_size=words, decoder_start_token_id=0, dropout_rate=0.0, **small)
        return T5ForConditionalGeneration(config)
    config_class, model_class = {
        "marian": (MarianConfig, MarianMTModel),
        "bart": (BartConfig, BartForConditionalGeneration),
    }[kind]
    start = {"decoder_start_token_id": 0, "tie_word_embeddings": tied}
    return model_class(config_class(vocab_size=words, **start, **SIZES))


def source_folder(folder, kind="t5", tied=True):
    words = tokenizer()
    model(kind, len(words), tied).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def recipe(folder, kind="t5", tied=True, **changes):
    """A translation recipe with its parallel files and source/; ``changes`` replace in blocks."""
    if not (folder / "source").exists():
        source_folder(folder / "source", kind, tied)
    for split, lines in (("train", LINES), ("test", LINES[::4])):
        for side, texts in zip(("en", "de"), zip(*lines, strict=True), strict=True):
            write_lines(folder / f"{split}.{side}", texts)
    blocks = {
        "task": {"type": "translation", "generation": {"max_new_tokens": 6}},
        "data": {
            "type": "parallel-text",
            "train": {"source": "train.en", "target": "train.de"},
            "test": {"source": "test.en", "target": "test.de"},
        },
        "model": {"name": "./source"},
        "penalty": {"type": "l2-sp", "lambda": 0.001},
        "training": {
            "output_dir": str(folder / "out"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    for key, value in changes.items():
        old = blocks.get(key, {})
        blocks[key] = {**old, **value} if isinstance(value, dict) and "type" not in value else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path
