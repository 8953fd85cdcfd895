"""An interrupted comparison or search leaves its runs at saved steps, and goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import text_recipe

from hf_sft.comparing.compare import compare
from hf_sft.searching.search import search

SLOWLY = '''
import time
from pathlib import Path
from typing import Literal

from hf_sft.penalties import StepRule


class Slowly(StepRule):
    """Leaves the weights alone; a step lasts while the file is there. Writes a line for each."""

    formula = citation = ""
    type: Literal["slowly:Slowly"] = "slowly:Slowly"
    file: str

    def after_step_(self, *seen):
        with Path(self.file).with_name("steps").open("a") as steps:
            print(file=steps)
        time.sleep(0.3 if Path(self.file).exists() else 0)
'''
TRAINING = {"max_steps": 30, "save_steps": 2, "eval_strategy": "epoch", "save_strategy": "steps"}
pytestmark = pytest.mark.slow


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """The folder of a recipe whose steps take a while as long as the file ``slow`` is there."""
    (tmp_path / "slowly.py").write_text(SLOWLY, "utf-8")
    (tmp_path / "slow").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_in(place, training, **blocks):
    penalty = [{"type": "slowly:Slowly", "file": str(place / "slow")}]
    return text_recipe(place, penalty=penalty, training={**TRAINING, **training}, **blocks)


def interrupted(command, place, patterns, number):
    """Run until every pattern has a file, then signal the whole group; exit code and stderr."""
    words = [sys.executable, "-m", "hf_sft", *map(str, command)]
    started = subprocess.Popen(
        words, cwd=place, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # tests that were started in the background ignore SIGINT, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not all(any(place.glob(pattern)) for pattern in patterns):
        assert time.monotonic() < deadline
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    os.killpg(started.pid, number)  # as a terminal does, and ``timeout``
    told = started.communicate(timeout=300)[1]
    (place / "slow").unlink()
    return started.returncode, told


def steps(place):
    """How many were taken by all runs together."""
    return (place / "steps").read_text("utf-8").count("\n")


def saved(folder):
    """Step of the newest checkpoint, and the last step that was logged there."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    state = json.loads((newest / "trainer_state.json").read_text("utf-8"))
    return int(newest.name[11:]), state["global_step"]


def test_arms_save_their_step_and_the_same_command_goes_on(slowly):
    arms = {"all": {}, "head": {"freeze": {"type": "linear-probe"}}}
    path = recipe_in(slowly, {"save_steps": 7}, compare={"arms": arms, "seeds": 1})
    command = ["compare", path, "--jobs", 2, "--keep-models"]
    begun = [
        f"out/compare/{arm}/seed-0/checkpoints/checkpoint-7/trainer_state.json" for arm in arms
    ]
    code, told = interrupted(command, slowly, begun, signal.SIGTERM)
    assert code == 143, told
    assert "interrupted by SIGTERM; the same command goes on" in told
    assert "Traceback" not in told
    for arm in arms:
        place = slowly / f"out/compare/{arm}/seed-0"
        step, recorded = saved(place / "checkpoints")
        assert step == recorded
        assert step % 7  # not one that would have been saved anyway
        log = place.with_name("seed-0.log").read_text("utf-8")
        assert f"interrupted by SIGTERM; the same command goes on from checkpoint-{step}." in log
    data = compare(path, jobs=2, keep_models=True)
    assert steps(slowly) == 2 * 30  # none of them twice
    assert [run["state"] for run in data["runs"]] == ["finished"] * 2
    whole = compare(path, [f"training.output_dir={slowly / 'whole'}"], jobs=2, keep_models=True)
    for one, other in zip(data["runs"], whole["runs"], strict=True):
        assert one["metrics"] == other["metrics"]
        weights = [
            load_file(slowly / top / "compare" / one["folder"] / "model/model.safetensors")
            for top in ("out", "whole")
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_trial_goes_on_from_its_step(slowly):
    over = {"training.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    asked = {"over": over, "trials": 1}
    path = recipe_in(slowly, {"save_strategy": "epoch"}, search=asked)
    begun = ["out/search/trial-0/checkpoints/checkpoint-3/trainer_state.json"]
    code, told = interrupted(["search", path], slowly, begun, signal.SIGINT)
    assert code == 130, told
    assert "Traceback" not in told
    step, _ = saved(slowly / "out/search/trial-0/checkpoints")
    assert steps(slowly) == step > 3
    data, folder = search(path)
    assert steps(slowly) == 30
    (first,) = data["trials"]
    assert [at for at, _ in first["seen"]] == list(range(3, 31, 3))
    assert not list(folder.glob("trial-*/"))
    whole, _ = search(path, [f"training.output_dir={slowly / 'whole'}"])
    for key in ("params", "seen", "target", "retention"):
        assert whole["trials"][0][key] == first[key]
