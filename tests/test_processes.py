import logging
import os
import subprocess
import sys

import pytest
from tiny_run import text_recipe

from hf_sft import processes
from hf_sft.processes import asked_in, warn_if_fewer

RUN = ["-m", "hf_sft", "run", "quickstart"]


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch, tmp_path):
    """The person's own accelerate configuration stays out of the tests."""
    monkeypatch.setattr(processes, "default_yaml_config_file", str(tmp_path / "default.yaml"))


@pytest.mark.parametrize(
    ("command", "asked"),
    [(["python", "/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", *RUN], 2),
     (["/v/bin/python3.11", "/v/bin/accelerate", "launch", "--num_processes=4", *RUN], 4),
     (["accelerate", "launch", "--num-processes", "3", *RUN], 3),
     (["accelerate", "launch", "--cpu", *RUN], None),
     (["python", "/v/bin/accelerate-launch", "--num_processes", "2", *RUN], 2),
     (["python", "-m", "accelerate.commands.launch", "--num_processes", "2", *RUN], 2),
     (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"], 2),
     (["accelerate", "launch", "/v/bin/hf-sft", "run", "r.yaml", "--num_processes", "9"], None),
     (["accelerate", "launch", *RUN, "--num_processes", "9"], None),
     (["accelerate", "launch", "-m", "my.module", "--num_processes", "9"], None),
     (["accelerate", "launch", "--num_processes", "many", *RUN], None),
     (["accelerate", "test", "--num_processes", "2"], None),
     (["torchrun", "--nproc_per_node", "2", *RUN], None),
     (["python", *RUN], None),
     (["bash", "-c", "accelerate launch --num_processes 2"], None),
     (["accelerate"], None),
     ([], None)],
)  # fmt: skip
def test_the_number_is_read_from_the_launchers_options_only(command, asked):
    assert asked_in(command) == asked


def test_the_number_may_stand_in_a_configuration(tmp_path):
    file = tmp_path / "multi_cpu.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 3\n")
    assert asked_in(["accelerate", "launch", "--config_file", str(file), *RUN]) == 3
    assert asked_in(["accelerate", "launch", f"--config-file={file}", *RUN]) == 3
    both = ["accelerate", "launch", "--config_file", str(file), "--num_processes", "2", *RUN]
    assert asked_in(both) == 2
    assert asked_in(["accelerate", "launch", *RUN]) is None
    file.rename(tmp_path / "default.yaml")
    assert asked_in(["accelerate", "launch", *RUN]) == 3


@pytest.mark.parametrize("text", ["[", "word", "", "num_machines: 1", "\x00"])
def test_a_configuration_that_is_none_says_nothing(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    for name in ("c.yaml", "gone.yaml"):
        assert (
            asked_in(["accelerate", "launch", "--config_file", str(tmp_path / name), *RUN]) is None
        )


@pytest.mark.parametrize(
    ("asked", "running", "told"), [(2, 1, True), (2, 2, False), (None, 1, False)]
)
def test_fewer_processes_than_asked_for_are_told(monkeypatch, caplog, asked, running, told):
    monkeypatch.setattr(processes, "asked_of_launcher", lambda: asked)
    with caplog.at_level(logging.WARNING):
        warn_if_fewer(running)
    assert ("torchrun --nproc_per_node 2" in caplog.text) == told
    assert ("2 processes were asked for, 1 runs" in caplog.text) == told


@pytest.mark.slow
def test_accelerate_launch_on_the_cpu_says_that_one_process_runs(tmp_path):
    recipe = text_recipe(tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*command, "-m", "hf_sft", "check", str(recipe)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes were asked for, 1 runs" in done.stderr
    assert "--nproc_per_node 2" in done.stderr
    assert "examples/s" not in done.stderr  # no bars of what takes a moment
    assert not (tmp_path / "out").exists()
