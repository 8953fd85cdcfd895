"""The loopback Hub gives the client libraries what they expect of the Hub.

The client part runs this file as a script, once, with the Hub's address in its environment.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from loopback_hub import TOKEN, LoopbackHub

ROWS = {"a": "good film,1\nbad film,0\n", "b": "good film,1\nbad film,0\nfilm,1\n"}


def write(folder, files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the client saw, and under "hub" what it left behind."""
    work = tmp_path_factory.mktemp("loopback")
    with LoopbackHub(work / "hub") as hub:
        header = "text,label\n"
        files = {"train.csv": header + ROWS["a"], "test.csv": header + "good,1\n"}
        first = hub.add("user/films", write(work / "a", files), repo_type="dataset")
        more = write(work / "b", {"train.csv": header + ROWS["b"]})
        hub.add("user/films", more, repo_type="dataset")
        lines = write(work / "lines", {"train.jsonl": '{"label": 3}\n{"label": 4}\n'})
        hub.add("user/lines", lines, repo_type="dataset")
        command = [sys.executable, __file__, str(work), first]
        environment = {**os.environ, **hub.env()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        private = {name: hub.is_private(name) for name in ("user/bert", "user/resnet")}
        left = {"bert": set(hub.files("user/bert")), "private": private}
        left["parquet"] = sorted(hub.files("user/pushed", repo_type="dataset"))
        return {**json.loads(done.stdout.splitlines()[-1]), "hub": left}


def test_a_pushed_transformers_model_comes_back_bit_equal(seen):
    assert seen["bert"]["equal"]
    assert seen["bert"]["equal_on_a_branch"]
    assert seen["bert"]["tokens"] == [2, 5, 7, 3]
    assert seen["bert"]["label"] in ("LABEL_0", "LABEL_1")
    assert seen["hub"]["bert"] == set(seen["bert"]["snapshot"])
    assert seen["hub"]["bert"] >= {"README.md", "config.json", "model.safetensors"}
    assert seen["hub"]["private"] == {"user/bert": True, "user/resnet": False}


def test_a_timm_model_loads_in_timm_and_in_transformers(seen):
    assert seen["timm"] == {"equal": True, "body_equal": True, "head": 3, "pixels": 4}


def test_a_dataset_loads_by_id_at_a_revision_and_as_a_stream(seen):
    data = seen["data"]
    assert data["latest"] == {"train": 3, "test": 1}
    assert data["first"] == {"train": 2, "test": 1}
    assert data["tagged"] == {"train": 3, "test": 1}
    assert data["lines"] == [3, 4]
    assert data["pushed"] == data["streamed"] == ["good film", "bad film", "film"]
    assert [name for name in seen["hub"]["parquet"] if name.endswith(".parquet")]


def test_errors_have_the_types_of_the_hub(seen):
    assert seen["errors"] == {
        "unknown repo": "RepositoryNotFoundError",
        "unknown dataset": "DatasetNotFoundError",
        "unknown file": "RemoteEntryNotFoundError",
        "unknown revision": "RevisionNotFoundError",
        "private repo without a token": "RepositoryNotFoundError",
        "write without a token": "HfHubHTTPError",
        "create twice": "HfHubHTTPError",
        "commit on an old parent": "HfHubHTTPError",
        "card with a null": "ValueError",
        "card with a local path": "ValueError",
        "card that is not YAML": "ValueError",
        "good card": None,
    }


def ask(hub, method, path, body=None, token=TOKEN, **headers):
    """(status, headers, content) of one request."""
    data = None if body is None else json.dumps(body).encode()
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(hub.endpoint + path, data, headers, method=method)
    try:
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


def test_it_listens_on_loopback_only_and_keeps_a_log(hub):
    assert hub.server_address[0] == "127.0.0.1"
    assert ask(hub, "GET", "/api/whoami-v2")[0] == 200
    assert ask(hub, "GET", "/nothing?here=1")[0] == 404
    assert hub.requests == [("GET", "/api/whoami-v2"), ("GET", "/nothing")]


def test_status_codes_of_writes(hub):
    name = {"name": "m", "organization": "user"}
    assert ask(hub, "POST", "/api/repos/create", name, token="")[0] == 401
    assert ask(hub, "POST", "/api/repos/create", name, token="other")[0] == 401
    assert ask(hub, "POST", "/api/repos/create", name)[0] == 200
    assert ask(hub, "POST", "/api/repos/create", name)[0] == 409
    commit = "/api/models/user/m/commit/main"
    large = {"path": "m.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}
    assert ask(hub, "POST", commit, {"key": "header", "value": {}}, token="")[0] == 401
    assert ask(hub, "POST", commit + "?create_pr=1", {"key": "header", "value": {}})[0] == 400
    assert ask(hub, "PUT", "/lfs/" + "0" * 64, large)[0] == 400
    assert hub.files("user/m") == {}


def test_a_commit_adds_to_the_last_one_and_old_files_stay_readable(hub, tmp_path):
    first = hub.add("user/m", write(tmp_path / "a", {"a.txt": "one", "b.txt": "same"}))
    second = hub.add("user/m", write(tmp_path / "b", {"a.txt": "two"}))
    assert first != second
    assert hub.files("user/m") == {"a.txt": b"two", "b.txt": b"same"}
    assert hub.files("user/m", revision=first) == {"a.txt": b"one", "b.txt": b"same"}
    for revision, text in {"main": b"two", second: b"two", first: b"one"}.items():
        status, headers, content = ask(hub, "GET", f"/user/m/resolve/{revision}/a.txt")
        assert (status, content) == (200, text)
        assert headers["X-Repo-Commit"] == (first if revision == first else second)


def test_a_range_is_a_part_of_the_file(hub, tmp_path):
    hub.add("user/m", write(tmp_path / "a", {"a.txt": "0123456789"}))
    for part, text in {"bytes=2-4": b"234", "bytes=7-": b"789", "bytes=8-99": b"89"}.items():
        status, _, content = ask(hub, "GET", "/user/m/resolve/main/a.txt", Range=part)
        assert (status, content) == (206, text)
    assert ask(hub, "GET", "/user/m/resolve/main/a.txt", Range="bytes=10-")[0] == 416


# The client: everything below runs in the subprocess.


def equal(one, other):
    import torch

    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tiny_bert(words):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16}
    depth = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), **sizes, **depth)
    return transformers.BertForSequenceClassification(config).eval()


