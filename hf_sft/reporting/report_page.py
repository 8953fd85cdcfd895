"""report.html: one page that needs no other file; and the words the model card shares with it."""

import math
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jinja2
from markupsafe import Markup

from hf_sft.recipe_text import dump
from hf_sft.reporting.report import Report
from hf_sft.tasks import cut_texts

MOST_CLASSES = 40  # above that a confusion matrix is no longer readable, and its pairs are listed
MOST_NAMES = 20
PRIVATE = {"output_dir", "logging_dir", "resume_from_checkpoint", "hub_token", "token", "api_key"}
NO_PATHS = {"keep_labels"}  # names of classes: "/r/science" is a label
START = r"(?:file://)?(?:~[^/\\\s]*[\\/]|\.\.[\\/]|[A-Za-z]:[\\/]|[\\/])"
LOCAL = re.compile(rf"(?:{START}.*|~|\.\.)\Z", re.DOTALL)
INSIDE = re.compile(rf"(?<=[\s=,;'\"(\[]){START}[^\s,;'\")\]]+")
PLACES = (
    "recipe",
    "source",
    "data",
    "penalty",
    "freeze",
    "environment",
)  # where a report may name one


def render(report: Report) -> str:
    """The page; the same report always gives the same bytes, and no path of this machine."""
    from hf_sft.reporting import charts  # draws by matplotlib, after the training

    data = shareable_report(report).data
    split = main_split(data)
    folder = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    page = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.undefined = jinja2.StrictUndefined
    page.filters.update(
        number=number,
        setting=setting,
        breakable=lambda name: Markup.escape(name).replace(".", Markup(".<wbr>")),
        curves=lambda chart: Markup(charts.curves(chart)),
        share=lambda value: "–" if value is None else f"{value:.4f}",
    )
    return page.get_template("report.html.j2").render(
        data=data,
        split=split,
        tables=data["tables"].get(split, {}),
        pictures=data.get("pictures", {}).get(split, {}),
        title=f"{source_name(data)} on {dataset_name(data['recipe'])}",
        pull=pull(data),
        cut=cut_texts.said(data.get("cut_texts") or {}),
        policy=policy(data),
        audit=audit(data),
        charts=charts.history(data["history"]),
        pulls=any("pull_to_gradient" in entry for entry in data["history"]),
        alike=charts.layers((data.get("geometry") or {}).get("layers", [])),
        timeline=timeline(data),
        confused=most_confused(data, split),
        recipe=recipe_yaml(data),
        most_classes=MOST_CLASSES,
    )


