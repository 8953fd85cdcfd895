"""Evaluates a detector with the processes it finds; launched with two of them, imported for one.

python -m torch.distributed.run --nproc_per_node 2 tests/launch/two_processes_boxes.py RESULT DATA
"""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import tiny_boxes
import tiny_detection

from hf_sft import TransferTrainer
from hf_sft.loaders import Coco
from hf_sft.tasks import ObjectDetection

IMAGES = {  # five, which two processes in batches of two cannot share evenly
    f"{i}": [("cat", 2 * i, 3, 10, 8), ("dog", 20, 4, 12, 4 + i)][: i % 3] for i in range(5)
}


def evaluate(folder, processes):
    """A step of training, then metrics and every detection that they were computed from."""
    task = ObjectDetection(threshold=0.1)
    kinds = {"train": "train.json", "test": "test.json", "images": "images"}
    rows = task.check(Coco(**kinds).load(lambda name: folder / name))["test"]
    processor = tiny_detection.KINDS["detr"][1]()
    encoded, metrics, seen = task.encode(rows, processor, None), None, []
    metrics = task.metrics(list(tiny_detection.NAMES), processor, rows)

    def compute(batch, compute_result):
        seen.append(batch.predictions)
        return metrics(batch, compute_result)

    args = tiny.arguments(
        folder / f"out{processes}",
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=2,
        max_steps=1,
        remove_unused_columns=False,
        batch_eval_metrics=True,
    )
    trainer = TransferTrainer(
        tiny_detection.detr(), args, train_dataset=encoded, eval_dataset=encoded,
        data_collator=task.collator(processor), compute_metrics=compute,
        preprocess_logits_for_metrics=task.summarizer(processor), fresh=(),
    )  # fmt: skip
    assert args.world_size == processes
    found = trainer.evaluate()
    result = {
        "detections": torch.cat(seen), "mistakes": metrics.mistakes.tolist(),
        "map": found["eval_map"], "loss": found["eval_loss"],
    }  # fmt: skip
    result["boxes"] = box_loss(trainer, [encoded[i] for i in (1, 4, 2, 2)], task, processor)
    trainer.train()
    return {**result, "finite": all(map(torch.isfinite, map(torch.sum, weights(trainer))))}


def box_loss(trainer, rows, task, processor):
    """The part for boxes of the loss on these rows, shared by the processes: their mean."""
    size = len(rows) // trainer.args.world_size
    own = rows[trainer.args.process_index * size :][:size]
    task.prepare(processor, trainer.model)
    with torch.no_grad():
        parts = trainer.model.eval()(**task.collator(processor)(own)).loss_dict
    return trainer.accelerator.gather(parts["loss_bbox"].reshape(1)).mean().item()


def weights(trainer):
    return [p.detach() for p in trainer.model.parameters()]


def data(folder):
    tiny_boxes.coco(folder, {"train": IMAGES, "test": IMAGES})
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome = evaluate(Path(sys.argv[2]), processes=2)
    if torch.distributed.get_rank() == 0:
        torch.save(outcome, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
