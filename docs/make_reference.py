"""Write docs/reference/ from the classes: python docs/make_reference.py"""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from hf_sft.reference import KINDS, SINGLE, Entry, entries, refusals

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
COMMAND = "python docs/make_reference.py"
NOTE = f"<!-- Written by {COMMAND} from the classes; change their docstrings instead. -->\n\n"
BLOCKS = {  # block -> what it is, and the page that tells more
    "task": ("What is to be learned, named by its pipeline tag on the Hub.", None),
    "data": ("Where the examples are, one format each.", None),
    "penalty": ("What holds the model to its source. Several make a list.", "methods.md"),
    "freeze": ("What trains when. Without the block everything does.", "freezing.md"),
    "adapter": ("What trains beside a frozen source, in place of `freeze`.", None),
    "averaging": ("The run leaves an average of the weights over its steps.", None),
}
OTHERS = {  # blocks without types
    "[`model`](model.md)": "the source",
    "[`learning_rates`](learning_rates.md)": "rules: learning rates of their own for parts of it",
    "[`early_stopping`](early_stopping.md)": "stop where the score does not rise any more",
    "[`cache`](cache.md)": "the frozen layers once per row (how: features.md)",
    "[`nonfinite`](nonfinite.md)": "stop or skip where a loss or a gradient is not finite",
    "[`compare`](compare.md)": "the arms, seeds and data sizes of `hf-sft compare`",
    "[`search`](search.md)": "keys, ranges and trials of `hf-sft search`",
    "`training`": "`TrainingArguments` of transformers, key for key; `output_dir` is "
    "`outputs/<recipe name>` by default",
    "`retention`": "a loader with its keys, as under `data`: labelled rows of the source's own "
    "task; the report tells how many its own head gets right before and after",
}
OWN = (
    "Your own class in place of a type: `penalty: {type: my_package.my_module:MyPrior}`, likewise "
    "for every block with types.\n"
)


def pages() -> dict[str, str]:
    """Path below docs/reference -> text, of all pages."""
    known = list(entries())
    used = uses()
    written = {f"{page_of(entry)}": page(entry, used[entry.name]) for entry in known}
    return {"README.md": index(known)} | written


def page_of(entry: Entry) -> str:
    return entry.name.replace(".", "/") + ".md"


def index(known: list[Entry]) -> str:
    parts = [
        f"{NOTE}# Reference\n\nEvery block of a recipe, its types and their keys. On the command "
        "line the same: `hf-sft explain`, `hf-sft explain penalty`, `hf-sft explain l2-sp`.\n"
    ]
    for block, (what, more) in BLOCKS.items():
        rows = [
            f"| [`{entry.name.partition('.')[2]}`]({page_of(entry)}) | {cell(entry.headline)} |\n"
            for entry in known
            if entry.name.startswith(f"{block}.")
        ]
        link = f" More: [{more}](../{more})." if more else ""
        parts.append(f"## `{block}`\n\n{what}{link}\n\n| type | |\n|---|---|\n{''.join(rows)}")
    rows = "".join(f"| {name} | {what} |\n" for name, what in OTHERS.items())
    return "\n".join([*parts, f"## Blocks without types\n\n| block | |\n|---|---|\n{rows}", OWN])


def page(entry: Entry, recipes: list[Path]) -> str:
    """One class: what it is, its block, its keys, what it refuses, where it is used."""
    up = "../" * (entry.name.count(".") + 1)
    source = Path(*entry.cls.__module__.split(".")).with_suffix(".py")
    headline = plain(entry.headline[:1].upper() + entry.headline[1:])
    parts = [
        f"{NOTE}# {entry.name.replace('.', ': ')}\n\n{headline}\n",
        f"```yaml\n{entry.recipe}\n```\n",
        f"{plain(entry.body)}\n" if entry.body != entry.headline else "",
        f"In reports and cards: {entry.formula}\n" if entry.formula else "",
        "".join(keys(entry)),
        "".join(refused(entry)),
        "".join(seen(entry, recipes, up)),
        f"## Citation\n\n```bibtex\n{entry.citation}\n```\n" if entry.citation else "",
        f"Class `{entry.cls.__name__}` in [{source}](../{up}{source}); "
        f"[all types]({up.removeprefix('../') or './'}README.md).\n",
    ]
    return "\n".join(part for part in parts if part)


def keys(entry: Entry) -> Iterator[str]:
    if entry.keys:
        yield "## Keys\n\n| key | takes | default | |\n|---|---|---|---|\n"
    for key in entry.keys:
        default = {None: "needed", "none": "none"}.get(key.default, f"`{key.default}`")
        yield f"| `{key.name}` | {cell(key.kind)} | {default} | {cell(key.text)} |\n"


def refused(entry: Entry) -> Iterator[str]:
    if told := refusals(entry.cls):
        yield "## Refused\n\n"
        yield "Beside keys and values that are not in the table, before anything is trained:\n\n"
        yield from (f"- {plain(text)}\n" for text in told)


def seen(entry: Entry, recipes: list[Path], up: str) -> Iterator[str]:
    """Links to the recipes that use it, and to what was measured."""
    lines = []
    for path in sorted(recipes, key=lambda path: not measured(path)):
        name = path.relative_to(ROOT).as_posix()
        first = path.read_text("utf-8").lstrip("# ").partition("\n")[0]
        told = " Measured, see there." if measured(path) else ""
        lines.append(f"- [{name}](../{up}{name}): {first}{told}\n")
    block, _, kind = entry.name.partition(".")
    evidence = (DOCS / "evidence.md").read_text("utf-8").lower()
    if block in ("penalty", "freeze") and f"| {kind}" in evidence.replace(" + ", " | "):
        lines.append(f"- measured beside others: [evidence](../{up}docs/evidence.md)\n")
    if lines:
        yield "## Used and measured\n\n"
        yield from lines


def measured(recipe: Path) -> bool:
    """Whether its header has a result."""
    return "Measured" in recipe.read_text("utf-8").partition("\ntask:")[0]


def uses() -> dict[str, list[Path]]:
    """``block.type`` -> the shipped recipes that use it."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        recipe = yaml.safe_load(path.read_text("utf-8"))
        for block in KINDS:
            given = recipe.get(block) or []
            for one in given if isinstance(given, list) else [given]:
                found[f"{block}.{one['type']}"].append(path)
        for block in set(SINGLE) - {"model"}:
            if recipe.get(block):
                found[block].append(path)
    return found


def plain(text: str) -> str:
    """A docstring as Markdown."""
    return text.replace("``", "`")


def cell(text: str) -> str:
    """In a table, where a bar parts columns."""
    return plain(text).replace("|", "\\|")


def write(folder: Path) -> None:
    """All pages, and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    write(DOCS / "reference")
