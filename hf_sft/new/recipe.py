"""A data set looked at: its columns, what looks wrong in it, and a recipe that trains on it."""

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from pydantic import ValidationError

from hf_sft import component
from hf_sft.errors import RecipeError, UserError, listing, nearest
from hf_sft.loaders import Loader
from hf_sft.new.column_roles import Roles
from hf_sft.new.columns import roles
from hf_sft.new.data import data_block
from hf_sft.new.decisions import (
    both_sides,
    carve_test,
    keep_classes,
    leave_out_unlabelled,
    read_both_colours,
    say_other_labels,
)
from hf_sft.new.findings import Finding
from hf_sft.new.look import Labels, labels_of, look
from hf_sft.new.method import METHODS, Method, epochs
from hf_sft.new.reading import read
from hf_sft.new.try_out import try_out
from hf_sft.problems import problem
from hf_sft.recipe_text import BLOCKS, apply_override, dump, model_block
from hf_sft.resources import PACKAGE, Locate, locator
from hf_sft.tasks import Task
from hf_sft.tasks.translation_column import unfolded
from hf_sft.visible import one_line

WIDTH = 100  # of a comment
TOKENIZER, CONFIG = "tokenizer_config.json", "config.json"


@dataclass(frozen=True)
class Proposal:
    """What was found, and the recipe that follows from it.

    Attributes:
        name: of the data.
        raw: the recipe's blocks.
        method: the defaults of the task.
        data: every split as it was read.
        roles: which columns the task reads.
        labels: the class of every row or span of each split; empty without classes.
        findings: what looks wrong.
        decisions: what the recipe does about the data, a sentence each.
        refusal: why ``run`` would not take the data as they are; None when it does.
        source: why it would not take the source; None when it does, or was not asked.
    """

    name: str
    raw: dict[str, Any]
    method: Method
    data: DatasetDict
    roles: Roles
    labels: Labels
    findings: list[Finding]
    decisions: list[str]
    refusal: str | None
    source: str | None = None

    def text(self, file: str) -> str:
        """The recipe with comments: what it is, how to run it, what was found in the data."""
        rows = ", ".join(f"{len(rows)} {split}" for split, rows in self.data.items())
        lines = [
            f"{self.name}: {self.raw['task']['type']}, rows: {rows}. Proposed by `hf-sft new`.",
            f"  hf-sft check {file}",
            f"  hf-sft run {file}",
            *self.decisions,
        ]
        if self.refusal is not None:
            lines += ["Before it runs, the data need a correction: `hf-sft check` says which."]
        if self.source is not None:
            lines += ["The source does not fit as it stands: `hf-sft check` says why."]
        if self.findings:
            lines.append("What looks wrong in the data:")
        lines += [f"  - {finding}" for finding in self.findings]
        head = {key: self.raw[key] for key in ("task", "data", "model")}
        rest = {key: block for key, block in self.raw.items() if key not in head}
        why = [self.method.why] if rest.keys() & {"penalty", "freeze"} else []
        return f"{_comment(lines)}{dump(head)}{_comment(why)}{dump(rest)}"


