"""push: a finished run on the Hub, as one commit, with nothing private in it."""

import json
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hf_sft.errors import RecipeError, UserError
from hf_sft.finished import refuse_unfinished
from hf_sft.interruption import Stopped
from hf_sft.reporting import card, card_metadata, drift_picture, report_page
from hf_sft.reporting.report import Report
from hf_sft.reporting.without_rows import without_rows
from hf_sft.retrying import patiently

log = logging.getLogger(__name__)


class PushError(UserError):
    """A run could not be put on the Hub."""


def push(
    run: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload model, card, report and recipe of a finished run; the repository's address.

    ``private``: a new repository is private unless this is False; one that exists stays what it is,
    and a public one is refused unless this is False. ``revision``: the branch, made when it does
    not exist. Local paths and checkpoints are left out; so are tables and pictures of the report
    that show rows of the data, unless those are a public data set of the Hub.

    Raises:
        PushError: no finished run, no name of a repository, no token or not the right one, no such
            place, no network.
    """
    with told_plainly(repo_id, again(run, repo_id, private, revision)):
        if not card_metadata.is_hub_id(repo_id):
            raise PushError(f"{repo_id!r} is no name of a repository; write user/name or name.")
        report, model = finished(run)
        edited = edited_card(run, report)
        if token is None and get_token() is None:
            raise PushError("no token of the Hub is known. Run `hf auth login`, or set HF_TOKEN.")
        api, hidden = HfApi(token=token), private is not False
        url = patiently(lambda: api.create_repo(repo_id, private=hidden, exist_ok=True))
        _agree(api, url.repo_id, private)
        if revision is not None:
            patiently(lambda: api.create_branch(url.repo_id, branch=revision, exist_ok=True))
        shown = report if open_data(api, report) else without_rows(report)
        content = files(shown, model, edited, url.repo_id)
        patiently(lambda: _commit(api, url.repo_id, content, revision))
    return str(url) if revision is None else f"{url}/tree/{revision}"


def finished(run: Path) -> tuple[Report, Path]:
    """Report and model folder of a run.

    Raises:
        PushError: the run is not finished, or is none.
    """
    try:
        refuse_unfinished(run, "report.json", "model")
        return Report.load(run), run / "model"
    except RecipeError as error:
        raise PushError(str(error)) from error


def edited_card(run: Path, report: Report) -> str | None:
    """README.md where somebody has changed it; None where it is as the run wrote it, or is missing.

    A card as an earlier version of hf_sft wrote it is known by its digest in the report.

    Raises:
        PushError: it is no text, the Hub would refuse it, or its metadata hold a local path. What
            is below the metadata is not looked at.
    """
    path = run / "README.md"
    try:
        text = path.read_text("utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise PushError(
            f"'{path}' is not UTF-8 ({error}). Save it as that, or remove it to have it written."
        ) from error
    ours = report.data.get("card_sha256")
    if text is None or card.digest(text) == ours or text == card.render(report):
        return None
    if found := card_metadata.problems(text):
        raise PushError(
            f"'{path}': {'; '.join(found)}. Correct it, or remove it to have it written."
        )
    return text


def open_data(api: HfApi, report: Report) -> bool:
    """Whether the rows are on the Hub for everybody: asked without a token."""
    name = (report.data.get("data") or {}).get("hub_id")
    if name is None:
        return False
    try:
        info = patiently(lambda: api.dataset_info(name, token=False))
    except HfHubHTTPError:
        return False
    return not info.private and not info.gated


def files(report: Report, model: Path, edited: str | None, repo_id: str) -> dict[str, bytes | Path]:
    """Path in the repository -> content: ``model/`` at the root, and beside it what tells of it."""
    found: dict[str, bytes | Path] = {
        path.relative_to(model).as_posix(): path
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }
    shared = report_page.shareable_report(report)
    texts = {
        "README.md": edited or card.render(report, repo_id=repo_id),
        "report.html": report_page.render(report),
        "report.json": json.dumps(shared.data, indent=2, ensure_ascii=False) + "\n",
        "recipe.yaml": report_page.recipe_yaml(report.data),
    }
    if drawn := drift_picture.draw(report.data["groups"]):
        found[drift_picture.NAME] = drawn
    return found | {name: text.encode() for name, text in texts.items()}


def _commit(
    api: HfApi, repo_id: str, content: dict[str, bytes | Path], revision: str | None
) -> None:
    """One commit. The Hub is asked first what it has: that is not uploaded, or committed, again."""
    added = [CommitOperationAdd(path, given) for path, given in content.items()]
    said = "A model fine-tuned by hf_sft"
    api.create_commit(repo_id, added, commit_message=said, revision=revision)


def _agree(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Nothing goes into a public repository unless it was said to be public."""
    is_private = patiently(lambda: api.model_info(repo_id)).private
    if private is not False and not is_private:
        raise PushError(
            f"{repo_id} is public. Allow that with --public (in a recipe: hub_private_repo: "
            "false), or name another."
        )
    if private is False and is_private:
        log.warning("%s exists and is private; it stays so.", repo_id)


def again(run: Path, repo_id: str, private: bool | None, revision: str | None) -> str:
    """The command that makes the same push."""
    public = ["--public"] if private is False else []
    branch = ["--revision", revision] if revision is not None else []
    return shlex.join(["hf-sft", "push", str(run), repo_id, *public, *branch])


@contextmanager
def told_plainly(repo_id: str, command: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into one message with a remedy."""
    try:
        yield
    except Stopped as stop:
        stop.later = command
        raise
    except (PushError, HTTPError, ValueError, OSError, RuntimeError) as error:
        raise PushError(
            f"push to {repo_id!r}: {_reason(error, repo_id)} "
            f"Nothing local was lost; try again with: {command}"
        ) from error


def _reason(error: Exception, repo_id: str) -> str:
    """What happened, and what to do about it."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError | OSError):
        error = error.__cause__  # of a file that huggingface_hub could not upload
    if isinstance(error, PushError):
        return str(error)
    if isinstance(error, HFValidationError):
        return "this is no name of a repository; write user/name or name."
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off by HF_HUB_OFFLINE; unset it."
    if not isinstance(error, HfHubHTTPError):
        return _without_answer(error)
    status = error.response.status_code
    if status == 401:
        return "the Hub does not accept the token. Run `hf auth login`, or correct HF_TOKEN."
    if status == 403:
        return (
            f"the token may not write to {repo_id}. Use a token with write access, or your own "
            "user or organisation."
        )
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or the token may not see it. Correct the name."
    return f"the Hub answered {status}: {error.server_message or error}."


def _without_answer(error: Exception) -> str:
    """What went wrong before the Hub could answer: on the network, or here."""
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return f"the upload did not get through ({error}). Check the network."
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}' cannot be read ({error.strerror}). Put that right."
    return f"the upload did not get through ({error})."
