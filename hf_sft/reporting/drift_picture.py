"""drift.png: how far each layer group moved from the source, as the model card shows it."""

import io
import math
from typing import Any

from hf_sft.visible import visible

NAME = "drift.png"
MOST_NAMED, LONGEST = 40, 40  # layer groups that have room for a name, and its letters
INK, BAR = "#24292f", "#2563be"


def shown(groups: list[dict[str, Any]]) -> list[tuple[str, float, bool]]:
    """(name, ‖θ − θ⁰‖/‖θ⁰‖ in percent, whether it trained) of what came from the source.

    Empty where nothing of it moved, as under a linear probe.
    """
    rows = [
        (visible(group["name"])[:LONGEST], 100 * group["relative_drift"], bool(group["trainable"]))
        for group in groups
        if isinstance(group["relative_drift"], float) and math.isfinite(group["relative_drift"])
    ]
    return rows if any(moved for _, moved, _ in rows) else []


def draw(groups: list[dict[str, Any]]) -> bytes:
    """A PNG, the same bytes for the same groups; none where nothing of the source moved."""
    rows = shown(groups)
    if not rows:
        return b""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: nothing stays behind

    names, moved, trained = zip(*rows, strict=True)
    step = math.ceil(len(rows) / MOST_NAMED)
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "text.color": INK}):
        figure = Figure((7, 0.9 + 0.25 * len(rows[::step])), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(rows)), moved, color=BAR, height=0.7)
        axes.set_yticks(range(len(rows))[::step], names[::step])
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel("‖θ − θ⁰‖ in % of ‖θ⁰‖")
        for at in range(0, len(rows), step):
            said = f" {moved[at]:.3g} %" if trained[at] else " frozen"
            axes.text(moved[at], at, said, va="center", fontsize=8)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
