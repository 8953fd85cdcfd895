"""A run whose source and data come from the Hub and whose result goes there, over HTTP."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from loopback_hub import LoopbackHub, read_card
from tiny_run import ROWS, source_folder, text_recipe, write_csv

pytestmark = pytest.mark.slow


def command(hub, words):
    return subprocess.run(
        [sys.executable, "-m", "hf_sft", *map(str, words)],
        env={**os.environ, **hub.env(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def put_twice(hub, tmp_path):
    """Source and data, each in two versions; the commits of the first."""
    source, data = source_folder(tmp_path / "bert"), tmp_path / "data"
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A source\n", "utf-8")
    data.mkdir()
    write_csv(data / "train.csv", ROWS)
    write_csv(data / "test.csv", ROWS[::3])
    first = {"source": hub.add("user/source", source),
             "data": hub.add("user/data", data, repo_type="dataset")}  # fmt: skip
    (source / "model.safetensors").unlink()
    hub.add("user/source", source_folder(source))  # other weights
    write_csv(data / "train.csv", ROWS[:4])
    hub.add("user/data", data, repo_type="dataset")
    return first


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run at pinned commits whose push is forbidden, and the push that it names for later."""
    tmp_path = tmp_path_factory.mktemp("run")
    with LoopbackHub(tmp_path / "hub") as hub:
        first = put_twice(hub, tmp_path)
        model = {"name": "user/source", "revision": first["source"]}
        recipe = text_recipe(tmp_path, model=model)
        data = f"data={{type: hub, path: user/data, revision: {first['data']}}}"
        asked = ["training.push_to_hub=true", "training.hub_model_id=user/tuned"]
        hub.fail("POST", "/commit/", 403, times=1)
        run = command(hub, ["run", recipe, data, *asked])
        left = {path.name for path in (tmp_path / "out").iterdir()}
        later = shlex.split(run.stderr.rpartition("try again with: ")[2].strip() or "none")
        push = command(hub, later[1:])
        return {
            "first": first,
            "run": run,
            "left": left,
            "later": later,
            "push": push,
            "pushed": hub.files("user/tuned"),
            "private": hub.is_private("user/tuned"),
            "endpoint": hub.endpoint,
            "out": tmp_path / "out",
        }


def test_a_push_that_fails_at_the_end_loses_neither_the_model_nor_the_message(seen):
    ended = seen["run"]
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert {"model", "report.json", "README.md", "report.html", "drift.png"} <= seen["left"]
    assert "Nothing stayed frozen." in ended.stdout  # the result
    assert f"Model, report and card: {seen['out']}" in ended.stdout
    assert "hf-sft: push to 'user/tuned': the token may not write to user/tuned" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert seen["later"] == ["hf-sft", "push", str(seen["out"]), "user/tuned"]


def test_the_command_for_later_pushes_what_was_trained(seen):
    assert seen["push"].returncode == 0, seen["push"].stderr[-3000:]
    assert f"{seen['endpoint']}/user/tuned" in seen["push"].stdout
    assert seen["private"]
    local = (seen["out"] / "model" / "model.safetensors").read_bytes()
    assert seen["pushed"]["model.safetensors"] == local
    assert {"config.json", "README.md", "report.html", "drift.png"} <= set(seen["pushed"])


def test_rows_that_are_public_on_the_hub_are_shown_there(seen):
    local = (seen["out"] / "report.json").read_text("utf-8")
    tables = json.loads(local)["tables"]["test"]
    assert "most_confident_mistakes" in tables
    assert json.loads(seen["pushed"]["report.json"])["tables"]["test"] == tables


def test_source_and_data_are_those_of_the_pinned_commits(seen):
    report = json.loads((seen["out"] / "report.json").read_text("utf-8"))
    assert report["source"]["hub_id"] == "user/source"
    assert report["source"]["revision"] == seen["first"]["source"]
    assert report["data"] == {"hub_id": "user/data", "revision": seen["first"]["data"]}
    assert report["splits"]["train"] == len(ROWS)  # the newest commit has four


def test_the_card_names_where_it_all_came_from(seen):
    text = seen["pushed"]["README.md"].decode()
    facts, refused = read_card(text)
    assert not refused
    assert (facts["base_model"], facts["base_model_relation"]) == ("user/source", "finetune")
    assert facts["datasets"] == ["user/data"]
    assert facts["license"] == "cc-by-4.0"
    assert facts["metrics"]
    where = facts["model-index"][0]["results"][0]["dataset"]
    assert where["revision"] == seen["first"]["data"]
    assert seen["first"]["source"] in text
    assert str(seen["out"].parent) not in text
