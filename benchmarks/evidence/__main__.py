"""The evidence: train what is missing, and write docs/evidence.md from what is there.

    HF_SFT_DATA=... python benchmarks/evidence run [digits] [banking77] [lite0] … [--until HH:MM]
    python benchmarks/evidence closed-form
    python benchmarks/evidence page

Every finished training is one line of benchmarks/results/evidence.jsonl; a rerun skips it.
"""

import argparse
from importlib import import_module
from pathlib import Path

import torch
import transformers
from ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "benchmarks" / "results" / "evidence.jsonl"
EXPERIMENTS = {
    "digits": ("digits", "Digits"),
    "banking77": ("banking", "Banking"),
    "lite0": ("lite0", "Lite0"),
    "banking77-5": ("banking", "Sized", Ledger(LEDGER), "banking77", 5, 8, 20),
    "banking77-30": ("banking", "Sized", Ledger(LEDGER), "banking77", 30, 4, 20),
    "clinc150-10": ("banking", "Sized", Ledger(LEDGER), "clinc150", 10, 8, 10),
    **{
        f"probe-{data}-{count}": ("probes", "Probes", data, count)
        for data, count in (
            ("banking77", 5),
            ("banking77", 10),
            ("banking77", 30),
            ("clinc150", 10),
        )
    },
}


def build(name: str):
    """An experiment by its name; its libraries are imported only now."""
    module, cls, *arguments = EXPERIMENTS[name]
    return getattr(import_module(module), cls)(*arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("names", nargs="*")
    run.add_argument("--until", help="HH:MM: begin no training after this")
    run.add_argument("--threads", type=int, default=1)
    commands.add_parser("closed-form")
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "closed-form":
        import_module("closed_form").show()
        return
    if arguments.command == "page":
        experiments = [build(name) for name in EXPERIMENTS]
        import_module("page").write(experiments, Ledger(LEDGER), ROOT / "docs")
        return
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    experiments = [build(name) for name in arguments.names or EXPERIMENTS]
    import_module("driver").run(experiments, Ledger(LEDGER), arguments.until)


if __name__ == "__main__":
    main()
