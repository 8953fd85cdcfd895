"""Tiny models built from configs and data sets in memory: what most tests train."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

WORDS, LENGTH, LABELS, PIXELS = 32, 8, 3, 32
BERT = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH,
    "num_labels": LABELS,
}


def bert_config(dropout=0.0, **changes):
    settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertConfig(**{**BERT, **settings, **changes})


def bert(dropout=0.0, **changes):
    return _built(lambda: BertForSequenceClassification(bert_config(dropout, **changes)))


def bert_tokens(dropout=0.0):
    return _built(lambda: BertForTokenClassification(bert_config(dropout)))


def gpt2(dropout=0.0):
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _built(lambda: GPT2LMHeadModel(config))


def t5(dropout=0.0):
    config = T5Config(
        vocab_size=WORDS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return _built(lambda: T5ForConditionalGeneration(config))


def vit(dropout=0.0):
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=PIXELS,
        patch_size=16,
        num_labels=LABELS,
        hidden_dropout_prob=dropout,
    )
    return _built(lambda: ViTForImageClassification(config))


def resnet(dropout=0.0):
    """A timm model with batch statistics."""
    sizes = {"channels": [8, 8, 16, 16], "stem_width": 8, "drop_rate": dropout}
    return _timm("resnet10t", sizes)


def convnext(dropout=0.0):
    """A timm model without batch statistics."""
    return _timm("test_convnext", {"dims": [8, 8, 16, 16], "drop_rate": dropout})


def _timm(architecture, model_args):
    config = TimmWrapperConfig(
        architecture=architecture, model_args=model_args, num_labels=LABELS, do_pooling=True
    )
    return _built(lambda: TimmWrapperForImageClassification(config))


def _built(build):
    """The same weights at every call; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def texts(count):
    """Rows for sequence classification."""
    words, labels = _words(count), torch.randint(LABELS, (count,), generator=_generator(2))
    return [
        {"input_ids": row.tolist(), "attention_mask": [1] * LENGTH, "labels": int(label)}
        for row, label in zip(words, labels, strict=True)
    ]


def tagged_texts(count):
    """Rows for token classification; row i has 1 + 3i mod LENGTH labels, the rest is -100."""
    tags = torch.randint(LABELS, (count, LENGTH), generator=_generator(3)).tolist()
    return [
        {"input_ids": row.tolist(), "labels": _ignoring(tags[i], 1 + 3 * i % LENGTH)}
        for i, row in enumerate(_words(count))
    ]


def prose(count):
    """Rows for language modelling, of unequal length."""
    return [
        {"input_ids": row.tolist(), "labels": _ignoring(row.tolist(), 2 + 3 * i % (LENGTH - 1))}
        for i, row in enumerate(_words(count))
    ]


def images(count):
    pixels = torch.randn(count, 3, PIXELS, PIXELS, generator=_generator(4))
    labels = torch.randint(LABELS, (count,), generator=_generator(5)).tolist()
    return [
        {"pixel_values": image, "labels": label}
        for image, label in zip(pixels, labels, strict=True)
    ]


def _ignoring(labels, keep):
    return labels[:keep] + [-100] * (len(labels) - keep)


def _words(count):
    return torch.randint(2, WORDS, (count, LENGTH), generator=_generator(1))


def _generator(seed):
    return torch.Generator().manual_seed(seed)


KINDS = {
    "bert": (bert, texts),
    "bert-tokens": (bert_tokens, tagged_texts),
    "gpt2": (gpt2, prose),
    "t5": (t5, prose),
    "vit": (vit, images),
    "resnet": (resnet, images),
    "convnext": (convnext, images),
}


def arguments(folder, **changes):
    """TrainingArguments for a short, quiet run on the CPU."""
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return TrainingArguments(**{**settings, **changes})


def weights(model):
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def different(before, after):
    """Names of the tensors that are not bit-equal."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def distance(first, second):
    """The largest absolute difference of any entry."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
