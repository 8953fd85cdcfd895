"""report.html: one page that needs no other file; and the words the model card shares with it."""

import io
import math
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_sft.recipe_text import dump
from hf_sft.report import Report

MOST_CLASSES = 40  # above that a confusion matrix is no longer readable, and its pairs are listed
MOST_NAMES = 20
PRIVATE = {"output_dir", "logging_dir", "resume_from_checkpoint", "hub_token", "token", "api_key"}
NO_PATHS = {"keep_labels"}  # names of classes: "/r/science" is a label
START = r"(?:file://)?(?:~[^/\\\s]*[\\/]|\.\.[\\/]|[A-Za-z]:[\\/]|[\\/])"
LOCAL = re.compile(rf"(?:{START}.*|~|\.\.)\Z", re.DOTALL)
INSIDE = re.compile(rf"(?<=[\s=,;'\"(\[]){START}[^\s,;'\")\]]+")
PLACES = ("recipe", "source", "penalty", "freeze", "environment")  # where a report may name one

INK, RULE = "#010101", "#020202"  # stand for the page's own colours, see _on_page
LINES = [f"#0{i}0{i}0f" for i in range(1, 7)]
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=LINES),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}


def render(report: Report) -> str:
    """The page; the same report always gives the same bytes, and no path of this machine."""
    data = shareable_report(report).data
    split = main_split(data)
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    page = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.undefined = jinja2.StrictUndefined
    page.filters.update(
        number=number, setting=setting, words=lambda key: str(key).replace("_", " ")
    )
    return page.get_template("report.html.j2").render(
        data=data,
        split=split,
        tables=data["tables"].get(split, {}),
        title=f"{source_name(data)} on {dataset_name(data['recipe'])}",
        pull=pull(data),
        policy=policy(data),
        audit=audit(data),
        charts=charts(data["history"]),
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


def pull(data: dict[str, Any]) -> list[str]:
    """Each penalty as a formula with its numbers."""
    lines = []
    for method in data["penalty"]["methods"]:
        named = {"λ" if k == "lambda" else k: v for k, v in method.items() if k != "type"}
        settings = ", ".join(f"{key} = {setting(value)}" for key, value in named.items())
        formula = "λ·‖θ − θ⁰‖² + head·‖θ_new‖²" if method["type"] == "l2-sp" else ""
        lines.append(": ".join(x for x in (method["type"], formula, settings) if x))
    return lines or ["no pull to the source: the task loss alone"]


def policy(data: dict[str, Any]) -> str:
    """The freezing policy with its settings, as a recipe spells them."""
    found = {"type", "frozen_tensors", "verified_unchanged", "changed"}
    default = {"norm_statistics": "follow", "norm_affine": "follow"}
    settings = [f"{k} = {v}" for k, v in data["freeze"].items()
                if k not in found and default.get(k) != v]  # fmt: skip
    return data["freeze"]["type"] + (f" ({', '.join(settings)})" if settings else "")


def audit(data: dict[str, Any]) -> str:
    """What the comparison of every frozen tensor with the source has found."""
    freeze, names = data["freeze"], data["freeze"]["changed"]
    if not freeze["verified_unchanged"]:
        more = f", … ({len(names) - MOST_NAMES} more)" if len(names) > MOST_NAMES else ""
        shown = ", ".join(names[:MOST_NAMES]) + more
        return f"WARNING: {len(names)} tensors CHANGED although they were frozen: {shown}"
    if not freeze["frozen_tensors"]:
        return "Nothing was frozen."
    return f"{freeze['frozen_tensors']} frozen tensors bit-equal to the source (verified)."


def setting(value: Any) -> str:
    """A chosen value, without decimals that nobody wrote."""
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


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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


def charts(history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(caption, svg) of what was logged: the objective's parts, scores while training, the rate."""
    scores = {
        key.removeprefix("eval_"): key
        for entry in history
        for key in entry
        if key.startswith("eval_")
        and not key.endswith(("_loss", "_runtime", "_per_second", "_preparation_time"))
    }
    wanted = {
        "Loss, penalty and their sum, the objective": {
            **{key: key for key in ("objective", "loss", "penalty")},
            "loss on held-out rows": "eval_loss",
        },
        "On held-out rows while training": scores,
        "Learning rate": {"learning rate": "learning_rate"},
    }
    drawn = [(caption, _chart(caption, history, keys)) for caption, keys in wanted.items()]
    return [(caption, svg) for caption, svg in drawn if svg]


def _chart(caption: str, history: list[dict[str, Any]], keys: dict[str, str]) -> str:
    # A Figure of its own, not pyplot: nothing stays behind in the process that trains.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": caption}):
        figure = Figure((4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for label, key in keys.items():
            points = [(e["step"], e[key]) for e in history if _finite(e.get(key))]
            if points:
                mark = "o" if len(points) < 12 else ""
                said = label.replace("_", " ")
                axes.plot(*zip(*points, strict=True), label=said, lw=1.6, marker=mark, ms=3.5)
        if not axes.lines:
            return ""
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.2)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _on_page(file.getvalue(), caption)


def _on_page(svg: str, caption: str) -> str:
    """The drawing as a part of the page, which gives it its size and its light or dark colours."""
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index("</metadata>") + len("</metadata>") :]
    inner = re.sub(r'<g id="[^"]*">', "<g>", inner)  # the same names would recur in every drawing
    for i, colour in enumerate(LINES, start=1):
        inner = inner.replace(colour, f"var(--line{i})")
    inner = inner.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    return f'<svg {box} role="img" aria-label="{caption}">{inner}'
