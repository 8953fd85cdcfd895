"""FSDP2: two processes that hold half of θ and of θ⁰ each take the steps of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from launch import two_shards

SCRIPT = Path(two_shards.__file__)
METHODS = [name for name in two_shards.PENALTIES if name != "none"]
BY_NORMS = {"ball", "spd"}  # rules around the step; group-lasso's channels are rows, whole here


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found in all cases, from one launch."""
    folder = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(folder / "results.pt")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def one():
    """The same in this process, nothing divided."""
    return {name: two_shards.train(name) for name in two_shards.PENALTIES}


def numbers(table):
    return [value for row in table for value in row.values() if isinstance(value, float)]


@pytest.mark.parametrize("name", METHODS)
def test_shards_are_one_process(name, both, one):
    assert tiny.distance(one[name]["weights"], one["none"]["weights"]) > 1e-5
    for found in (process[name] for process in both):
        assert tiny.distance(found["weights"], one[name]["weights"]) <= 1e-6
        assert found["value"] == pytest.approx(one[name]["value"], rel=1e-5)
        assert found["changed"] == one[name]["changed"]
        assert numbers(found["distance"]) == pytest.approx(numbers(one[name]["distance"]), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_each_process_holds_its_share_of_the_source(name, both, one):
    for kind in ("theta0_elements", "fisher_elements"):
        assert sum(process[name][kind] for process in both) == one[name][kind]
        for process in both:
            assert process[name][kind] == process[name]["theta_elements"] < one[name][kind]
    assert [process[name]["shapes_differ"] for process in both] == [[], []]
    assert [process[name]["one_row"] for process in both] == [(1, 1), (0, 0)]


@pytest.mark.parametrize("name", METHODS)
def test_single_entries_send_nothing_and_norms_once(name, both):
    """What leaves a process in a step beside the gradients of the task; and for the value of Ω."""
    once = {"all_reduce": 1}
    for process in both:
        assert process[name]["step_sends"] == (once if name in BY_NORMS else {})
        assert process[name]["value_sends"] == ({} if name in BY_NORMS else once)


def test_the_drift_of_adapters_is_that_of_one_process(both):
    expected = two_shards.adapted()
    assert sum(row["drift"] for row in expected if row["drift"]) > 1
    for process in both:
        assert numbers(process["adapted"]) == pytest.approx(numbers(expected), rel=1e-5)


@pytest.mark.parametrize("name", list(two_shards.TRAINERS))
def test_the_trainer_under_fsdp2_is_the_trainer_under_ddp(name, both):
    for process in both:
        sharded, replicas = process[name, "fsdp2"], process[name, "ddp"]
        assert sharded["divided"]
        assert not replicas["divided"]
        source = {name: tensor.detach() for name, tensor in tiny.bert().named_parameters()}
        assert tiny.distance(source, replicas["weights"]) > 1e-3
        assert tiny.distance(sharded["weights"], replicas["weights"]) <= 1e-6
        assert sharded["value"] == pytest.approx(replicas["value"], rel=1e-5)
        assert sharded["changed"] == replicas["changed"] == []
        for key, values in replicas["log"].items():
            assert values
            assert sharded["log"][key] == pytest.approx(values, rel=1e-4, abs=1e-6), key


def test_a_sharded_training_goes_on_as_if_it_had_not_stopped(both):
    source = {name: tensor.detach() for name, tensor in tiny.bert().named_parameters()}
    for process in both:
        whole, after = process["resumed"]
        assert tiny.distance(source, whole) > 1e-3
        assert tiny.distance(whole, after) <= 1e-7  # norms are sums, added up otherwise
