"""Two processes see of a detector what one sees: labels differ in size, and are not gathered."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import two_processes_boxes

from hf_sft.training.ragged_labels import sizes


def test_two_processes_evaluate_as_one(tmp_path):
    folder, result = two_processes_boxes.data(tmp_path), tmp_path / "result.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    script = Path(two_processes_boxes.__file__)
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(result), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    two, one = torch.load(result), two_processes_boxes.evaluate(folder, processes=1)
    assert two["detections"].shape == one["detections"].shape == (5, 8, 6)
    assert torch.allclose(two["detections"], one["detections"], atol=1e-5)
    assert two["mistakes"] == one["mistakes"]
    assert sum(map(sum, one["mistakes"])) > 5
    assert two["map"] == pytest.approx(one["map"], abs=1e-6)
    assert two["boxes"] == pytest.approx(one["boxes"], rel=1e-5)
    assert one["boxes"] > 0
    assert two["finite"]


def test_sizes_of_ragged_labels():
    boxes = [{"class_labels": torch.ones(n), "boxes": torch.ones(n, 4)} for n in (3, 0, 1)]
    assert sizes(boxes).tolist() == [[15], [0], [5]]
    masks = ([torch.ones(2), torch.ones(0)], [torch.ones(2, 4, 4), torch.ones(0, 4, 4)])
    assert sizes(masks).tolist() == [[34], [0]]
