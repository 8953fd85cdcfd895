"""Killed at any moment, the same command goes on and ends at the same weights, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TRIALS = Path(__file__).parents[1] / "benchmarks" / "kill_trials.py"


def test_sigkill_then_the_same_command_ends_at_the_same_weights():
    command = [sys.executable, str(TRIALS), "--trials", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bit_equal"] == 3
    assert found["kills"] > 0
