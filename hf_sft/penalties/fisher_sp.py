"""Fisher-SP: the distance to the starting point, weighed by what the source's function needs."""

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hf_sft.errors import UserError
from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.square import Square
from hf_sft.starting_point import StartingPoint

log = logging.getLogger(__name__)


class FisherSP(Square, WeightPrior):
    """Ω = λ·Σ_j F_j·(θ_j − θ⁰_j)² + head·‖θ_new‖²; F: diagonal Fisher information at θ⁰.

    Elastic weight consolidation: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in
    neural networks" (PNAS, arXiv 1612.00796), with λ/2 for λ; L2-SP-Fisher of Li et al. 2018, eq. 4
    (arXiv 1802.01483). A means of keeping the source's function: for the target alone, Li et al.
    found nothing over L2-SP. On split MNIST the exact sum kept 84.9 %, one drawn label 83.8, the
    data's own labels 83.3 (van de Ven, ICLR blog 2025, as quoted).

    Source data are usually not there: F is taken on ``samples`` examples of the train set.
    ``normalize`` (default) divides F by its mean over the anchored entries, so that λ keeps its
    scale from L2-SP: the raw F shrinks with the source's loss, and at a source that is always
    certain F → 0 leaves plain fine-tuning. ``damping`` ε is added to F after that: λε is then
    L2-SP's λ; entries on which nothing depends are free at 0, the default.

    apply: gradient under plain SGD diverges where 2ηλF_j > 2, and F has a long tail; proximal is
    stable for every F. Half-lives and radii are those of an entry with F_j = 1.
    Cost: once, ``samples`` forward passes and as many backward passes (times the classes for the
    exact sum), kept in Hugging Face's cache; per step one pass over θ, θ⁰ and F. State: θ⁰ and F.

    Keys:
        estimator: the exact sum over classes (true), drawn labels, or label-free; by the source's
            head by default: true up to 32 classes, sampled above, label-free without a head.
        samples: examples of train on which F is taken.
        seed: of their draw.
        normalize: divide F by its mean, so that λ keeps its scale from L2-SP.
        damping: ε that is added to F after that.
    """

    formula: ClassVar[str] = "λ·Σ F·(θ − θ⁰)² + head·‖θ_new‖²"
    citation: ClassVar[str] = """@article{kirkpatrick2017overcoming,
  title   = {Overcoming Catastrophic Forgetting in Neural Networks},
  author  = {Kirkpatrick, James and Pascanu, Razvan and Rabinowitz, Neil and others},
  journal = {Proceedings of the National Academy of Sciences},
  volume  = {114}, number = {13}, pages = {3521--3526}, year = {2017}
}"""

    type: Literal["fisher-sp"] = "fisher-sp"
    estimator: Literal["true", "sampled", "label-free"] | None = None
    samples: int = Field(200, ge=1)
    seed: int = 0
    normalize: bool = True
    damping: float = Field(0.0, ge=0, allow_inf_nan=False)

    def prepare(self, model: nn.Module, start: StartingPoint, data: Any) -> None:
        """Estimate F, once."""
        if start.copies.keys() - start.fisher.keys():
            fisher = data.fisher(self.estimator, self.samples, self.seed)
            start.fisher = self.weights(fisher, start)

    @torch.no_grad()
    def weights(self, fisher: Mapping[str, Tensor], start: StartingPoint) -> dict[str, Tensor]:
        """F as it weighs, computed in place: normalised and damped; for ``start.fisher``.

        Raises:
            UserError: F is zero everywhere, or not finite.
        """
        anchored = [f[: start.rows.get(name)] if f.ndim else f for name, f in fisher.items()]
        total = sum(f.sum(dtype=torch.float64).item() for f in anchored)
        mean = total / max(1, sum(f.numel() for f in anchored))
        if not (0 < mean < math.inf):
            raise UserError(
                f"penalty: fisher-sp: the mean of F over the anchored parameters is {mean:g}: the "
                "source's answers do not depend on them, or overflow. Take another estimator "
                "(label-free), other samples, or {type: l2-sp}."
            )
        scale = 1 / mean if self.normalize else 1.0
        largest = max(f.max().item() for f in anchored if f.numel())
        log.info("Fisher information: mean %.3g, largest %.3g of the mean.", mean, largest / mean)
        return {name: f.mul_(scale).add_(self.damping) for name, f in fisher.items()}

    def metric(self, name: str, start: StartingPoint) -> Tensor | None:
        if name in start.fresh:  # a probed head: not from the source, pulled as by L2-SP
            return None
        if name not in start.fisher:
            raise UserError(
                f"penalty: fisher-sp has no Fisher information for {name}. TransferTrainer.train() "
                "computes it; in a loop of your own set start.fisher = penalty.weights("
                "diagonal_fisher(model, batches), start)."
            )
        return start.fisher[name]
