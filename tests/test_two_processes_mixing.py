"""mixup and cutmix over two processes: each batch draws for its rows, and replicas stay one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from launch import two_processes_mixing
from launch.two_processes_mixing import BATCH, EPOCHS, ROWS, SEED, drawn_rows

from hf_sft.tasks.mixing import NUMBER, Mixing


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has seen and come to; a hang ends the launch."""
    folder = tmp_path_factory.mktemp("mixing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *launch, two_processes_mixing.__file__, str(folder / "result.pt")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(Path(folder / "result.pt"))


def made_alone():
    """What every row's number is in each epoch: number -> (epoch, row as it was drawn)."""
    rows, found = drawn_rows(), {}
    for epoch in range(EPOCHS):
        rows.draws.begin(SEED, epoch)
        for row in range(ROWS):
            one = rows[row]
            found[one[NUMBER]] = (epoch, row, one)
    return found


def test_a_batch_is_a_function_of_seed_epoch_and_its_rows(two):
    known, mixing = made_alone(), Mixing(0.4, 1.0)
    for own in two:
        assert len(own["seen"]) == EPOCHS * ROWS // BATCH // 2
        for number, (numbers, pixels, labels) in enumerate(own["seen"]):
            epochs = {known[one][0] for one in numbers}
            assert epochs == {number // (ROWS // BATCH // 2)}
            batch = mixing([known[one][2] for one in numbers])
            assert torch.equal(batch["pixel_values"], pixels)
            assert torch.equal(batch["labels"], labels)


def test_every_row_is_drawn_once_an_epoch_and_no_draw_comes_twice(two):
    known = made_alone()
    numbers = [one for own in two for batch, *_ in own["seen"] for one in batch]
    assert len(set(numbers)) == len(numbers) == EPOCHS * ROWS
    assert sorted(known[one][:2] for one in numbers) == [
        (epoch, row) for epoch in range(EPOCHS) for row in range(ROWS)
    ]
    pictures = [picture for own in two for _, pixels, _ in own["seen"] for picture in pixels]
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures)


def test_replicas_are_equal_and_are_one_process_with_the_same_steps(two, tmp_path):
    first, second = (own["weights"] for own in two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    one = two_processes_mixing.train(tmp_path, processes=1)
    assert tiny.distance(tiny.weights(tiny.vit()), first) > 1e-3
    assert tiny.distance(one["weights"], first) <= 1e-6
