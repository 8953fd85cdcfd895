"""README.md: the model card, with metadata that the Hub accepts and nothing private in it."""

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
from hf_sft.reporting.report import Report, origin
from hf_sft.reporting.usage import is_timm, usage
from hf_sft.visible import visible

SCORES = ("precision", "recall", "f1")
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
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0
    artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc cc0-1.0 cc-by-2.0
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 agpl-3.0
    cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0
    isc mpl-2.0 unlicense llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
"""


def render(report: Report, dataset: str | None = None, repo_id: str | None = None) -> str:
    """The card of a run. ``dataset``: a better name, or Hub id, of the data than its file has."""
    data = page.shareable_report(report).data
    name = page.shareable(dataset) if dataset else page.dataset_name(data["recipe"])
    title = repo_id.rpartition("/")[2] if repo_id else f"{page.source_name(data)} on {name}"
    of_hub = dataset is not None or (data.get("data") or {}).get("hub_id") == name
    facts = metadata(data, name, title, of_hub and is_hub_id(name))
    return f"---\n{facts.to_yaml()}\n---\n\n{body(data, name, title, repo_id)}"


def metadata(data: dict[str, Any], name: str, title: str, of_hub: bool) -> ModelCardData:
    """The block at the card's start; what is not known is left out, the Hub refuses nulls."""
    source, found = data["source"], results(data, name)
    base = {"base_model": source["hub_id"], "base_model_relation": "finetune"}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=data["task"],
        tags=tags(data),
        **licence(source["license"]),
        **(base if source["hub_id"] else {}),
        **({"datasets": [name]} if of_hub else {}),
        **({"model_name": title, "eval_results": found} if found else {}),
    )


def tags(data: dict[str, Any]) -> list[str]:
    """What the model can be found by; a plug-in from outside (``module:Class``) is no tag."""
    methods = [method["type"] for method in data["penalty"]["methods"]]
    found = ["hf_sft", "transfer-learning", *methods, data["freeze"]["type"]]
    found += ["timm"] if is_timm(data) else []
    return [tag for tag in dict.fromkeys(found) if ":" not in tag]


def licence(text: str | None) -> dict[str, str]:
    """The source's licence in the Hub's words."""
    if not text:
        return {}
    word = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-")
    known = word in LICENCES.split()
    return {"license": word} if known else {"license": "other", "license_name": word}


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
    found = []
    for key, value in data["metrics"].get(split, {}).items():
        if isinstance(value, int | float) and math.isfinite(value):
            kind, arguments = METRICS.get(key, (key, None))
            said = {"metric_name": key.replace("_", " "), "metric_args": arguments}
            found.append(EvalResult(metric_type=kind, metric_value=value, **said, **of))
    return found


def problems(card: str) -> list[str]:
    """Why the Hub would refuse a card: nulls or local paths in its metadata, or no metadata."""
    block = REGEX_YAML_BLOCK.match(card)
    if block is None:
        return ["the card has no metadata block at its start"]
    try:
        data = yaml.safe_load(block[2])
        if not isinstance(data, dict):
            return ["the card's metadata is no mapping"]
        if not (found := list(_bad_values(data, ""))):
            ModelCard(card, ignore_metadata_errors=False)
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        return [f"the card's metadata cannot be read: {error}"]
    return found


def _bad_values(value: Any, place: str) -> Iterator[str]:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        yield f"{place} has no value"
    elif isinstance(value, str) and page.shareable(value) != value:
        yield f"{place} holds a local path: {value}"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _bad_values(inner, f"{place}.{key}".lstrip("."))


