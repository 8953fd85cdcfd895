"""Supervised fine-tuning as transfer learning: the public names, imported when first used."""

from importlib import import_module
from typing import Any

_WHERE = {
    "Recipe": "recipe",
    "run": "running",
    "Report": "reporting.report",
    "TransferTrainer": "training.trainer",
    "Seq2SeqTransferTrainer": "training.trainer",
    "TransferMixin": "training.trainer",
    "Ema": "weights.averaging",
    "Swa": "weights.averaging",
    "wise_ft": "weights.weight_space",
    "lines": "weights.weight_space",
    "uniform_soup": "weights.weight_space",
    "greedy_soup": "weights.weight_space",
    "reestimate_statistics_": "weights.norm_statistics",
    "tent_": "weights.tent",
    "LayerGroups": "layer_groups",
    "StartingPoint": "starting_point",
    "Penalty": "penalties",
    "WeightPrior": "penalties",
    "FunctionPrior": "penalties",
    "StepRule": "penalties",
    "Ball": "penalties",
    "L2SP": "penalties",
    "L1SP": "penalties",
    "GroupLassoSP": "penalties",
    "FisherSP": "penalties",
    "diagonal_fisher": "training.fisher",
    "RecAdam": "penalties",
    "LoRASP": "penalties",
    "Similarity": "penalties",
    "SPD": "penalties",
    "Mixout": "penalties",
    "R3F": "penalties",
    "DELTA": "penalties",
    "LwF": "penalties",
    "Pull": "training.pull",
    "LearningRate": "training.rates",
    "FeatureCache": "caching.feature_cache",
    "FreezePolicy": "freezing",
    "Signals": "freezing",
    "AutoFreeze": "freezing",
    "AutoRGN": "freezing",
    "BitFit": "freezing",
    "ChainThaw": "freezing",
    "Gradual": "freezing",
    "LinearProbe": "freezing",
    "LISA": "freezing",
    "LPFT": "freezing",
    "NormOnly": "freezing",
    "Surgical": "freezing",
    "TrainAll": "freezing",
    "TrainFirst": "freezing",
    "TrainLast": "freezing",
    "TrainOnly": "freezing",
    "TrainRange": "freezing",
}

__all__ = sorted(_WHERE)  # noqa: PLE0605 (one list, not two)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hf_sft' has no attribute {name!r}")
    value = getattr(import_module(f"hf_sft.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
