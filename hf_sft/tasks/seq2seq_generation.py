"""How an encoder-decoder is told to write: languages, start, length, beams."""

import logging
import re
from typing import Any

from transformers import GenerationConfig

from hf_sft.errors import SourceError, listing, nearest
from hf_sft.tasks.tokenizers import limits

log = logging.getLogger(__name__)

LENGTHS = ("max_new_tokens", "max_length")
COUNTS = {"num_beams", "max_length", "max_new_tokens"}
LENGTH = 128  # tokens, where the recipe does not say how long a text may get
OF_SOURCE = (  # how a source wrote for its own data: beams, lengths, repetition, sampling
    *LENGTHS, "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping", "min_length",
    "min_new_tokens", "length_penalty", "repetition_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "do_sample", "temperature", "top_k",
    "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "max_time",
)  # fmt: skip


def problem(given: dict[str, Any]) -> str | None:
    """What is wrong with the keys of a ``generation`` block; None for nothing."""
    known = [key for key in vars(GenerationConfig()) if not key.startswith("_")]
    if unknown := [key for key in given if key not in known]:
        return f"{unknown[0]!r} is no key of GenerationConfig.{nearest(unknown[0], known)}"
    for key in sorted(COUNTS & given.keys()):
        if not isinstance(given[key], int) or given[key] < 1:
            return f"{key} should be a whole number of at least 1, found {given[key]!r}"
    if given.get("num_return_sequences", 1) != 1:
        return "num_return_sequences: one text is written for each row. Leave the key out"
    try:
        GenerationConfig(**given).validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        return " ".join(str(error).split())
    return None


def settle(model: Any, given: dict[str, Any], longest_target: int | None) -> None:
    """The recipe's keys over greedy search; without a length, that of the targets or 128 tokens.

    The source's own beams and lengths are for the data it was made for: they are told and left.
    The config holds the length as ``max_length``, one more than ``max_new_tokens`` for the start
    token: Trainer 5.24 would put a ``max_length`` of 20 beside the other while it evaluates.

    Raises:
        SourceError: the recipe asks for more than the model's positions.
    """
    config, asked = model.generation_config, any(given.get(key) is not None for key in LENGTHS)
    if said := leave(config, given):
        log.warning("task.generation: the source's own settings are not taken over (%s). Write "
                    "them there to keep them.", said)  # fmt: skip
    if not asked:
        given = {**given, "max_new_tokens": longest_target or LENGTH}
    for key, value in {"num_beams": 1, **dict.fromkeys(LENGTHS), **given}.items():
        setattr(config, key, value)
    if (new := getattr(config, "max_new_tokens", None)) is not None:
        config.max_length, config.max_new_tokens = new + 1, None
    _keep_within(config, min(limits(model), default=None), asked)


def leave(config: GenerationConfig, given: dict[str, Any]) -> str:
    """Put what the source says of search and length back to transformers' defaults.

    Returns:
        what is left by that and not in ``given``, as ``key: value``; nothing for nothing.
    """
    default = GenerationConfig()
    left = {}
    for key in OF_SOURCE:
        own, plain = getattr(config, key, None), getattr(default, key, None)
        if own is not None and own != plain and key not in given:
            left[key] = own
        if hasattr(config, key):
            setattr(config, key, plain)
    usual = (("num_beams", 1), ("max_length", 20), ("do_sample", False))
    return ", ".join(f"{key}: {value}" for key, value in left.items() if (key, value) not in usual)


def used(model: Any) -> list[dict[str, Any]]:
    """How texts were written: every key of search and length that is not transformers' default."""
    config, default = model.generation_config, GenerationConfig()
    always = {"num_beams": config.num_beams or 1, "max_length": config.max_length}
    more = {k: getattr(config, k, None) for k in OF_SOURCE if k not in always}
    found = {k: v for k, v in more.items() if v is not None and v != getattr(default, k, None)}
    return [{"key": key, "value": value} for key, value in (always | found).items()]


def _keep_within(config: GenerationConfig, room: int | None, asked: bool) -> None:
    """A model with a table of positions cannot write beyond its end."""
    if room is None or (getattr(config, "max_length", None) or 0) <= room:
        return
    if asked:
        raise SourceError(
            f"task.generation: this model writes {room} tokens at most, with the start token; "
            f"the recipe asks for {config.max_length}. Lower max_new_tokens (or max_length)."
        )
    config.max_length = room


def speak(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Tell a tokenizer of many languages which ones come.

    Raises:
        SourceError: it needs to know them and the recipe does not say, or it has no such code.
    """
    if not (hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")):
        return
    codes = {"source_lang": source, "target_lang": target}
    if missing := [key for key, code in codes.items() if code is None]:
        raise SourceError(
            f"task.{missing[0]}: this tokenizer ({type(tokenizer).__name__}) writes many languages "
            f"and needs to know which. Choices: {_some(tokenizer)}."
        )
    for key, code in codes.items():
        if language_id(tokenizer, code) is None:
            known = _languages(tokenizer)
            raise SourceError(
                f"task.{key}: {code!r} is no language of this tokenizer. Choices: "
                f"{_some(tokenizer)}.{nearest(code, known)}"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = source, target


def language_id(tokenizer: Any, code: str) -> int | None:
    """The token that stands for a language; None where the tokenizer has none."""
    for token in (code, f"__{code}__"):  # NLLB and mBART; M2M100
        number = tokenizer.convert_tokens_to_ids(token)
        if number is not None and number != tokenizer.unk_token_id:
            return number
    return None


def start(tokenizer: Any, model: Any, target: str | None) -> None:
    """What the decoder begins with: its start token, and the target's language.

    The language is forced after the start where targets begin with it (NLLB, mBART-50, M2M100),
    and is the start itself where targets end with it (mBART of 25 languages).

    Raises:
        SourceError: the model does not say what its decoder starts with.
    """
    config = model.config
    if target is not None and hasattr(tokenizer, "tgt_lang"):
        language = language_id(tokenizer, target)
        ids = tokenizer(text_target="a")["input_ids"]
        if ids[0] == language:
            model.generation_config.forced_bos_token_id = language
        elif ids[-1] == language:
            config.decoder_start_token_id = language
            model.generation_config.decoder_start_token_id = language
    if getattr(config, "decoder_start_token_id", None) is None:
        raise SourceError(
            "model.name: its config.json has no decoder_start_token_id, so nothing says what the "
            "decoder begins with. Set model.decoder_start_token_id."
        )


def hold_unsaved(model: Any) -> None:
    """Freeze the parameters that no checkpoint holds: Marian's and Pegasus's sinusoidal positions.

    transformers 5.24 forgets while loading that their architecture freezes them; they would train,
    and the saved model would be another one than the trained.
    """
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in unsaved):
            parameter.requires_grad_(False)


def _languages(tokenizer: Any) -> list[str]:
    special = tokenizer.all_special_tokens
    found = [token.strip("_") for token in special if "<" not in token and "[" not in token]
    return sorted(dict.fromkeys(found))


def _some(tokenizer: Any) -> str:
    return listing(_languages(tokenizer), 30)
