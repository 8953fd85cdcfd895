"""A pushed run comes back as it was trained; what must stay here stays here.

The client part runs this file as a script, once, with the Hub's address in its environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from loopback_hub import LoopbackHub
from test_report_page import HOME, sample

from hf_sft import cli, hub, retrying
from hf_sft.errors import UserError
from hf_sft.interruption import Stopped
from hf_sft.reporting import card, card_metadata, report_page
from hf_sft.reporting.report import Report
from hf_sft.reporting.without_rows import without_rows

LABELS = ["flower", "tree", "<b>|weed"]
OURS = {"README.md", "report.html", "report.json", "recipe.yaml"}
PICTURE = "drift.png"
ROW = "a row that nobody else may read"


def text_run(folder):
    """A run that ended in a BERT of two layers."""
    import tiny
    import tiny_run
    from transformers import AutoTokenizer

    model = tiny.bert().eval()
    model.resize_token_embeddings(len(tiny_run.WORDS) + 5)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: i for i, label in enumerate(LABELS)}
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.source_folder(folder.parent / "source"))
    return write_run(folder, "text-classification", model, tokenizer)


def image_run(folder):
    """A run that ended in a timm ResNet."""
    import timm
    import tiny
    from transformers import TimmWrapperImageProcessor

    model = tiny.resnet().eval()
    model.config.label_names = LABELS
    model.config.num_labels = len(LABELS)
    model.config.pretrained_cfg = {
        **timm.get_pretrained_cfg("resnet10t").to_dict(),
        "input_size": [3, tiny.PIXELS, tiny.PIXELS],
        "num_classes": len(LABELS),
    }
    processor = TimmWrapperImageProcessor(model.config.pretrained_cfg)
    return write_run(folder, "image-classification", model, processor, architecture="resnet10t")


def write_run(folder, task, model, processor, **settings):
    import torch

    from hf_sft import model_folder

    folder.mkdir(parents=True)
    head = model.classifier if hasattr(model, "classifier") else model.timm_model.fc
    head.bias.data = torch.tensor([0.0, 1.0, 3.0])  # the labels are no tie
    model_folder.save(model, processor, folder / "model")
    report = with_rows(sample(LABELS, task=task))
    report.data["recipe"]["task"]["type"] = task
    report.data["recipe"]["model"] |= settings
    report.data["environment"]["device"] = f"cpu of {Path(HOME).parent}/x"
    report.save(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(report.data["recipe"]), "utf-8")
    (folder / "README.md").write_text(card.render(report), "utf-8")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")
    return model


def with_rows(report):
    """A report that shows a text and an image of the evaluated rows."""
    report.data["tables"]["test"]["most_confident_mistakes"] = [{"text": ROW, "mistake": "a for b"}]
    chart = {
        "caption": "precision over recall",
        "lines": {"a": [[0, 1], [1, 0]]},
        "x": "r",
        "y": "p",
    }
    image = {"caption": ROW, "image": "data:image/jpeg;base64,AAAA"}
    report.data["pictures"] = {"test": {"curves": [chart], "largest errors": [image]}}
    return report


def client(work):
    """What the client sees; its last line of output is JSON."""
    seen = {"text": pushed_text(work), "image": pushed_image(work)}
    run = work / "text"
    seen["branch"] = hub.push(run, "user/text", revision="second")
    hub.push(run, "user/open", private=False)
    seen["open_again"] = hub.push(run, "user/open", private=False)
    (run / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n", "utf-8")
    hub.push(run, "user/edited")
    (run / "README.md").write_text(f"---\nlicense: mit\nx: {HOME}/y\n---\n", "utf-8")
    seen["refused"] = {
        "card": refusal(run, "user/private-card"),
        "public": refusal(work / "image", "user/open", private=True),
        "said neither way": refusal(work / "image", "user/open"),
        "token": refusal(work / "image", "user/image", token="hf_wrong"),
        "name": refusal(work / "image", "user/a/b"),
    }
    print(json.dumps(seen))  # noqa: T201


def refusal(run, repo, **settings):
    try:
        return hub.push(run, repo, **settings)
    except hub.PushError as error:
        return f"PushError: {error}"


def pushed_text(work):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    trained = text_run(work / "text")
    seen = {"url": hub.push(work / "text", "user/text")}
    inputs = AutoTokenizer.from_pretrained("user/text")("red rose tall", return_tensors="pt")
    seen |= compared(AutoModelForSequenceClassification, "user/text", work, trained, inputs)
    seen["predicted"] = pipeline("text-classification", model="user/text")("red rose tall")[0]
    return seen


def pushed_image(work):
    import tiny
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    trained = image_run(work / "image")
    hub.push(work / "image", "user/image")
    picture = Image.new("RGB", (tiny.PIXELS, tiny.PIXELS), (200, 30, 30))
    inputs = AutoImageProcessor.from_pretrained("user/image")(picture, return_tensors="pt")
    seen = compared(AutoModelForImageClassification, "user/image", work, trained, inputs)
    seen["different_in_timm"] = in_timm("user/image", trained)
    seen["predicted"] = pipeline("image-classification", model="user/image")(picture)[0]
    return seen


def compared(auto, repo, work, trained, inputs):
    """The pulled model against the trained one's weights and the local folder's logits.

    Both are read from a file: in another place of memory a kernel may round the last bit otherwise.
    """
    import tiny
    import torch

    pulled = auto.from_pretrained(repo)
    local = auto.from_pretrained(work / repo.rpartition("/")[2] / "model")
    with torch.no_grad():
        logits = pulled(**inputs).logits
        equal = torch.equal(logits, local(**inputs).logits)
    different = tiny.different(tiny.weights(trained), tiny.weights(pulled))
    scores = logits.softmax(-1)[0]
    expected = {"label": LABELS[int(scores.argmax())], "score": float(scores.max())}
    return {"equal": equal, "different": different, "expected": expected}


def in_timm(repo, trained):
    """Names of the weights that timm loads otherwise, or why it cannot."""
    import timm
    import tiny

    try:
        model = timm.create_model(f"hf-hub:{repo}", pretrained=True)
    except RuntimeError as error:
        return str(error)[:200]
    return tiny.different(tiny.weights(trained.timm_model), tiny.weights(model))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the client saw, and under "hub" what is there now."""
    work = tmp_path_factory.mktemp("push")
    with LoopbackHub(work / "hub") as server:
        environment = {**os.environ, **server.env()}
        command = [sys.executable, __file__, str(work)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        wrong = {**environment, "HF_TOKEN": "hf_wrong"}
        command = [sys.executable, "-m", "hf_sft", "push", str(work / "image"), "user/image"]
        unsigned = subprocess.run(command, env=wrong, capture_output=True, text=True)
        return {
            **json.loads(done.stdout.splitlines()[-1]),
            "hub": {
                name: {"files": server.files(name), "private": server.is_private(name)}
                for name in ("user/text", "user/image", "user/open", "user/edited")
            },
            "commits": {name: len(repo.commits) for (_, name), repo in server.repos.items()},
            "branch_files": set(server.files("user/text", revision="second")),
            "unsigned": unsigned,
            "endpoint": server.endpoint,
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_pushed_model_predicts_what_was_trained(seen, kind):
    assert seen[kind]["equal"]
    assert seen[kind]["different"] == []
    assert seen[kind]["expected"]["label"] == LABELS[2]
    assert seen[kind]["predicted"]["label"] == seen[kind]["expected"]["label"]
    assert seen[kind]["predicted"]["score"] == pytest.approx(seen[kind]["expected"]["score"], 1e-6)


@pytest.mark.slow
def test_timm_loads_the_same_model(seen):
    assert seen["image"]["different_in_timm"] == []


@pytest.mark.slow
def test_one_commit_holds_the_model_at_the_root_and_no_checkpoint(seen):
    text, image = (set(seen["hub"][f"user/{kind}"]["files"]) for kind in ("text", "image"))
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert text == OURS | {PICTURE, "config.json", "model.safetensors"} | tokenizer
    assert image == OURS | {PICTURE, "config.json", "model.safetensors"}
    assert seen["commits"]["user/image"] == 2  # an empty repository is the first
    assert seen["text"]["url"] == f"{seen['endpoint']}/user/text"


@pytest.mark.slow
def test_a_new_repository_is_private_unless_it_is_to_be_public(seen):
    private = {name: entry["private"] for name, entry in seen["hub"].items()}
    assert private == {
        "user/text": True,
        "user/image": True,
        "user/edited": True,
        "user/open": False,
    }
    assert seen["open_again"] == f"{seen['endpoint']}/user/open"


@pytest.mark.slow
def test_nothing_uploaded_names_a_place_on_this_machine(seen):
    for entry in seen["hub"].values():
        for name in OURS:
            content = entry["files"][name].decode()
            assert "somebody" not in content
            assert "hf_x" not in content
            assert ROW not in content
    files = seen["hub"]["user/image"]["files"]
    assert yaml.safe_load(files["recipe.yaml"])["data"]["path"] == "animals"
    assert json.loads(files["report.json"])["environment"]["device"] == "cpu of x"


@pytest.mark.slow
def test_the_card_names_its_repository_and_an_edited_one_is_kept(seen):
    text = seen["hub"]["user/text"]["files"]["README.md"].decode()
    assert 'from_pretrained("user/text")' in text
    assert card_metadata.problems(text) == []
    assert seen["hub"]["user/edited"]["files"]["README.md"].endswith(b"# Mine\n")


@pytest.mark.slow
def test_a_branch_is_made_when_asked_for(seen):
    assert seen["branch"] == f"{seen['endpoint']}/user/text/tree/second"
    assert seen["branch_files"] >= OURS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("card", "x holds a local path"),
        ("public", "user/open is public"),
        ("said neither way", "user/open is public. Allow that with --public"),
        ("token", "does not accept the token"),
        ("name", "write user/name"),
    ],
)
def test_a_refusal_says_why_and_how_to_try_again(seen, what, said):
    message = seen["refused"][what]
    assert message.startswith("PushError: push to 'user/")
    assert said in message
    assert "Nothing local was lost; try again with: hf-sft push " in message


