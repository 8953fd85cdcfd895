"""Two processes take the steps that one takes with the same rows."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from launch import two_processes

SCRIPT = Path(two_processes.__file__)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of all cases from one launch: starting one costs about 10 s."""
    folder = tmp_path_factory.mktemp("two")
    result = folder / "results.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(result)


@pytest.mark.parametrize("case", [c for c in two_processes.CASES if c not in two_processes.DRAWING])
def test_two_processes_are_one(case, two, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    found, one = two[case], two_processes.train(case, tmp_path, processes=1)
    assert (found["world_size"], one["world_size"]) == (2, 1)
    source = tiny.weights(tiny.KINDS[two_processes.CASES[case][0]][0]())
    assert tiny.distance(source, one["weights"]) > 1e-3
    assert tiny.distance(one["weights"], found["weights"]) <= 1e-6
    assert found["replicas_differ"] == []
    for key, values in one["log"].items():
        assert found["log"][key] == pytest.approx(values, rel=1e-4, abs=1e-4), key
    assert found["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("case", two_processes.DRAWING)
def test_replicas_are_equal_where_each_draws_for_itself(case, two):
    assert two[case]["replicas_differ"] == []
    kind = two_processes.CASES[case][0]
    source = tiny.weights(tiny.KINDS[kind][0]())
    assert tiny.distance(source, two[case]["weights"]) > 1e-3


@pytest.mark.parametrize("case", ["frozen", "frozen-statistics"])
def test_frozen_stays_the_source_in_two_processes(case, two):
    assert two[case]["frozen_changed"] == []
    kind = two_processes.CASES[case][0]
    source = tiny.weights(tiny.KINDS[kind][0]())
    changed = tiny.different(source, two[case]["weights"])
    assert changed
    assert not any("running" in name or "embeddings" in name for name in changed)
