"""README.md: the model card, with nothing private in it and every foreign name as plain text."""

import hashlib
import re
from typing import Any

from hf_sft.reporting import drift_picture
from hf_sft.reporting import report_page as page
from hf_sft.reporting.card_metadata import metadata, on_hub
from hf_sft.reporting.report import Report, origin
from hf_sft.reporting.usage import usage
from hf_sft.visible import visible

SCORES = ("precision", "recall", "f1")


def render(report: Report, dataset: str | None = None, repo_id: str | None = None) -> str:
    """The card of a run. ``dataset``: a better name, or Hub id, of the data than its file has."""
    data = page.shareable_report(report).data
    name = page.shareable(dataset) if dataset else page.dataset_name(data["recipe"])
    title = title_of(data, name, repo_id)
    of_hub = dataset is not None or on_hub(data, name)
    return head(data, name, title, of_hub) + "\n" + body(data, name, title, repo_id)


def digest(text: str) -> str:
    """SHA-256 of a card, by which one that nobody has edited is known."""
    return hashlib.sha256(text.encode()).hexdigest()


def expected(data: dict[str, Any], repo_id: str) -> str:
    """The card's metadata as they will be, from what is known of a run before it trains."""
    data = page.shareable_report(Report(data)).data
    name = page.dataset_name(data["recipe"])
    return head(data, name, title_of(data, name, repo_id), on_hub(data, name))


def head(data: dict[str, Any], name: str, title: str, of_hub: bool) -> str:
    """The block of metadata between its two lines."""
    return f"---\n{metadata(data, name, title, of_hub).to_yaml()}\n---\n"


def title_of(data: dict[str, Any], name: str, repo_id: str | None) -> str:
    """The repository's name, or source and data."""
    return repo_id.rpartition("/")[2] if repo_id else f"{page.source_name(data)} on {name}"


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
    commit = (data.get("data") or {}).get("revision")
    pulls = "\n".join(f"- {plain(line)}" for line in page.pull(data))
    classes = f" with {len(data['labels'])} classes" if len(data["labels"]) > 1 else ""
    sections = [
        f"# {plain(title)}",
        f"A model for {plain(data['task'])}{classes}, {trained(source)} "
        f"{plain(source['name'])}{revision} on {plain(name)}"
        f"{f' ({plain(commit)})' if commit else ''}: "
        f"{data['splits'].get('train', 0):,} training rows, seed {data['seed']}. "
        f"Fingerprint of the source's weights: `{source['fingerprint']}`.",
        f"## Method\n\nPull to {anchored(source)} θ⁰:\n\n{pulls}",
        f"Freezing: {plain(page.policy(data))}.",
        ("" if fine else "> [!WARNING]\n> ") + plain(page.audit(data)),
        f"## How far each layer group moved\n\n{picture(data['groups'])}{drift(data['groups'])}",
        f"## Results\n\n{metrics(data)}",
        f"## What is left of the source's function\n\n{retention(data['retention'])}",
        f"## Use\n\n{fenced(usage(data, repo_id), 'python')}",
        "## Recipe\n\nTrained by `hf-sft run recipe.yaml`:",
        fenced(page.recipe_yaml(data), "yaml"),
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


def picture(groups: list[dict[str, Any]]) -> str:
    """The drawing that lies beside the card, or that there is nothing to draw."""
    if drift_picture.shown(groups):
        said = "Distance of each layer group to the source, in percent of its size"
        return f"![{said}]({drift_picture.NAME})\n\n"
    still = any(group["relative_drift"] == 0 for group in groups)
    return "Nothing that came from the source moved.\n\n" if still else ""


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