@pytest.mark.slow
def test_a_refused_card_leaves_no_repository(seen):
    assert "user/private-card" not in seen["commits"]


@pytest.mark.slow
def test_the_command_ends_without_a_traceback(seen):
    assert seen["unsigned"].returncode == 2
    assert "does not accept the token" in seen["unsigned"].stderr
    assert "Traceback" not in seen["unsigned"].stderr


def answer(kind, status):
    return kind("refused", response=SimpleNamespace(status_code=status, headers={}, request=None))


def finished_run(folder):
    sample().save(folder)
    (folder / "model").mkdir()
    return folder


@pytest.mark.parametrize("missing", ["report.json", "model"])
def test_an_unfinished_run_is_not_pushed(tmp_path, missing):
    run = finished_run(tmp_path)
    path = run / missing
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=f"{missing} is missing there.*Nothing local was lost"):
        hub.push(run, "user/x", token="hf_any")


def test_a_torn_report_is_told(tmp_path):
    run = finished_run(tmp_path)
    (run / "report.json").write_text('{"schema": 1', "utf-8")
    with pytest.raises(hub.PushError, match="'a b' is no name of a repository; write user/name"):
        hub.push(run, "a b")
    with pytest.raises(hub.PushError, match="report.json' is torn"):
        hub.push(run, "user/x", token="hf_any")


