"""Tiny causal models with a tokenizer of words, and the files of a run on them."""

import json

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<end>", "<turn>"]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = [*SPECIAL, *LETTERS, " ", "\n", ":", "?", "system", "user", "assistant", "."]
TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
LENGTH = 96  # more than the 64 that an answer may have


def tokenizer(template=TEMPLATE):
    """One token per letter and per special word; nothing is added to a text."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    made.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    made.chat_template = template
    return made


def llama(attention="sdpa", tied=True):
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
    )
    return _built(LlamaForCausalLM, config, attention)


def untied():
    """A head of its own beside the word table."""
    return llama(tied=False)


def gpt2(attention="sdpa"):
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    return _built(GPT2LMHeadModel, config, attention)


KINDS = {"llama": llama, "gpt2": gpt2}


def _built(kind, config, attention):
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():  # large weights: what one token sees changes much
            if parameter.ndim > 1:
                parameter.data.mul_(10)
    return model.eval()


def source_folder(folder, template=TEMPLATE, build=llama):
    build().save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


PAIRS = [{"prompt": f"{a}{b}?", "completion": f" {b}{a}."} for a in "abcd" for b in "efgh"]
CHATS = [
    {"messages": [{"role": "user", "content": p["prompt"]},
                  {"role": "assistant", "content": p["completion"].strip()}]} for p in PAIRS
]  # fmt: skip
TEXTS = [{"text": p["prompt"] + p["completion"]} for p in PAIRS]
FORMS = {
    "pair": (PAIRS, {"prompt": "prompt", "completion": "completion"}),
    "chat": (CHATS, {"messages": "messages"}),
    "text": (TEXTS, {"text": "text"}),
}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def recipe(folder, form="pair", task=(), **blocks):
    """A recipe file with train.jsonl, test.jsonl and source/ beside it."""
    rows, columns = FORMS[form]
    if not (folder / "source").exists():
        source_folder(folder / "source")
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[::3])
    training = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    whole = {
        "task": {"type": "text-generation", **columns, **dict(task)},
        "data": {"type": "table", "train": "train.jsonl", "test": "test.jsonl"},
        "model": {"name": "./source"},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        **blocks,
        "training": training | blocks.get("training", {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path
