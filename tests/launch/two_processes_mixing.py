"""Trains on mixed pictures with the processes it finds; launched with two, imported for one.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_processes_mixing.py RESULT
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from hf_sft import TransferTrainer
from hf_sft.tasks.augmentation import DrawnRows
from hf_sft.tasks.class_weights import CrossEntropy
from hf_sft.tasks.mixing import NUMBER, Mixing

ROWS, BATCH, SEED, EPOCHS = 12, 3, 5, 2


def pictures(batch):
    """Noise, and a distribution for a label: functions of the row."""
    found = [torch.Generator().manual_seed(row) for row in batch["row"]]
    size = (3, tiny.PIXELS, tiny.PIXELS)
    labels = [[float(row % 3 == k) for k in range(3)] for row in batch["row"]]
    return {"pixel_values": [torch.rand(size, generator=g) for g in found], "labels": labels}


def drawn_rows():
    rows = Dataset.from_dict({"row": list(range(ROWS))})
    return DrawnRows(rows.with_transform(pictures), NUMBER)


class Recorded(Mixing):
    """Remembers of every batch its rows' numbers, and what came of them."""

    def __init__(self):
        super().__init__(0.4, 1.0)
        self.seen = []

    def __call__(self, rows):
        batch = super().__call__(rows)
        made = (batch["pixel_values"].clone(), batch["labels"].clone())
        self.seen.append(([row[NUMBER] for row in rows], *made))
        return batch


def train(folder, processes):
    """Two epochs, shuffled; a step has the same two batches for one process and for two."""
    args = tiny.arguments(
        folder, seed=SEED, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2 // processes, optim="sgd", learning_rate=0.1,
        max_grad_norm=0.0, remove_unused_columns=False, dataloader_drop_last=True,
    )  # fmt: skip
    mixing = Recorded()
    trainer = TransferTrainer(
        tiny.vit(), args, train_dataset=drawn_rows(), data_collator=mixing,
        compute_loss_func=CrossEntropy(), fresh=(),
    )  # fmt: skip
    trainer.train()
    return {"seen": mixing.seen, "weights": tiny.weights(trainer.model)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        own = train(Path(place), processes=2)
    found = [None, None]
    torch.distributed.all_gather_object(found, own)
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
