"""Resident memory of a search, and of each of its trials' processes, over 30 trials.

    python benchmarks/search_memory.py [trials]

The text quickstart made small (MiniLM, 2 rows per topic, 1 epoch), the default space. A line for
each trial: MB of the search's own process after it, and the most that the trial's process held.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from hf_sft.searching import search as searching

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart_text.yaml"
SMALL = ["data.per_class=2", "data.max_eval_samples=20", "training.num_train_epochs=1"]
MB = 1e6


class Largest:
    """The largest resident memory of any process below this one, sampled while it is open."""

    def __init__(self) -> None:
        self.most, self.ended = 0, threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        own = psutil.Process()
        while not self.ended.wait(0.2):
            for child in own.children(recursive=True):
                try:
                    self.most = max(self.most, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def __enter__(self) -> "Largest":
        self.watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.watch.join()


def main() -> None:
    """Search with memory read beside it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    train, own = searching.train, psutil.Process()
    print("trial  search, MB  trial at most, MB  seconds")

    def measured(order, prunes):
        begun = time.perf_counter()
        with Largest() as largest:
            found = train(order, prunes)
        seconds, name = time.perf_counter() - begun, order.log.stem.removeprefix("trial-")
        held = own.memory_info().rss / MB
        print(f"{name:>5s} {held:11.0f} {largest.most / MB:18.0f} {seconds:8.1f}", flush=True)
        return found

    searching.train = measured
    with tempfile.TemporaryDirectory() as place:
        words = [*SMALL, f"search.trials={count}", f"training.output_dir={place}/out"]
        searching.search(RECIPE, words)


if __name__ == "__main__":
    main()
