"""What a text classifier's head reads: the architecture's own choice, or the mean of all tokens."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import MODEL_MAPPING, AutoConfig, AutoModelForSequenceClassification

from hf_sft.errors import SourceError
from hf_sft.tasks.mean_pooled import MeanPooledConfig, MeanPooledForSequenceClassification

Pooling = Literal["auto", "native", "mean"]
Find = Callable[[str], Path | None]  # a file of the source, by its name; None where there is none
DROPOUT = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout")
LABELS = ("id2label", "label2id", "problem_type")
OWN_KEY = "classifier_pooling"  # of ModernBERT and its kin, which pool either way themselves
REMEDY = "Set task.pooling: native, or name another source."

# So that our own folders load without remote code, and carry theirs for everyone else.
MeanPooledConfig.register_for_auto_class()
MeanPooledForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register(MeanPooledConfig.model_type, MeanPooledConfig)
AutoModelForSequenceClassification.register(MeanPooledConfig, MeanPooledForSequenceClassification)


def pooled(config: Any, asked: Pooling, find: Find) -> Any:
    """The configuration of the classifier that is wanted: a source's, itself where that is the one.

    ``auto``: the mean where the source averages, as a sentence-transformers folder or a classifier
    of ours says; else the architecture's own head.

    Raises:
        SourceError: the mean of this architecture's tokens cannot be taken.
    """
    ours = isinstance(config, MeanPooledConfig)
    mean = asked == "mean" or (asked == "auto" and (ours or averages(find)))
    if hasattr(config, OWN_KEY):
        return _by_its_own_key(config) if mean else config
    if mean == ours:
        return config
    return _around(config) if mean else _inside(config)


def averages(find: Find) -> bool:
    """Whether a sentence-transformers folder says that the source's sentences are token means.

    Raises:
        SourceError: its files cannot be read.
    """
    modules = _read(find, "modules.json")
    if not isinstance(modules, list):
        return False
    kinds = {str(m.get("type")).rpartition(".")[2]: m for m in modules if isinstance(m, dict)}
    if "Pooling" not in kinds:
        return False
    said = _read(find, f"{kinds['Pooling'].get('path')}/config.json")
    said = said if isinstance(said, dict) else {}
    mode = said.get("pooling_mode")  # sentence-transformers 5.4; flags before
    modes = {mode} if isinstance(mode, str) else set(mode or ())
    flags = {key for key, value in said.items() if value is True}
    flags = {key for key in flags if key.startswith("pooling_mode_")}
    return modes == {"mean"} or (not modes and flags == {"pooling_mode_mean_tokens"})


def reads_mean(model: Any) -> bool:
    """Whether a model's head reads the mean of all tokens by its configuration."""
    config = getattr(model, "config", None)
    return isinstance(config, MeanPooledConfig) or getattr(config, OWN_KEY, None) == "mean"


def _read(find: Find, name: str) -> Any:
    path = find(name)
    if path is None:
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SourceError(
            f"model.name: {name} beside the model, which says how its sentences are pooled, "
            f"cannot be read ({error}). Set task.pooling: mean or native."
        ) from error


def _by_its_own_key(config: Any) -> Any:
    if getattr(config, OWN_KEY) == "mean":
        return config
    other = copy.deepcopy(config)
    setattr(other, OWN_KEY, "mean")
    return other


def _around(config: Any) -> MeanPooledConfig:
    """The encoder's configuration in ours, which takes over its labels."""
    kind = MODEL_MAPPING.get(type(config), None)
    one = isinstance(kind, type) and not config.is_encoder_decoder
    if not one or not hasattr(config, "hidden_size"):
        raise SourceError(
            f"task.pooling: {config.model_type} is no text encoder of transformers whose tokens "
            f"could be averaged. {REMEDY}"
        )
    known = (getattr(config, key, None) for key in DROPOUT)
    dropout = next((value for value in known if value is not None), 0.0)
    labels = {key: getattr(config, key) for key in LABELS}
    inner = copy.deepcopy(config)
    inner.num_labels, inner.problem_type, inner.architectures = 2, None, None
    inner.name_or_path = ""  # a path of this machine would be published
    return MeanPooledConfig(inner, dropout, pad_token_id=config.pad_token_id, **labels)


def _inside(config: MeanPooledConfig) -> Any:
    """The encoder's own configuration, with our labels."""
    inner = copy.deepcopy(config.text_config)
    for key in LABELS:
        setattr(inner, key, getattr(config, key))
    return inner
