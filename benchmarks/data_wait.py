"""What share of a training step is spent on data: reading rows, transforms, collating.

    HF_SFT_DATA=path/to/data python benchmarks/data_wait.py [--rounds 5] [--threads 1]

MiniLM on BANKING77's rows (encoded once, padded batch by batch) and EfficientNet-Lite0 on digits
at 96 px (read, scaled and normalised anew for every row); batches of 32, no worker processes, so
that all of it is waited for. With everything training, and the head alone, whose steps are the
shortest that data can hold up. CPU seconds of `get_batch_samples` over those of the whole step.
"""

import argparse
import statistics
import tempfile
import time

from feature_cache import Case
from measured import Clock, keep, markdown, middle, quiet, told

from hf_sft import LinearProbe, TrainAll

POLICIES = {"everything": TrainAll(), "the head": LinearProbe()}
WARM = 1


def shares(trainer):
    """One run: the share of data in the CPU seconds of its steps."""
    clock, taken, fetch = Clock(), [], trainer.get_batch_samples

    def timed(*args, **kwargs):
        start = time.process_time()
        found = fetch(*args, **kwargs)
        taken.append(time.process_time() - start)
        return found

    trainer.get_batch_samples = timed
    trainer.add_callback(clock)

    def run():
        taken.clear()
        trainer.train()
        spent = clock.ends[-1][1] - clock.ends[WARM - 1][1]
        return sum(taken[WARM : len(clock.ends)]) / spent

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    quiet(asked.threads)
    lines, figures = [], {}
    for kind in ("text", "image"):
        case = Case(kind, 0)
        for name, policy in POLICIES.items():
            with tempfile.TemporaryDirectory() as folder:
                trainer = case.trainer(policy, folder, 1)
                trainer.args.max_steps = 7
                run = shares(trainer)
                found = [run() for _ in range(asked.rounds + 1)][1:]
            lines.append([kind, name, told([100 * share for share in found])])
            figures[f"{kind}: {name}"] = {"share": middle(found, 4)}
            assert statistics.median(found) < 1
    print(markdown(["data", "trains", "share of a step spent on data, %"], lines))
    keep("data_wait", asked.threads, asked.rounds, figures)


if __name__ == "__main__":
    main()