def test_without_a_token_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(hub.PushError, match="hf auth login.*hf-sft push .* user/x"):
        hub.push(finished_run(tmp_path), "user/x")


def test_offline_it_says_what_switches_the_hub_off(tmp_path):
    with pytest.raises(hub.PushError, match="HF_HUB_OFFLINE"):
        hub.push(finished_run(tmp_path), "user/x", token="hf_any")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answer(RepositoryNotFoundError, 404), "there is no such repository"),
        (answer(RepositoryNotFoundError, 401), "does not accept the token"),
        (answer(HfHubHTTPError, 403), "may not write to user/x"),
        (answer(HfHubHTTPError, 500), "the Hub answered 500"),
        (ConnectionError("no route"), "did not get through (no route). Check the network"),
        (RuntimeError("upload stopped"), "did not get through (upload stopped). Nothing"),
        (PermissionError(13, "denied", "a/model.bin"), "'a/model.bin' cannot be read (denied)"),
    ],
)
def test_what_the_client_raises_is_told_plainly(tmp_path, monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    monkeypatch.setattr(retrying, "WAITS", ())
    with pytest.raises(UserError) as caught:
        hub.push(finished_run(tmp_path), "user/x", token="hf_any")
    assert said in str(caught.value)
    assert "Nothing local was lost; try again with: hf-sft push " in str(caught.value)


def test_a_card_that_an_earlier_version_wrote_is_not_an_edited_one(tmp_path, monkeypatch):
    report, wording = sample(), card.body
    monkeypatch.setattr(card, "body", lambda *given: f"{wording(*given)}\nIn other words.\n")
    text = card.render(report)
    monkeypatch.undo()
    path = tmp_path / "README.md"
    path.write_text(text, "utf-8")
    assert hub.edited_card(tmp_path, report) == text  # nothing says whose words these are
    known = Report({**report.data, "card_sha256": card.digest(text)})
    assert hub.edited_card(tmp_path, known) is None
    path.write_text(f"{text}Mine.\n", "utf-8")
    assert hub.edited_card(tmp_path, known) == f"{text}Mine.\n"


def test_a_card_that_is_no_text_is_named(tmp_path):
    run = finished_run(tmp_path)
    (run / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(hub.PushError, match="README.md' is not UTF-8") as caught:
        hub.push(run, "user/x", token="hf_any")
    assert "network" not in str(caught.value)


def test_what_is_pushed_shows_no_row_and_what_stays_does(tmp_path):
    report = with_rows(sample())
    assert ROW in report_page.render(report)
    pushed = hub.files(without_rows(report), finished_run(tmp_path) / "model", None, "user/x")
    for name in ("report.json", "report.html"):
        assert ROW not in pushed[name].decode()
        assert "data:image/jpeg" not in pushed[name].decode()
        assert "precision over recall" in pushed[name].decode()
    tables = json.loads(pushed["report.json"])["tables"]["test"]
    assert tables.keys() == {"per_class", "confusion_matrix"}


@pytest.mark.parametrize(
    ("hub_id", "private", "gated", "shown"),
    [
        (None, False, False, False),
        ("user/data", False, False, True),
        ("user/data", True, False, False),
        ("user/data", False, "auto", False),
    ],
)
def test_only_rows_that_everybody_may_read_are_shown(monkeypatch, hub_id, private, gated, shown):
    def asked(_, name, token):
        assert (name, token) == (hub_id, False)
        return SimpleNamespace(private=private, gated=gated)

    monkeypatch.setattr(hub.HfApi, "dataset_info", asked)
    assert hub.open_data(hub.HfApi(), sample(data={"hub_id": hub_id})) is shown


def test_rows_that_are_not_seen_without_a_token_are_not_shown(monkeypatch):
    def refuse(*_, **__):
        raise answer(RepositoryNotFoundError, 401)

    monkeypatch.setattr(hub.HfApi, "dataset_info", refuse)
    assert not hub.open_data(hub.HfApi(), sample(data={"hub_id": "user/data"}))


def test_an_interrupted_push_says_how_to_push_later(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise Stopped

    monkeypatch.setattr(hub.HfApi, "create_repo", stop)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_any")
    run = finished_run(tmp_path)
    assert cli.main(["push", str(run), "user/x", "--revision", "second"]) == 130
    said = capsys.readouterr().err
    assert f"try again with: hf-sft push {run} user/x --revision second" in said
    assert "checkpoint" not in said


if __name__ == "__main__":
    client(Path(sys.argv[1]))
