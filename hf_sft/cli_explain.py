"""``hf-sft explain``: the reference of blocks, types and keys, without the web."""

import argparse
import textwrap
from typing import Any

from hf_sft.importing import importing

WIDTH = 100
BORROWED = {  # blocks whose keys are told elsewhere
    "training": "training: the keys of transformers' TrainingArguments "
    "(https://huggingface.co/docs/transformers/main_classes/trainer), each checked before anything "
    "starts. Other defaults here: logging_steps 10, save_strategy epoch, save_total_limit 2, "
    "report_to none, output_dir outputs/<recipe name>.",
    "retention": "retention: labelled rows of the source's own task, asked before and after "
    "training through the head it came with. A block like data: its types and their keys are those "
    "of `hf-sft explain data`.",
}


def add(command) -> None:
    """The command with its argument."""
    explain = command("explain", explain_name, "say what a block, a type and its keys mean")
    explain.add_argument(
        "name", nargs="?", help="a block as penalty, a type as penalty.l2-sp or l2-sp; all without"
    )


def explain_name(arguments: argparse.Namespace) -> None:
    """Print the one entry that is meant, or a line for each of several."""
    if arguments.name in BORROWED:
        print(_wrapped(BORROWED[arguments.name], ""))
        return
    with importing():
        from hf_sft.reference import entries, named

    found = named(arguments.name) if arguments.name else list(entries())
    if len(found) == 1:
        print(page(found[0]))
        return
    print("\n".join(map(line, found)))
    if not arguments.name:
        print(f"And, of what is explained elsewhere: {', '.join(BORROWED)}.")


def line(entry: Any) -> str:
    """One entry of a list."""
    return f"{entry.name:34s} {textwrap.shorten(entry.headline, WIDTH - 35, placeholder=' …')}"


def page(entry: Any) -> str:
    """Everything about one type."""
    from hf_sft.reference import refusals

    body = "" if entry.body == entry.headline else entry.body
    parts = [f"{entry.name}: {entry.headline}", entry.recipe, body, *keys(entry)]
    if refused := refusals(entry.cls):
        parts.append("Refused:\n" + "\n".join(_wrapped(text, "  ") for text in refused))
    told = "\n\n".join(part for part in (*parts, entry.citation) if part)
    return told.replace("``", "`")


def keys(entry: Any) -> list[str]:
    """A paragraph for each key: what it takes, its default, what it means."""
    told = []
    for key in entry.keys:
        default = "needed" if key.default is None else f"default {key.default}"
        told.append(f"  {key.name}: {key.kind}; {default}\n{_wrapped(key.text, '      ')}")
    return ["Keys:\n" + "\n".join(told)] if told else []


def _wrapped(text: str, indent: str) -> str:
    margin = {"initial_indent": indent, "subsequent_indent": indent}
    return textwrap.fill(text, WIDTH, **margin, break_on_hyphens=False)
