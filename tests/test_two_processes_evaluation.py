"""Two processes measure what one does, also where the data's order counts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import two_processes_evaluation as launched

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
def test_two_processes_measure_what_one_does(case, two, tmp_path):
    path = launched.written(case, tmp_path / case)
    found, one = two[case], launched.measure(case, path, processes=1)
    assert (found["world_size"], one["world_size"]) == (2, 1)
    assert found["metrics"] == pytest.approx(one["metrics"], rel=5e-4, abs=1e-5)
    assert one["metrics"]
    assert_alike(found["tables"], one["tables"])
    assert found["encoded"] == one["encoded"]
    assert (found["noticed"], one["noticed"]) == (True, True)
    if case != "translation":
        assert one["encoded"] > one["rows"]
        assert one["encoded"] % launched.SIZE, "the last batch repeats rows"


def assert_alike(found, expected):
    """Nested tables with the same words and numbers."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert_alike(value, expected[key])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
    else:
        assert found == expected
