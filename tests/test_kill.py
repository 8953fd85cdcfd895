"""Killed at any moment, the same command goes on and ends at the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

pytestmark = pytest.mark.slow

WORDS = ["good", "bad", "fine", "poor", "film", "book", "meal", "the", "a", "very", "not", "was"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A small BERT folder, 120 labelled rows and a recipe with dropout, a penalty and a policy."""
    folder = tmp_path_factory.mktemp("kill")
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    rows = [
        f"{WORDS[i % 4]} {WORDS[4 + i % 3]} {WORDS[7 + i % 5]},{'yes' if i % 2 else 'no'}"
        for i in range(120)
    ]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    blocks = {
        "task": {"type": "text-classification", "text": ["text"]},
        "data": {"type": "table", "train": "train.csv", "test_fraction": 0.2},
        "model": {"name": "./bert"},
        "penalty": {"type": "l2-sp", "lambda": 0.1, "head": 0.01},
        "freeze": {"type": "train-last", "count": 2},
        "training": {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 20,
            "learning_rate": 1e-3,
            "use_cpu": True,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks))
    return path


def command(recipe: Path, output: Path) -> list[str]:
    run = [sys.executable, "-m", "hf_sft", "run", str(recipe)]
    return [*run, f"training.output_dir={output}"]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def kill_at(recipe: Path, output: Path, checkpoint: int) -> None:
    """Start the run and SIGKILL it as soon as a checkpoint's folder appears, whole or not."""
    process = subprocess.Popen(
        command(recipe, output),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / f"checkpoint-{checkpoint}").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_sigkill_then_the_same_command_ends_at_the_same_weights(recipe, tmp_path):
    whole = tmp_path / "whole"
    subprocess.run(command(recipe, whole), env=environment(), check=True, capture_output=True)
    expected = load_file(whole / "model" / "model.safetensors")
    for cut in (3, 12, 33):
        output = tmp_path / f"cut-{cut}"
        kill_at(recipe, output, cut)
        assert not (output / "report.json").exists()
        again = subprocess.run(
            command(recipe, output), env=environment(), check=True, capture_output=True, text=True
        )
        if cut > 3:  # an earlier checkpoint is whole for certain
            assert "Going on from" in again.stderr
        found = load_file(output / "model" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
