"""The block at the start of a model card: facts that the Hub reads, and what it would refuse."""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from hf_sft.reporting import report_page as page
from hf_sft.reporting.usage import is_timm

METRICS = {  # ours -> the Hub's name, and the metric's arguments
    "macro_f1": ("f1", {"average": "macro"}),
    "micro_f1": ("f1", {"average": "micro"}),
    "calibration_error": ("expected_calibration_error", {"bins": 15}),
    "matthews": ("matthews_correlation", None),
    "pearson": ("pearsonr", None),
    "spearman": ("spearmanr", None),
}
# The Hub refuses a card with another word than these (hf.co/docs/hub/repositories-licenses).
LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma
    gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
    openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
NO_PIPELINE = {"masked-image-modeling"}  # tasks of ours that the Hub has no pipeline tag for


def metadata(data: dict[str, Any], name: str, title: str, of_hub: bool) -> ModelCardData:
    """The block at the card's start; what is not known is left out, the Hub refuses nulls."""
    source, found = data["source"], results(data, name)
    measured = dict.fromkeys(r.metric_type for r in found if r.metric_type != "loss")
    known = {
        **licence(source["license"]),
        **base_model(source["hub_id"]),
        **({"pipeline_tag": data["task"]} if has_pipeline_tag(data["task"]) else {}),
        **({"datasets": [name]} if of_hub and is_hub_id(name) else {}),
        **({"metrics": list(measured)} if measured else {}),
        **({"model_name": title, "eval_results": found} if found else {}),
    }
    library = "timm" if is_timm(data) else "transformers"
    return ModelCardData(library_name=library, tags=tags(data), **known)


def base_model(hub_id: str | None) -> dict[str, str]:
    """The source and how the model came from it: with an adapter too, whose weights are merged."""
    return {"base_model": hub_id, "base_model_relation": "finetune"} if hub_id else {}


def has_pipeline_tag(task: str) -> bool:
    """Whether the Hub lists the task; a plug-in's from outside (``module:Class``) it does not."""
    return ":" not in task and task not in NO_PIPELINE


def on_hub(data: dict[str, Any], name: str) -> bool:
    """Whether the run read its data from the Hub under this name."""
    return (data.get("data") or {}).get("hub_id") == name


def tags(data: dict[str, Any]) -> list[str]:
    """What the model can be found by; a plug-in from outside (``module:Class``) is no tag."""
    methods = [method["type"] for method in data["penalty"]["methods"]]
    found = ["hf_sft", "transfer-learning", *methods, data["freeze"]["type"]]
    found += [data["adapter"]["type"]] if data.get("adapter") else []
    found += [] if has_pipeline_tag(data["task"]) else [data["task"]]
    found += ["timm", "transformers"] if is_timm(data) else []  # either loads it
    return [tag for tag in dict.fromkeys(found) if ":" not in tag]


def licence(text: str | None) -> dict[str, str]:
    """The source's licence in the Hub's words."""
    if not text:
        return {}
    known = {text.lower(), re.sub(r"\s+", "-", text.lower())} & set(LICENCES.split())
    if known:
        return {"license": known.pop()}
    word = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-")
    return {"license": "other", **({"license_name": word} if word else {})}


def is_hub_id(name: str) -> bool:
    """Whether the Hub would take this as the id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def results(data: dict[str, Any], name: str) -> list[EvalResult]:
    """The finite metrics of the split that counts."""
    split = page.main_split(data)
    source = data["recipe"].get("data") or {}
    of = {"task_type": data["task"], "dataset_type": name, "dataset_name": name}
    of |= {"dataset_split": split, "dataset_config": source.get("name")}  # a name: of Hub data only
    of |= {"dataset_revision": (data.get("data") or {}).get("revision")}
    found = []
    for key, value in data["metrics"].get(split, {}).items():
        if isinstance(value, int | float) and math.isfinite(value):
            kind, arguments = METRICS.get(key, (key, None))
            said = {"metric_name": key.replace("_", " "), "metric_args": arguments}
            found.append(EvalResult(metric_type=kind, metric_value=value, **said, **of))
    return found


def problems(card: str) -> list[str]:
    """Why the Hub would refuse a card: nulls, local paths or what is no id of it in its metadata.

    Found out without a network.
    """
    block = REGEX_YAML_BLOCK.match(card)
    if block is None:
        return ["the card has no metadata block at its start"]
    try:
        data = yaml.safe_load(block[2])
        if not isinstance(data, dict):
            return ["the card's metadata is no mapping"]
        if not (found := [*_bad_values(data, ""), *_bad_ids(data)]):
            ModelCard(card, ignore_metadata_errors=False)
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        return [f"the card's metadata cannot be read: {error}"]
    return found


def _bad_ids(facts: dict[str, Any]) -> Iterator[str]:
    for key in ("base_model", "datasets"):
        given = facts.get(key, [])
        for name in given if isinstance(given, list) else [given]:
            if not is_hub_id(str(name)):
                yield f"{key}: {name!r} is no id on the Hub"


def _bad_values(value: Any, place: str) -> Iterator[str]:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        yield f"{place} has no value"
    elif isinstance(value, str) and page.shareable(value) != value:
        yield f"{place} holds a local path: {value}"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _bad_values(inner, f"{place}.{key}".lstrip("."))
