"""What a finished run leaves to be read, and its way to the Hub: looked over before, gone after."""

from typing import Any

from accelerate import PartialState
from huggingface_hub import constants, get_token

from hf_sft import hub
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.reporting import card, card_metadata, drift_picture, outcome, report_page
from hf_sft.reporting.report import Report

ONCE = ("hub_strategy", "hub_always_push")  # of Trainer, which would push while it trains


def refuse_hopeless(recipe: Recipe, prepared: Any) -> None:
    """Before the first step: what would stop the push at the end, as far as it is known here.

    Raises:
        RecipeError: everything that is wrong; the network is not asked.
    """
    asked = recipe.training
    if not asked.get("push_to_hub"):
        return
    repo, found = repository(recipe), []
    wanted = asked.get("hub_private_repo"), asked.get("hub_revision")
    later = hub.again(recipe.output_dir, repo, *wanted)
    if not card_metadata.is_hub_id(repo):
        found.append(f"hub_model_id: {repo!r} is no name of a repository; write user/name or name.")
    if get_token() is None:
        found.append(
            "push_to_hub: no token of the Hub is known. Run `hf auth login`, or set HF_TOKEN."
        )
    if constants.HF_HUB_OFFLINE:
        found.append(
            "push_to_hub: HF_HUB_OFFLINE switches the Hub off. Unset it, or leave push_to_hub out "
            f"and run later: {later}"
        )
    wrong = card_metadata.problems(card.expected(before(recipe, prepared), repo))
    found += [f"push_to_hub: the Hub would refuse the model card: {line}." for line in wrong]
    found += [f"{key}: a run is pushed once, when it is finished; leave the key out."
              for key in ONCE if asked.get(key)]  # fmt: skip
    if found:
        raise RecipeError("\n".join(f"{recipe.path.name}: training.{line}" for line in found))


def before(recipe: Recipe, prepared: Any) -> dict[str, Any]:
    """The part of the report that the card's metadata are made of, with numbers to come."""
    measured = dict.fromkeys([*recipe.task.metric_names, "loss"], 0.0)
    return {
        **outcome.asked(recipe, prepared),
        "metrics": {split: measured for split in prepared.encoded if split != "train"},
        "penalty": {"methods": [p.describe() for p in prepared.trainer.penalties]},
        "freeze": prepared.trainer.freeze.describe(),
    }


def repository(recipe: Recipe) -> str:
    """``training.hub_model_id``, by default called like the run's folder."""
    return recipe.training.get("hub_model_id") or recipe.output_dir.resolve().name


def publish(recipe: Recipe, prepared: Any, report: Report) -> None:
    """Save report, card, its picture, and page, in this order: with the page a run is finished.

    The report keeps the digest of the card, by which an edited one is known later.
    """
    trainer, folder = prepared.trainer, recipe.output_dir
    text = card.render(report)
    report.data["card_sha256"] = card.digest(text)
    if trainer.is_world_process_zero():
        report.save(folder)
        (folder / "README.md").write_text(text, "utf-8")
        if drawn := drift_picture.draw(report.data["groups"]):
            (folder / drift_picture.NAME).write_bytes(drawn)
        (folder / "report.html").write_text(report_page.render(report), "utf-8")
    trainer.accelerator.wait_for_everyone()


def push_when_asked(recipe: Recipe) -> None:
    """Push a finished run with the ``hub_*`` keys; private unless they say otherwise.

    Raises:
        PushError: the Hub does not take it; everything is in the output folder all the same.
    """
    asked = recipe.training
    if asked.get("push_to_hub") and PartialState().is_main_process:
        url = hub.push(
            recipe.output_dir,
            repository(recipe),
            private=asked.get("hub_private_repo"),
            revision=asked.get("hub_revision"),
        )
        print(f"On the Hub: {url}")  # noqa: T201
