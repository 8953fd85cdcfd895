"""Trackers get penalty, drift and plan; without one nothing is measured, and nothing is sent."""

import importlib
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import text_recipe
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_sft import L2SP, LPFT, Similarity, TrainLast, TransferTrainer
from hf_sft.recipe import Recipe
from hf_sft.starting_point import StartingPoint
from hf_sft.training.tracked import Tracked, key_of
from hf_sft.training_arguments import training_arguments

FRESH = ["classifier.weight", "classifier.bias"]


class Recorder(TrainerCallback):
    """What any tracker of transformers is: a callback that hears the log."""

    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        assert model is not None
        self.heard.append((state.global_step, logs))

    def of(self, key):
        return {step: logs[key] for step, logs in self.heard if key in logs}


def trained(folder, penalty=None, freeze=None, callbacks=(), **changes):
    args = tiny.arguments(folder, **changes)
    settings = {"penalty": penalty, "freeze": freeze, "callbacks": list(callbacks)}
    run = TransferTrainer(tiny.bert(), args, train_dataset=tiny.texts(24), fresh=FRESH, **settings)
    run.train()
    return run


def test_tensorboard_keeps_penalty_drift_and_plan(tmp_path):
    run = trained(tmp_path, L2SP(lambda_=0.3, head=0.1), LPFT(), report_to="tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()

    def curve(key):
        return {event.step: event.value for event in events.Scalars(f"train/{key}")}

    for key in ("penalty", "objective", "pull_to_gradient"):
        logged = {e["step"]: e[key] for e in run.state.log_history if key in e}
        assert curve(key) == pytest.approx(logged, rel=1e-6)
    moved = run.starting_point.distance(run.model, run.layer_groups)
    for group in moved:
        if group["drift"] is not None:
            name = key_of(group["name"])
            assert curve(f"drift/{name}")[6] == pytest.approx(group["drift"], rel=1e-5)
            assert curve(f"relative_drift/{name}")[6] == pytest.approx(group["relative_drift"])
    trains = curve("trains/bert.encoder.layer.0")
    assert trains[1] == 0  # the head alone, then everything
    inside = run.model.bert.encoder.layer[0].parameters()
    assert trains[6] == sum(parameter.numel() for parameter in inside)
    assert curve("lambda/bert.encoder.layer.0")[1] == 0
    assert curve("lambda/bert.encoder.layer.0")[6] == pytest.approx(0.3)
    assert curve("lambda/head")[1] == pytest.approx(0.1)
    assert 0 < curve("learning_rate/head")[1] <= 1e-2


def test_any_callback_that_hears_the_log_is_a_tracker(tmp_path, capsys):
    recorder = Recorder()
    run = trained(tmp_path, Similarity(), TrainLast(count=1), [recorder])
    drift = recorder.of("drift/bert.encoder.layer.1")
    assert set(drift) == set(range(1, 7))
    assert 0 < drift[1] < drift[6]
    assert set(recorder.of("drift/bert.encoder.layer.0").values()) == {0.0}
    assert not recorder.of("drift/head")  # it has no source
    assert not recorder.of("lambda/bert.encoder.layer.1")  # no prior on weights
    assert set(recorder.of("learning_rate/stem").values()) == {0.0}
    assert set(recorder.of("penalty")) == set(drift)
    assert not [key for entry in run.state.log_history for key in entry if key.startswith("drift")]
    assert "drift/" not in capsys.readouterr().out  # not printed


def test_without_a_tracker_nothing_is_measured(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(StartingPoint, "distance", refuse)
    trained(tmp_path, L2SP())
    with pytest.raises(AssertionError, match="measured"):
        trained(tmp_path, L2SP(), callbacks=[Recorder()])


@pytest.fixture
def notebook(monkeypatch):
    """transformers' bar in a notebook, without IPython."""
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delitem(sys.modules, "transformers.utils.notebook", raising=False)
    yield importlib.import_module("transformers.utils.notebook").NotebookProgressCallback
    sys.modules.pop("transformers.utils.notebook")


@pytest.mark.parametrize("engine", ["one process", "deepspeed"])
def test_who_is_a_tracker(engine, notebook):
    """No bar, also in a notebook; and nobody where parameters are not whole."""
    recorder = Recorder()
    callbacks = [PrinterCallback(), ProgressCallback(), notebook(), recorder]
    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=callbacks),
        is_fsdp_enabled=False,
        is_deepspeed_enabled=engine == "deepspeed",
    )
    assert Tracked(trainer).trackers() == ([] if engine == "deepspeed" else [recorder])


def test_the_drift_of_adapters_is_that_of_their_product(tmp_path):
    peft = pytest.importorskip("peft")
    recorder = Recorder()
    wanted = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(tiny.bert(), wanted)
    fresh = [name for name, p in model.named_parameters() if p.requires_grad]
    args = tiny.arguments(tmp_path)
    settings = {"train_dataset": tiny.texts(24), "fresh": fresh, "callbacks": [recorder]}
    TransferTrainer(model, args, **settings).train()
    drifts = {key for _, logs in recorder.heard for key in logs if key.startswith("drift/")}
    last = {key: recorder.of(key)[6] for key in drifts}
    assert max(last.values()) > 0


def test_a_recipe_reports_to_whom_it_names_and_to_nobody_otherwise(tmp_path):
    path = text_recipe(tmp_path)
    assert training_arguments(Recipe.load(path)).report_to == []
    named = Recipe.load(path, ["training.report_to=tensorboard"])
    assert training_arguments(named).report_to == ["tensorboard"]


WATCHED = """
import sys
reached = []
def heard(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        reached.append((event, repr(details)))
sys.addaudithook(heard)
from hf_sft.cli import main
code = main(["run", sys.argv[1]])
assert code == 0, code
assert not reached, reached
"""


@pytest.mark.slow
def test_a_run_reaches_out_to_nobody(tmp_path):
    """With the Hub switched on, source and data on this machine, and no key about it."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    path = text_recipe(tmp_path, training={"num_train_epochs": 1})
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
