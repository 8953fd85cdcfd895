"""Under DDP, replicas stay equal through every change of plan, and are what one process trains."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from launch import two_processes_dynamic as launched

pytestmark = pytest.mark.slow
SCRIPT = Path(launched.__file__)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of all cases from one launch."""
    result = tmp_path_factory.mktemp("two") / "results.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(result)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(result)


@pytest.mark.parametrize("case", launched.CASES)
def test_replicas_stay_equal_and_are_one_process(case, two, tmp_path):
    found, one = two[case], launched.train(case, tmp_path, processes=1)
    assert (found["world_size"], one["world_size"]) == (2, 1)
    assert found["differ"] == [[]] * 12, "bit for bit, after every step"
    for step, (ours, theirs) in enumerate(zip(found["weights"], one["weights"], strict=True)):
        assert tiny.distance(ours, theirs) <= 1e-6, step
    assert found["transitions"] == one["transitions"]
    assert len(found["transitions"]) > 1 or case == "auto-rgn"
    assert tiny.distance(one["weights"][0], one["weights"][-1]) > 1e-2
    assert found["frozen_changed"] == one["frozen_changed"] == []


def test_signals_are_the_same_up_to_rounding(two, tmp_path):
    found, one = two["auto-rgn"], launched.train("auto-rgn", tmp_path, processes=1)
    assert found["signals"]["w"] == pytest.approx(one["signals"]["w"], rel=1e-3, abs=1e-6)


def test_one_process_that_is_asked_to_stop_stops_both_at_one_step(two):
    assert two["stopped"]["told"] == [(signal.SIGTERM, "checkpoint-5")] * 2
    assert two["stopped"]["steps"] == 7
    assert tiny.distance(two["stopped"]["weights"], two["gradual"]["weights"][-1]) == 0
