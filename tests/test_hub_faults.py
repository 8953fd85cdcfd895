"""What a push does when the Hub refuses, is busy, or goes away: over HTTP, by the loopback Hub.

The client part runs this file as a script, once: server and client in one process, which knows
the server's address before it imports huggingface_hub. It does not wait; it notes for how long.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

pytestmark = pytest.mark.slow
LATER = "Nothing local was lost; try again with: hf-sft push "
COMMIT, BATCH, LFS = "/commit/", "/objects/batch", "/lfs/"
PASSING = {  # name -> (method, part of the path, status or None, times, headers)
    "429 while it is committed": ("POST", COMMIT, 429, 2, {"Retry_After": "7"}),
    "429 of a window": ("POST", "/repos/create", 429, 1, {"RateLimit": '"api";r=0;t=55'}),
    "429 while it is uploaded": ("PUT", LFS, 429, 1, {"Retry_After": "3"}),
    "500 while a repository is made": ("POST", "/repos/create", 500, 2, {}),
    "500 while it is asked about": ("GET", "/api/models/", 500, 1, {}),
    "500 while the card is read": ("POST", "/validate-yaml", 500, 1, {}),
    "500 while it is uploaded": ("PUT", LFS, 500, 2, {}),
    "503 while it is committed": ("POST", COMMIT, 503, 3, {}),
    "409 while it is committed": ("POST", COMMIT, 409, 1, {}),
    "412 while it is committed": ("POST", COMMIT, 412, 1, {}),
    "broken while it is uploaded": ("PUT", LFS, None, 2, {}),
    "broken while it is committed": ("POST", COMMIT, None, 1, {}),
    "broken while a repository is made": ("POST", "/repos/create", None, 1, {}),
}
LASTING = {
    "401": ("POST", "/repos/create", 401, 99, {}),
    "401 while it is uploaded": ("POST", BATCH, 401, 99, {}),
    "403": ("POST", "/repos/create", 403, 99, {}),
    "403 while it is committed": ("POST", COMMIT, 403, 99, {}),
    "404": ("POST", "/repos/create", 404, 99, {}),
    "404 while it is committed": ("POST", COMMIT, 404, 99, {"X_Error_Code": "RepoNotFound"}),
    "409": ("POST", COMMIT, 409, 99, {}),
    "429": ("POST", COMMIT, 429, 99, {}),
    "429 for a day": ("POST", COMMIT, 429, 99, {"Retry_After": "86400"}),
    "500": ("POST", COMMIT, 500, 99, {}),
    "500 of an upload": ("PUT", LFS, 500, 99, {}),
    "broken": ("PUT", LFS, None, 99, {}),
    "broken at every commit": ("POST", COMMIT, None, 99, {}),
}


def client(work):
    """Every fault on a repository of its own; the last line of output is JSON."""
    with LoopbackHub(work / "hub") as server:
        os.environ.update(server.env())  # before huggingface_hub is imported, which reads it once
        import time

        from test_hub import text_run

        from hf_sft import hub

        waits = []
        time.sleep = waits.append  # of every module
        hub.report_page.render = lambda report: "drawn elsewhere"  # takes a second
        text_run(work / "run")
        seen = {}
        for number, (name, fault) in enumerate((PASSING | LASTING).items()):
            waits.clear()
            seen[name] = tried(server, work / "run", f"user/m{number}", fault)
            seen[name] |= {"waits": list(waits)}
        seen["again"] = pushed_again(server, work / "run")
        seen["half"] = half_way(server, work / "run")
        seen["one commit"] = answer_lost(server, work / "run")
    print(json.dumps(seen))  # noqa: T201


def tried(server, run, repo, fault):
    """What a push said, and what the Hub has of it."""
    from hf_sft import hub

    forget(server)
    method, pattern, status, times, headers = fault
    server.fail(method, pattern, status, times, **headers)
    try:
        said = hub.push(run, repo)
    except hub.PushError as error:
        said = f"PushError: {error}"
    server.faults.clear()
    there = ("models", repo) in server.repos
    return {
        "said": said,
        "files": sorted(server.files(repo)) if there else [],
        "commits": len(server.repos["models", repo].commits) if there else 0,
        "private": server.is_private(repo) if there else None,
    }


def forget(server):
    """Nothing was ever uploaded."""
    for path in (server.root / "blobs").iterdir():
        path.unlink()
    server.requests.clear()


def uploads(server):
    """How many large files were sent since the last call."""
    found = sum(method == "PUT" for method, _ in server.requests)
    server.requests.clear()
    return found


def pushed_again(server, run):
    """The same run twice: uploads and commits of the second time."""
    from hf_sft import hub

    forget(server)
    hub.push(run, "user/again")
    first, commits = uploads(server), len(server.repos["models", "user/again"].commits)
    hub.push(run, "user/again")
    more = len(server.repos["models", "user/again"].commits) - commits
    return {"first": first, "second": uploads(server), "more commits": more}


def half_way(server, run):
    """A large file more, which does not get through; the next push sends that one alone."""
    import hashlib

    from hf_sft import hub

    forget(server)
    hub.push(run, "user/half")
    more = run / "model" / "more.bin"
    more.write_bytes(os.urandom(300_000))
    oid = hashlib.sha256(more.read_bytes()).hexdigest()
    server.fail("PUT", f"/lfs/{oid}", None, 99)
    try:
        said = hub.push(run, "user/half")
    except hub.PushError as error:
        said = str(error)
    server.faults.clear()
    uploads(server)
    hub.push(run, "user/half")
    sent = uploads(server)
    same = server.files("user/half")["more.bin"] == more.read_bytes()
    return {"said": said, "sent": sent, "same": same}


def answer_lost(server, run):
    """The commit was made, its answer got lost: commits in all, the first of the repository too."""
    from hf_sft import hub

    server.fail("POST", COMMIT, None, after=True)
    hub.push(run, "user/lost")
    return len(server.repos["models", "user/lost"].commits)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    work = tmp_path_factory.mktemp("faults")
    command = [sys.executable, __file__, str(work)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_waited_for(seen, name):
    found = seen[name]
    assert found["said"].startswith("http://127.0.0.1:")
    assert {"config.json", "model.safetensors", "README.md"} <= set(found["files"])
    assert found["commits"] == 2  # an empty repository is the first
    assert found["private"] is True
    assert found["waits"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("401", "the Hub does not accept the token"),
        ("401 while it is uploaded", "the Hub does not accept the token"),
        ("403", "the token may not write to user/"),
        ("403 while it is committed", "the token may not write to user/"),
        ("404", "the Hub answered 404"),
        ("404 while it is committed", "there is no such repository"),
        ("409", "the Hub answered 409"),
        ("429", "the Hub answered 429"),
        ("429 for a day", "the Hub answered 429"),
        ("500", "the Hub answered 500"),
        ("500 of an upload", "the Hub answered 500"),
        ("broken", "did not get through"),
        ("broken at every commit", "did not get through"),
    ],
)
def test_what_lasts_is_told_with_the_command_for_later(seen, name, said):
    found = seen[name]["said"]
    assert found.startswith("PushError: push to 'user/")
    assert said in found
    assert LATER in found
    assert "README.md" not in seen[name]["files"]  # no half of a model


def test_waits_grow_and_end_and_heed_what_the_hub_asks_for(seen):
    assert seen["500"]["waits"] == [1, 2, 4, 8, 16]
    assert seen["503 while it is committed"]["waits"] == [1, 2, 4]
    assert seen["429 while it is committed"]["waits"] == [7, 7]
    assert seen["429 of a window"]["waits"] == [55]
    assert seen["429 while it is uploaded"]["waits"] == [4]  # huggingface_hub adds a second
    for name in LASTING:
        assert sum(seen[name]["waits"]) <= 60
    for name in ("401", "403", "404", "429 for a day"):
        assert seen[name]["waits"] == []


def test_a_second_push_sends_and_commits_nothing_anew(seen):
    assert seen["again"]["first"] >= 1
    assert (seen["again"]["second"], seen["again"]["more commits"]) == (0, 0)


def test_a_push_goes_on_with_the_file_that_did_not_get_through(seen):
    assert "did not get through" in seen["half"]["said"]
    assert seen["half"]["sent"] == 1
    assert seen["half"]["same"]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(seen):
    assert seen["one commit"] == 2


if __name__ == "__main__":
    client(Path(sys.argv[1]))
