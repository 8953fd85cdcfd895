"""report.json: strict JSON, of the whole run, for every kind of penalty and policy."""

import json
from types import SimpleNamespace

import pytest
import tiny
import tiny_run

from hf_sft import L2SP, LISA, Ball, Recipe, Similarity, TrainLast, TransferTrainer, run
from hf_sft.adapter import LoRA
from hf_sft.reporting import outcome
from hf_sft.reporting.report import Report
from hf_sft.tasks.image_classification import ImageClassification
from hf_sft.tasks.mixing import CUTMIX

GROUP = {"name", "parameters", "trainable", "lambda", "learning_rate", "drift", "relative_drift",
         "cosine", "max_drift", "cka", "r2", "phases", "norm"}  # fmt: skip
PENALTY = [
    {"type": "l2-sp", "lambda": 0.1, "rules": [{"role": "norm", "lambda": float("inf")}]},
    {"type": "similarity"},
    {"type": "ball"},
]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(folder):
    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training = {"logging_steps": 1, "save_strategy": "no"}
    recipe = tiny_run.text_recipe(
        folder, penalty=PENALTY, freeze={"type": "lp-ft", "probe": 0.4}, training=training
    )
    return run(Recipe.load(recipe, [])), folder / "out"


def test_the_file_is_the_report_and_strict_json(finished):
    report, folder = finished
    assert read(folder) == report.data
    assert report.data["penalty"]["methods"][0]["rules"][0]["lambda"] == "inf"
    assert report.data["recipe"]["penalty"][0]["rules"][0]["lambda"] == "inf"


def test_every_group_tells_its_phases_its_drift_and_its_features(finished):
    groups = {group["name"]: group for group in finished[0].data["groups"]}
    assert all(set(group) == GROUP for group in groups.values())
    block, head = groups["bert.encoder.layer.0"], groups["head"]
    assert [bool(phase["trainable"]) for phase in block["phases"]] == [False, True]
    assert block["drift"] > block["max_drift"] > 0
    assert 0.9 < block["cosine"] < 1
    assert 0 < block["cka"] <= 1
    assert 0 < block["r2"] <= 1
    assert head["drift"] is head["cosine"] is head["cka"] is None


def test_the_report_tells_methods_papers_and_what_happened_when(finished):
    data = finished[0].data
    assert data["penalty"]["value"] > 0
    formulas = [method["formula"] for method in data["penalty"]["methods"]]
    assert formulas == [L2SP.formula, Similarity.formula, Ball.formula]
    assert data["citations"] == [
        paper for paper in (*(p.citation for p in (L2SP, Similarity, Ball)), data["citations"][-1])
        if paper
    ]  # fmt: skip
    assert "kumar2022" in data["citations"][-1]
    assert [set(entry["trains"]) == {"head"} for entry in data["transitions"]] == [True, False]
    assert data["model"] == {"library": "transformers"}
    assert data["data"] == {"hub_id": None, "revision": None}
    assert data["freeze"]["verified_unchanged"]
    assert data["geometry"]["examples"] == data["retention"]["examples"] == 8
    logged = {key for entry in data["history"] for key in entry}
    assert {"pull_to_gradient", "gradient_drift_cosine"} <= logged


def test_the_page_and_the_card_of_the_run_are_written(finished):
    page, card = ((finished[1] / name).read_text("utf-8") for name in ("report.html", "README.md"))
    for formula in (L2SP.formula, Ball.formula):
        assert formula in page
    assert "kumar2022" in card


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (float("nan"), None),
        (float("inf"), "inf"),
        ({"a": (1, -float("inf"))}, {"a": [1, "-inf"]}),
        ([0.5, None, "x", True], [0.5, None, "x", True]),
    ],
)
def test_what_json_cannot_hold_is_told_in_words(value, kept, tmp_path):
    assert outcome.strict(value) == kept
    Report({"value": outcome.strict(value)}).save(tmp_path)
    assert read(tmp_path) == {"value": kept}


def test_a_number_that_json_cannot_hold_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report({"value": float("nan")}).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def trained(folder, resume=None, **changes):
    build, rows = tiny.KINDS["bert"]
    args = tiny.arguments(folder, save_strategy="epoch", **changes)
    settings = {"penalty": L2SP(), "freeze": TrainLast(count=1), "fresh": ["classifier.weight"]}
    trainer = TransferTrainer(build(), args, train_dataset=rows(24), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_loss_and_time_are_of_the_whole_run_also_when_it_was_resumed(tmp_path):
    whole = trained(tmp_path)
    last = next(e for e in whole.state.log_history if "train_loss" in e)
    assert outcome.train_loss(whole) == pytest.approx(last["train_loss"], rel=1e-6)
    resumed = trained(tmp_path, str(tmp_path / "checkpoint-3"))
    assert outcome.train_loss(resumed) == pytest.approx(outcome.train_loss(whole), rel=1e-9)
    second = next(e for e in reversed(resumed.state.log_history) if "train_runtime" in e)
    timing = outcome.timing(resumed, 0.0)
    assert timing["train_seconds"] > second["train_runtime"]
    assert timing["steps"] == 6


def test_a_policy_that_draws_reports_what_it_drew(tmp_path):
    build, rows = tiny.KINDS["bert"]
    args = tiny.arguments(tmp_path, num_train_epochs=1)
    settings = {"freeze": LISA(count=1), "fresh": ["classifier.weight", "classifier.bias"]}
    trainer = TransferTrainer(build(), args, train_dataset=rows(24), **settings)
    trainer.train()
    found = outcome.groups(trainer, [])
    drawn = {name for entry in trainer.follower.transitions for name in entry["trains"]}
    assert {group["name"] for group in found if group["trainable"]} == drawn
    assert all(bool(group["drift"]) == (group["name"] in drawn) for group in found[:-1])
    asked = SimpleNamespace(adapter=LoRA(), averaging=None, task=ImageClassification(cutmix=1.0))
    assert outcome.citations(asked, trainer) == [LISA.citation, LoRA.citation, CUTMIX]
    assert outcome.pulled(trainer) == {"methods": [], "value": None}  # nothing is on weights
