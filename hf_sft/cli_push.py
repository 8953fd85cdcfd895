"""hf-sft push: a finished run on the Hub."""

import argparse
from pathlib import Path

from hf_sft.finished import refuse_unfinished
from hf_sft.importing import importing


def add(command) -> None:
    """The command and its arguments."""
    push = command("push", push_run, "put a run's model, report and card on the Hub")
    push.add_argument("run", type=Path, help="the output folder of a run")
    push.add_argument("repo", help="user/name on the Hub")
    push.add_argument("--public", action="store_true", help="the default is a private repository")
    push.add_argument("--revision", help="a branch, made where there is none of that name")


def push_run(arguments: argparse.Namespace) -> None:
    """Upload a finished run."""
    refuse_unfinished(arguments.run, "report.json", "model")
    with importing():
        from hf_sft.hub import push

    private = False if arguments.public else None
    print(push(arguments.run, arguments.repo, private=private, revision=arguments.revision))
