"""Mixout: weights are swapped for the source's at random, as dropout swaps them for zeros."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout

from hf_sft.errors import RecipeError
from hf_sft.penalties.step_rule import StepRule
from hf_sft.starting_point import StartingPoint


class Mixout(StepRule):
    """In training, a layer computes with [(1 − M) ⊙ θ⁰ + M ⊙ θ − p·θ⁰] / (1 − p), M ~ Ber(1 − p).

    Lee, Cho, Kang 2020, "Mixout: effective regularization to finetune large-scale pretrained
    language models" (ICLR, arXiv 1909.11299). The expectation is θ; for a task loss that is
    m-strongly convex it acts as (m·p/2(1 − p))·‖θ − θ⁰‖², an L2-SP that follows the curvature.
    M is drawn anew for every element of weight and bias, at every forward pass, from torch's
    generator. The released code draws it per input row and leaves the factor 1/(1 − p) out of its
    backward pass; here the gradient is that of the formula.
    Acts on linear layers (GPT-2's Conv1D among them) with a starting point, that train; layers
    whose weight is tied to another's name, and attention that goes around its layers, are left.
    Parameters, their names and what is saved stay as they are.
    Dropout: the paper puts mixout in its place, so set the model's own to 0 (``model:
    {hidden_dropout_prob: 0.0, …}``); with p = 0.1 as an addition leave it alone.
    Default p = 0.7, the smallest of the paper's {0.7, 0.8, 0.9}; with AdamW and short training
    others use 0.1 (Zhang et al. 2021, arXiv 2006.05987, to whom its gain nearly vanished with
    longer training and Adam's bias correction). Published, BERT-large on RTE: mean over 20 seeds
    56.5 → about 70, from memory and unchecked.
    Cost: a mask and a mixed copy of every weight per forward pass. State: θ⁰.

    Keys:
        p: the probability that an element is the source's.
    """

    formula: ClassVar[str] = "θ → θ⁰ + M ⊙ (θ − θ⁰)/(1 − p) in training"
    citation: ClassVar[str] = """@inproceedings{lee2020mixout,
  title     = {Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models},
  author    = {Lee, Cheolhyoung and Cho, Kyunghyun and Kang, Wanmo},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2020}, note = {arXiv:1909.11299}
}"""
    type: Literal["mixout"] = "mixout"
    p: float = Field(0.7, ge=0, lt=1)

    def attach(self, model: nn.Module, start: StartingPoint) -> None:
        found = {name: module for name, module in model.named_modules() if is_linear(module)}
        mixed = {module: own(name, module, start) for name, module in found.items()}
        if not any(mixed.values()):
            raise RecipeError(
                "penalty: mixout acts on linear layers that train and have a starting point, and "
                f"this model has none: {len(found)} linear layers, all of them new, frozen or "
                "tied. Open some with freeze, or take {type: l2-sp}."
            )
        for module, names in mixed.items():
            detach(module)
            if names and self.p > 0:
                module.register_forward_pre_hook(Mix(self.p, start, names))
                module.register_forward_hook(Unmix(), always_call=True)


class Mix:
    """Before a layer's forward pass: what it computes with lies over its parameters.

    An attribute of the instance hides the parameter of that name until `Unmix`; state_dict,
    optimizer and copies of the model see the parameter.
    """

    def __init__(self, p: float, start: StartingPoint, names: dict[str, str]):
        self.p, self.start, self.names = p, start, names

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if not module.training:
            return
        for short, name in self.names.items():
            theta = module._parameters[short]
            if theta.requires_grad:
                module.__dict__[short] = mix(theta, self.start.anchor(name, theta), self.p)

    def __deepcopy__(self, memo: dict) -> "Mix":
        return self  # a copy of the model is mixed with the same θ⁰, not with a copy of it


class Unmix:
    """After it: the parameters lie open again."""

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for short in ("weight", "bias"):
            module.__dict__.pop(short, None)


def mix(theta: Tensor, anchor: Tensor, p: float) -> Tensor:
    """[(1 − M)·a + M·θ − p·a]/(1 − p) = a + M·(θ − a)/(1 − p): dropout of the difference."""
    return anchor + dropout(theta - anchor, p)


def is_linear(module: nn.Module) -> bool:
    """A linear layer as it is, or transformers' Conv1D, which is one."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def own(name: str, module: nn.Module, start: StartingPoint) -> dict[str, str]:
    """Short -> full name of a layer's parameters that have a starting point as they are."""
    full = {short: f"{name}.{short}" if name else short for short in ("weight", "bias")}
    return {s: n for s, n in full.items() if n in start.copies and n not in start.rows}


def detach(module: nn.Module) -> None:
    """Take away what an earlier training has attached."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, Mix | Unmix)]:
            del hooks[key]