def plain(text: Any) -> str:
    """Text that Markdown shows as it is: one line, no markup, no link, no HTML, no table cell."""
    line = visible(" ".join(str(text).split()))
    return re.sub(r"([\\`*_{}\[\]<>#!|~&$@]|:(?=\S)|(?<=www)\.)", r"\\\1", line)


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def body(data: dict[str, Any], name: str, title: str, repo_id: str | None) -> str:
    """Everything below the metadata."""
    source, fine = data["source"], data["freeze"]["verified_unchanged"]
    revision = f" ({plain(source['revision'])})" if source["revision"] else ""
    pulls = "\n".join(f"- {plain(line)}" for line in page.pull(data))
    classes = f" with {len(data['labels'])} classes" if len(data["labels"]) > 1 else ""
    sections = [
        f"# {plain(title)}",
        f"A model for {plain(data['task'])}{classes}, {trained(source)} "
        f"{plain(source['name'])}{revision} on {plain(name)}: "
        f"{data['splits'].get('train', 0):,} training rows, seed {data['seed']}. "
        f"Fingerprint of the source's weights: `{source['fingerprint']}`.",
        f"## Method\n\nPull to {anchored(source)} θ⁰:\n\n{pulls}",
        f"Freezing: {plain(page.policy(data))}.",
        ("" if fine else "> [!WARNING]\n> ") + plain(page.audit(data)),
        f"## How far each layer group moved\n\n{drift(data['groups'])}",
        f"## Results\n\n{metrics(data)}",
        f"## What is left of the source's function\n\n{retention(data['retention'])}",
        f"## Use\n\n{fenced(usage(data, repo_id), 'python')}",
        f"## Recipe\n\n{fenced(page.recipe_yaml(data), 'yaml')}",
        citations(data),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def trained(source: dict[str, Any]) -> str:
    """How the model came from its source: by its weights, or by its network alone."""
    if source.get("pretrained", True):
        return "fine-tuned by hf\\_sft from"
    return "trained by hf\\_sft from weights drawn anew for the network of"


def anchored(source: dict[str, Any]) -> str:
    """What θ⁰ is: the source, or another model than the one that training started from."""
    if not source.get("anchor"):
        return "the source"
    return f"{plain(source['anchor'])}, not {plain(source['name'])} which training started from,"


def drift(groups: list[dict[str, Any]]) -> str:
    """Relative and absolute distance to the source per group, and how alike its features are."""
    rows = []
    for group in groups:
        relative = group["relative_drift"]
        share = origin(group) if relative is None else f"{100 * relative:.3g} %"
        state = f"{group['trainable']:,}" if group["trainable"] else "frozen"
        pulled = "–" if group["lambda"] is None else page.setting(group["lambda"])
        alike = "–" if group.get("cka") is None else f"{group['cka']:.4f}"
        moved = page.number(group["drift"])
        rows.append([plain(group["name"]), state, pulled, moved, share, alike])
    return table(["group", "trained", "λ", "‖θ − θ⁰‖", "of ‖θ⁰‖", "CKA"], rows)


def metrics(data: dict[str, Any]) -> str:
    """Metrics per split, and per class where there are not too many."""
    splits, found = list(data["metrics"]), data["metrics"].values()
    keys = dict.fromkeys(key for values in found for key in values)
    rows = [[plain(key), *(page.number(values.get(key)) for values in found)] for key in keys]
    classes = data["tables"].get(page.main_split(data), {}).get("per_class", [])
    each = [
        [plain(row["label"]), *(f"{row[k]:.3f}" for k in SCORES), f"{row['count']:,}"]
        for row in classes
    ]
    tables = [table(["metric", *splits], rows)]
    if 0 < len(each) <= page.MOST_CLASSES:
        tables.append(table(["class", *SCORES, "rows"], each))
    return "\n\n".join(tables)


def retention(kept: dict[str, Any]) -> str:
    """How much of what the source computes is still computed."""
    if not kept["examples"]:
        return "It was not measured."
    found = [f"{k} {page.number(v)}" for k, v in kept.items() if isinstance(v, float)]
    return (
        f"{kept['examples']} {kept['split']} rows through the source and through the tuned "
        f"backbone, compared by {kept['by']}: {plain(', '.join(found))}."
    )


def citations(data: dict[str, Any]) -> str:
    """The papers of the methods that were used."""
    text = "\n\n".join(data.get("citations") or [])
    return f"## Citation\n\n{fenced(text, 'bibtex')}" if text else ""