def shareable(value: Any) -> Any:
    """A copy that may leave this machine: without a recipe's output folder, tokens, local paths.

    A path that starts at a root, at a home or with ``..`` is cut to its last part.
    """
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in PRIVATE}
        return {key: v if key in NO_PATHS else shareable(v) for key, v in kept.items()}
    if isinstance(value, list | tuple):
        return [shareable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if LOCAL.match(value):
        return last_part(value)
    return INSIDE.sub(lambda found: last_part(found[0]), value)


def shareable_report(report: Report) -> Report:
    """The report as it may leave this machine; its results, labels and numbers are untouched."""
    return Report({k: shareable(v) if k in PLACES else v for k, v in report.data.items()})


def last_part(path: str) -> str:
    """The name of a file or folder without where it lies, for either kind of separator."""
    name = PureWindowsPath(path).name
    return "local" if name in ("", "..") or name.startswith("~") else name


def recipe_yaml(data: dict[str, Any]) -> str:
    """recipe.yaml as it may leave this machine."""
    return dump(shareable(data["recipe"]))


def main_split(data: dict[str, Any]) -> str | None:
    """The split whose result counts: test, else validation."""
    return next((split for split in ("test", "validation") if split in data["metrics"]), None)


def source_name(data: dict[str, Any]) -> str:
    """The source in one word: its architecture, Python package, Hub id or file."""
    name = data["source"]["name"]
    if architecture := (data["recipe"].get("model") or {}).get("architecture"):
        return str(architecture)
    if name.startswith("package:"):
        return name.removeprefix("package:").partition("/")[0]
    return shareable(name)


def dataset_name(recipe: dict[str, Any]) -> str:
    """The data in one word: the Hub id, else the file or folder without where it lies."""
    data = recipe.get("data") or {}
    kind, given = str(data.get("type", "data")), data.get("path") or data.get("train")
    if not isinstance(given, str):
        return kind
    if kind == "hub" and not given.startswith(".") and not LOCAL.match(given):
        return given
    path = PurePosixPath(last_part(given) if LOCAL.match(given) else given)
    split_only = path.name.partition(".")[0] in ("train", "training") and path.parent.name
    return (path.parent.name if split_only else path.name).removeprefix("package:") or kind


DEFAULTS = {
    "apply": "gradient",
    "absolute": False,
    "norm_statistics": "follow",
    "norm_affine": "follow",
    "norm_mode": "follow",
}  # settings that say nothing


def pull(data: dict[str, Any]) -> list[str]:
    """Each penalty as a formula with its numbers."""
    lines = []
    for method in data["penalty"]["methods"]:
        told = settings({k: v for k, v in method.items() if k not in ("type", "formula")})
        lines.append(": ".join(x for x in (method["type"], method.get("formula"), told) if x))
    return lines or ["no pull to the source: the task loss alone"]


def policy(data: dict[str, Any]) -> str:
    """The freezing policy with its settings, as a recipe spells them."""
    found = {"type", "frozen_tensors", "verified_unchanged", "changed"}
    told = settings({k: v for k, v in data["freeze"].items() if k not in found})
    taken = data.get("averaging")
    average = f"; the model is an average over its steps: {settings(taken)}" if taken else ""
    if adapter := data.get("adapter"):
        share = f"{100 * adapter['trainable_share']:.3g} % of all parameters"
        return f"the source, beside which adapters train: {settings(adapter)}: {share}{average}"
    return data["freeze"]["type"] + (f" ({told})" if told else "") + average


def settings(given: dict[str, Any]) -> str:
    """``key = value`` of all that say something, λ by its letter."""
    said = {k: v for k, v in given.items() if v not in (None, [], ()) and DEFAULTS.get(k, ...) != v}
    return ", ".join(f"{'λ' if k == 'lambda' else k} = {setting(v)}" for k, v in said.items())


def timeline(data: dict[str, Any]) -> dict[str, Any]:
    """What trained when: bars in percent of all steps for every group, and the steps to write.

    From what the run recorded whenever that changed; without a record, no rows.
    """
    changes, steps = data.get("transitions") or [], max(1, data["timing"]["steps"])
    ends = [change["step"] for change in changes[1:]] + [steps]
    rows = []
    for group in data["groups"] if changes else []:
        runs: list[list[int]] = []  # first step, and the one after the last
        for change, end in zip(changes, ends, strict=True):
            start, end = min(change["step"], steps), min(end, steps)
            if change["trains"].get(group["name"]) and start < end:
                runs.append([runs.pop()[0] if runs and runs[-1][1] == start else start, end])
        share = 100 / steps
        bars = [{"left": share * start, "width": share * (end - start)} for start, end in runs]
        rows.append({"group": group, "bars": bars})
    ticks = _ticks([change["step"] for change in changes], steps)
    return {"rows": rows, "ticks": ticks, "steps": steps}


def _ticks(starts: list[int], steps: int) -> list[dict[str, float]]:
    """The steps that have room above the bars; on a phone only those that are not ``minor``."""
    ticks: list[dict[str, float]] = []
    for step in starts:
        at = 100 * step / steps
        wide = [tick["at"] for tick in ticks if not tick["minor"]]
        if at <= 86 and (not ticks or at - ticks[-1]["at"] >= 12):
            minor = bool(wide) and (at - wide[-1] < 25 or at > 55)
            ticks.append({"step": step, "at": at, "minor": minor})
    return ticks


def audit(data: dict[str, Any]) -> str:
    """What the comparison of every frozen tensor with the source has found."""
    freeze, names = data["freeze"], data["freeze"]["changed"]
    if not freeze["verified_unchanged"]:
        more = f", … ({len(names) - MOST_NAMES} more)" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES]) + more
        return f"WARNING: {len(names)} tensors CHANGED although they were frozen: {shown}"
    if not freeze["frozen_tensors"]:
        return "Nothing stayed frozen."
    return f"{freeze['frozen_tensors']} frozen tensors bit-equal to the source (verified)."


def setting(value: Any) -> str:
    """A chosen value, without decimals that nobody wrote; a rule with what it holds for."""
    if isinstance(value, dict):
        return f"({settings(value)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(setting(inner) for inner in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Any) -> str:
    """A value for a person: 4 decimals, thousands apart, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not defined"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def most_confused(data: dict[str, Any], split: str | None) -> list[tuple[str, str, int, float]]:
    """(true label, predicted label, how often, share of the true label's rows), most first."""
    matrix = data["tables"].get(split, {}).get("confusion_matrix", [])
    names = data["labels"]
    pairs = [
        (names[i], names[j], count, count / sum(row))
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3]))[:MOST_NAMES]
