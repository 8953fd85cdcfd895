"""What to train next, until everything is there or the time is up."""

import time
from datetime import datetime
from typing import Any

from arms import SELECTION_SEED, Choice, candidates, select
from ledger import Ledger


def chosen(experiment: Any, ledger: Ledger) -> dict[str, Choice]:
    """Arm -> what the selection seed's validation rows chose, as far as is known."""

    def results(settings: dict) -> dict | None:
        line = ledger.find(experiment.name, settings, SELECTION_SEED)
        return line and line["results"]

    return select(experiment.arms, results)


def next_job(experiment: Any, ledger: Ledger) -> tuple[dict, int] | None:
    """(settings, seed) of the first training that is missing.

    First one candidate of every arm, then the next of every arm, and when all have chosen seed by
    seed: what is there when the time is up is balanced.
    """
    found = chosen(experiment, ledger)
    offered = [candidates(arm, found) for arm in experiment.arms]
    for number in range(max(map(len, offered))):
        for options in offered:
            for option in options[number : number + 1]:
                if ledger.find(experiment.name, option.settings, SELECTION_SEED) is None:
                    return option.settings, SELECTION_SEED
    for seed in experiment.seeds:
        for choice in found.values():
            if ledger.find(experiment.name, choice.settings, seed) is None:
                return choice.settings, seed
    return None


def run(experiments: list[Any], ledger: Ledger, until: str | None = None) -> None:
    """Train what is missing; the next turn goes to the experiment that has had the least CPU time.

    Args:
        until: HH:MM; no training begins after it.
    """
    while not (until and datetime.now().strftime("%H:%M") >= until):
        jobs = [(e, job) for e in experiments if (job := next_job(e, ledger))]
        if not jobs:
            return
        experiment, (settings, seed) = min(jobs, key=lambda pair: ledger.cpu_hours(pair[0].name))
        start = time.process_time()
        results = experiment.measure(settings, seed)
        cpu = time.process_time() - start
        ledger.add(experiment.name, settings, seed, results, cpu)
        print(datetime.now().strftime("%H:%M:%S"), experiment.name, seed, settings)
        for part, states in results.items():
            print("   ", part, states, f"{cpu:.0f} s", flush=True)