def _comment(lines: Sequence[str]) -> str:
    return "".join(f"{wrapped}\n" for line in lines for wrapped in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    further = f"# {indent}  " if line.lstrip().startswith("- ") else f"# {indent}"
    return textwrap.wrap(
        one_line(line.strip()), WIDTH, initial_indent=f"# {indent}", subsequent_indent=further,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def propose(
    task: str, given: str, folder: Path, model: str | None, overrides: Sequence[str]
) -> Proposal:
    """Look at the data and decide on a recipe; nothing is written.

    Args:
        task: a ``type`` of the task block.
        given: the data: a path, ``package:…`` or a Hub id.
        folder: where the recipe will lie.
        model: a Hub id, a path, a model block in braces, or None for the task's default.
        overrides: ``a.b=c`` each; what they set is not guessed.

    Raises:
        UserError: no such task, no data there, or no column that the task could read.
    """
    method, locate = _method(task), locator(folder)
    name, raw = _begun(task, given, folder, model, overrides)
    reading = read(raw["data"], lambda block: _block(Loader, block, "data").load(locate))
    data = reading.data
    seen = data
    if task == "translation":
        seen = DatasetDict({s: unfolded(rows, f"data.{s}") for s, rows in data.items()})
    found = roles(task, seen["train"], raw["task"])
    raw["task"] |= found.keys
    _name_source(raw, method)
    labels = {split: labels_of(rows, found) for split, rows in data.items()}
    decisions = reading.decisions + say_other_labels(found) + read_both_colours(raw["data"])
    decisions += leave_out_unlabelled(data, found, labels, raw["data"])
    decisions += carve_test(data, raw["data"])
    if found.per_row:
        decisions += keep_classes(labels, raw["data"])
    findings = look(seen, found, labels, _limit(raw, method, locate))
    decisions += both_sides(findings, raw["data"])
    _add_method(raw, method, len(data["train"]))
    blocks = _block(Task, raw["task"], "task"), _block(Loader, raw["data"], "data")
    met = try_out(*blocks, data, raw["model"], locate)
    decisions += [met.not_loaded] if met.not_loaded else []
    wrong = reading.refusal or met.data, met.source
    return Proposal(name, raw, method, seen, found, labels, findings, decisions, *wrong)


def _begun(
    task: str, given: str, folder: Path, model: str | None, overrides: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and the blocks that need no look at the data."""
    raw: dict[str, Any] = {"task": {"type": task}}
    raw["data"], name = data_block(task, given, folder)
    raw["model"] = _source(model, folder) if model else {"name": None}
    for override in overrides:
        apply_override(raw, override)
    return name, raw


def _method(task: str) -> Method:
    known = [name for name in METHODS if name in component.choices(Task)]
    if task not in known:
        raise RecipeError(
            f"TASK: {task!r} is not known here. Choices: {listing(known, 20)}."
            f"{nearest(task, known)}"
        )
    return METHODS[task]


def _source(given: str, folder: Path) -> dict[str, Any]:
    """The block of a model as the command line names it."""
    block = model_block(given)
    if not isinstance(block.get("name"), str):
        raise RecipeError(f"--model: {given!r} has no name. Write '{{name: …, …}}'.")
    return block | {"name": _model_name(block["name"], folder)}


def _model_name(given: str, folder: Path) -> str:
    """A local path as the recipe has to write it; any other name as it is."""
    path = Path(given).expanduser()
    if given.startswith(PACKAGE) or not path.exists():
        return given
    relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def _block(base: type, raw: Any, where: str) -> Any:
    """The block as its object.

    Raises:
        RecipeError: what is wrong with it, one line each.
    """
    cls = component.find(base, raw.get("type"))
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("\n".join(problem(where, cls, e) for e in error.errors())) from error


def _limit(raw: dict[str, Any], method: Method, locate: Locate) -> int | None:
    """Tokens that the model reads: as the recipe says, as a local source says, or the default's.

    None where nothing is cut: longer texts are read in windows, or in blocks.
    """
    task = raw["task"]
    if method.limit is None or task.get("long_texts") == "windows" or task.get("group"):
        return None
    stated = [task.get("max_length"), task.get("max_source_length")]
    try:
        place = locate(raw["model"]["name"])
    except (UserError, TypeError, AttributeError):  # no text; told when the recipe is checked
        place = None
    for file, key in ((CONFIG, "max_position_embeddings"), (TOKENIZER, "model_max_length")):
        if place is not None and (place / file).is_file():
            stated.append(json.loads((place / file).read_text("utf-8")).get(key))
    return min([n for n in stated if isinstance(n, int)] or [method.limit])


def _name_source(raw: dict[str, Any], method: Method) -> None:
    """The method's source for what the data turned out to be, where none was named."""
    if isinstance(raw["model"], dict) and raw["model"].get("name") is None:
        raw["model"] = raw["model"] | {"name": method.source(raw["task"])}


def _add_method(raw: dict[str, Any], method: Method, rows: int) -> None:
    """The task's penalty, policy and training, where the command line said nothing else."""
    for key, block in method.blocks.items():
        raw.setdefault(key, block)
    if isinstance(training := raw.get("training") or {}, dict):
        raw["training"] = {"num_train_epochs": epochs(rows), **method.training, **training}
    for key in list(raw):
        if raw[key] is None:
            del raw[key]
    for key in [key for key in BLOCKS if key in raw]:
        raw[key] = raw.pop(key)
