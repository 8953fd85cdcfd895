"""SIGTERM and SIGINT: the step is finished and saved, and the same command ends where none came."""

import json
import multiprocessing
import os
import signal
import subprocess

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from hf_sft import interruption, running
from hf_sft.cli import main
from hf_sft.training.trainer import TransferMixin

TIMING = ("runtime", "per_second", "total_flos", "train_loss")


@pytest.fixture(autouse=True)
def python_hears():
    """Whoever started the tests in the background had them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe of 3 epochs of 3 steps, the last of each ragged, that evaluates and logs."""
    folder = tmp_path_factory.mktemp("interrupted")
    tiny_run.text_recipe(
        folder,
        averaging={"type": "ema", "decay": 0.5},
        training={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 5,
            "gradient_accumulation_steps": 2,
            "eval_strategy": "epoch",
            "logging_steps": 1,
            "save_total_limit": 1,
            "load_best_model_at_end": False,
        },
    )
    return folder


def command(folder, output, *more):
    return ["run", str(folder / "recipe.yaml"), f"training.output_dir={folder / output}", *more]


def outcome(folder):
    """Weights and log of a finished run; of the log what no clock decides.

    Trainer's summary is all clock, and is not written again where the last step was done already.
    """
    report = json.loads((folder / "report.json").read_text())
    log = [
        {k: v for k, v in entry.items() if not k.endswith(TIMING)}
        for entry in report["history"]
        if "train_runtime" not in entry
    ]
    return load_file(folder / "model" / "model.safetensors"), log, report["metrics"]


@pytest.fixture(scope="module")
def whole(folder):
    assert main(command(folder, "whole")) == 0
    return outcome(folder / "whole")


def send_at(monkeypatch, method, call, number, times=1):
    """Send this process a signal inside the given call of a method of the trainer."""
    given, calls = getattr(TransferMixin, method), []
    monkeypatch.setattr(interruption, "TWICE", 0)

    def sending(self, *args, **kwargs):
        calls.append(method)
        if len(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return given(self, *args, **kwargs)

    monkeypatch.setattr(TransferMixin, method, sending)


@pytest.mark.parametrize(
    ("method", "call", "number", "step"),
    [
        ("training_step", 3, signal.SIGTERM, 2),  # the first of two parts of a step
        ("training_step", 10, signal.SIGINT, 6),  # an epoch's last step: its evaluation comes first
        ("prediction_step", 1, signal.SIGTERM, 3),
        ("save_model", 2, signal.SIGINT, 6),  # while a checkpoint is written: the next step counts
        ("training_step", 15, signal.SIGTERM, 9),
    ],
)
def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    folder, whole, monkeypatch, capsys, method, call, number, step
):
    output = f"{method}-{call}"
    with monkeypatch.context() as patch:
        send_at(patch, method, call, number)
        assert main(command(folder, output)) == 128 + number
    told = capsys.readouterr().err
    name = signal.Signals(number).name
    saved = [path.name for path in (folder / output / "checkpoints").glob("checkpoint-*")]
    assert f"interrupted by {name}; the same command goes on from {saved[0]}" in told
    assert saved in ([f"checkpoint-{step}"], [f"checkpoint-{step + 1}"])
    assert saved == [f"checkpoint-{step}"] or method in ("prediction_step", "save_model")
    assert main(command(folder, output)) == 0
    weights, log, metrics = outcome(folder / output)
    assert weights.keys() == whole[0].keys()
    assert all(torch.equal(weights[key], whole[0][key]) for key in weights)
    assert log[:-1] == whole[1][:-1]
    assert metrics["test"] == whole[2]["test"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_loaders_workers(
    folder, whole, monkeypatch, capsys, number
):
    """As a terminal and a batch system send it: the process and its children have it."""
    given, calls, told = TransferMixin.training_step, [], []

    def sending(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # both workers have given a batch: they have begun
            workers = multiprocessing.active_children()
            told.extend(worker.pid for worker in workers)
            everyone = [str(process) for process in [*told, os.getpid()]]
            subprocess.run(["kill", f"-{number}", *everyone], check=True)  # torch asks who sent it
            for worker in workers:
                worker.join(0.7)  # time to die in
        return given(self, *args, **kwargs)

    more = ["training.dataloader_num_workers=2"]
    with monkeypatch.context() as patch:
        patch.setattr(TransferMixin, "training_step", sending)
        assert main(command(folder, f"group-{number}", *more)) == 128 + number
    assert len(told) == 2
    assert "goes on from checkpoint-2" in capsys.readouterr().err
    assert not [child for child in multiprocessing.active_children() if child.pid in told]
    assert main(command(folder, f"group-{number}", *more)) == 0
    weights = outcome(folder / f"group-{number}")[0]
    assert all(torch.equal(weights[key], whole[0][key]) for key in weights)


def test_a_signal_that_was_to_be_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.listening():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_twice_at_once_counts_once(folder, monkeypatch, capsys):
    """``timeout`` signals a process, and then its group."""
    with monkeypatch.context() as patch:
        send_at(patch, "training_step", 9, signal.SIGTERM, times=2)
        patch.setattr(interruption, "TWICE", 60)
        assert main(command(folder, "by-timeout")) == 143
    assert "goes on from checkpoint-5" in capsys.readouterr().err


def test_who_is_ended_by_a_parent_hears_one_signal(monkeypatch):
    monkeypatch.setattr(interruption, "TWICE", 0)

    def signalled():
        with interruption.listening(patient=True), interruption.put_off():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            signalled.reached = True

    with pytest.raises(interruption.Stopped):
        signalled()
    assert signalled.reached


def test_a_second_signal_stops_at_once(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send_at(patch, "training_step", 9, signal.SIGTERM, times=2)
        assert main(command(folder, "twice")) == 143
    assert interruption.asked() is None  # a run that begins in this process later was not asked
    assert "goes on from its last checkpoint, or" in capsys.readouterr().err
    left = [path.name for path in (folder / "twice" / "checkpoints").glob("checkpoint-*")]
    assert left == ["checkpoint-3"]
    assert main(command(folder, "twice")) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_stops_at_once_and_leaves_nothing(
    folder, monkeypatch, capsys, number
):
    monkeypatch.setattr(running, "load_data", lambda recipe: os.kill(os.getpid(), number))
    assert main(command(folder, "early", "--overwrite")) == 128 + number
    assert "the same command without --overwrite" in capsys.readouterr().err
    assert not (folder / "early").exists()


def test_a_command_that_keeps_nothing_promises_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(running, "load_data", lambda recipe: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["check", str(folder / "recipe.yaml")]) == 143
    assert "interrupted by SIGTERM; give the command again." in capsys.readouterr().err


def test_handlers_are_put_back(folder):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    main(["list"])
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_loaders_worker_waits_without_a_word(monkeypatch, capfd):
    own = os.getpid()

    def interrupted():
        with interruption.listening(), interruption.put_off():
            monkeypatch.setattr(os, "getpid", lambda: own + 1)  # as after a fork
            os.kill(own, signal.SIGINT)
            assert interruption.asked() == signal.SIGINT

    with pytest.raises(interruption.Stopped):
        interrupted()
    assert capfd.readouterr().err == ""