def push_and_load_transformers():
    from huggingface_hub import ModelCard, snapshot_download
    from transformers import AutoModelForSequenceClassification as Classifier
    from transformers import AutoTokenizer, BertTokenizer, pipeline

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    model, other = tiny_bert(words), tiny_bert(words)
    model.push_to_hub("user/bert", private=True)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).push_to_hub("user/bert")
    card = "---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n"
    ModelCard(card).push_to_hub("user/bert")
    other.push_to_hub("user/bert", revision="other")
    return {
        "equal": equal(model, Classifier.from_pretrained("user/bert")),
        "equal_on_a_branch": equal(
            other, Classifier.from_pretrained("user/bert", revision="other")
        ),
        "tokens": AutoTokenizer.from_pretrained("user/bert")("good film").input_ids,
        "label": pipeline(model="user/bert")("good film")[0]["label"],
        "snapshot": os.listdir(snapshot_download("user/bert")),
    }


def push_and_load_timm(folder):
    import timm
    import torch
    from huggingface_hub import HfApi
    from PIL import Image
    from timm.models._hub import save_for_hf
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = timm.create_model("resnet10t", num_classes=5)
    save_for_hf(model, folder, safe_serialization=True)
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    config.pop("model_args", None)  # transformers would pass its num_classes a second time
    with open(path, "w") as file:
        json.dump(config, file)
    HfApi().create_repo("user/resnet")
    HfApi().upload_folder(repo_id="user/resnet", folder_path=folder)
    again = timm.create_model("hf-hub:user/resnet", pretrained=True, num_classes=5)
    wrapped = AutoModelForImageClassification.from_pretrained(
        "user/resnet", num_labels=3, ignore_mismatched_sizes=True
    )
    new, old = wrapped.timm_model.state_dict(), model.state_dict()
    body_equal = all(torch.equal(new[k], old[k]) for k in old if not k.startswith("fc."))
    processor = AutoImageProcessor.from_pretrained("user/resnet")
    pixels = processor(Image.new("RGB", (40, 40)), return_tensors="pt")["pixel_values"].ndim
    head = len(new["fc.weight"])
    return {"equal": equal(model, again), "body_equal": body_equal, "head": head, "pixels": pixels}


def load_datasets(first):
    from datasets import load_dataset
    from huggingface_hub import HfApi

    latest = load_dataset("user/films")
    HfApi().create_tag("user/films", tag="v2", repo_type="dataset")
    latest.push_to_hub("user/pushed", private=True)
    stream = load_dataset("user/pushed", split="train", streaming=True)
    return {
        "latest": latest.num_rows,
        "first": load_dataset("user/films", revision=first).num_rows,
        "tagged": load_dataset("user/films", revision="v2").num_rows,
        "lines": load_dataset("user/lines", split="train")["label"][:],
        "pushed": load_dataset("user/pushed", split="train")["text"][:],
        "streamed": [row["text"] for row in stream],
    }


def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return None


def provoke_errors():
    from datasets import load_dataset
    from huggingface_hub import HfApi

    api, nobody = HfApi(), HfApi(token=False)

    def upload(path, text, **kwargs):
        file = {"path_in_repo": path, "path_or_fileobj": text.encode()}
        return raised(api.upload_file, repo_id="user/resnet", **file, **kwargs)

    def card(value):
        return upload("README.md", f"---\nbase_model: {value}\n---\n")

    return {
        "unknown repo": raised(api.model_info, "user/none"),
        "unknown dataset": raised(load_dataset, "user/none"),
        "unknown file": raised(api.hf_hub_download, "user/bert", "none"),
        "unknown revision": raised(api.model_info, "user/bert", revision="none"),
        "private repo without a token": raised(nobody.model_info, "user/bert"),
        "write without a token": raised(nobody.create_repo, "user/new"),
        "create twice": raised(api.create_repo, "user/bert"),
        "commit on an old parent": upload("a.txt", "text", parent_commit="0" * 40),
        "card with a null": card("null"),
        "card with a local path": card("/models/bert"),
        "card that is not YAML": card("[a, b"),
        "good card": card("user/bert"),
    }


def client(work, first):
    seen = {"bert": push_and_load_transformers()}
    seen["timm"] = push_and_load_timm(os.path.join(work, "timm"))
    seen["data"] = load_datasets(first)
    seen["errors"] = provoke_errors()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    client(*sys.argv[1:])
