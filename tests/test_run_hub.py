"""A run whose source and data come from the Hub and whose result goes there, over HTTP."""

import json
import os
import subprocess
import sys

import pytest
from loopback_hub import LoopbackHub
from tiny_run import source_folder, text_recipe

pytestmark = pytest.mark.slow


def test_source_and_data_by_id_and_push_when_asked(tmp_path):
    recipe = text_recipe(tmp_path, model={"name": "user/source"})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").rename(tmp_path / "data" / f"{split}.csv")
    with LoopbackHub(tmp_path / "hub") as hub:
        revision = hub.add("user/source", source_folder(tmp_path / "bert"))
        hub.add("user/data", tmp_path / "data", repo_type="dataset")
        overrides = ["data={type: hub, path: user/data}", "training.push_to_hub=true"]
        command = [sys.executable, "-m", "hf_sft", "run", str(recipe), *overrides]
        ended = subprocess.run(
            [*command, "training.hub_model_id=user/tuned"],
            env={**os.environ, **hub.env(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        pushed = hub.files("user/tuned")
        assert hub.is_private("user/tuned")
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["source"]["hub_id"] == "user/source"
    assert report["source"]["revision"] == revision
    assert {"config.json", "model.safetensors", "README.md", "report.html"} <= set(pushed)
    card = pushed["README.md"].decode()
    assert "base_model: user/source" in card
    assert "- user/data" in card
    assert str(tmp_path) not in card
