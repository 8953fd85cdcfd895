"""RecAdam: the pull is annealed away while the task's own steps are annealed in."""

import math
from typing import ClassVar, Literal

from pydantic import Field

from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.square import Square


class RecAdam(Square, WeightPrior):
    """min λ(t)·L(θ) + (1 − λ(t))·(γ/2)·‖θ − θ⁰‖² with λ(t) = 1/(1 + e^(−k(t − t0))).

    t is the share of training that is done, so that a short run is annealed as a long one is.
    Each step: the optimizer's own, times λ(t) after its normalisation (before it, Adam would divide
    the factor out again), then θ = (θ̂ + η(1 − λ(t))γ·θ⁰)/(1 + η(1 − λ(t))γ), whose first order is
    the paper's θ̂ − η(1 − λ(t))γ(θ̂ − θ⁰). New parameters take whole steps and are not pulled.
    γ is ``alpha``; ``lambda`` is γ/2, as everywhere here. Half-lives are those at λ(t) = 0.

    Chen et al. 2020, "Recall and learn: fine-tuning deep pretrained language models with less
    forgetting" (EMNLP, arXiv 2004.12651), Adam; here any optimizer. Their γ = 5000 is the default:
    at η = 2e-5 d halves in 7 steps while λ(t) = 0. Their t0 of 100 to 1000 steps and k of 0.05 to 1
    a step exceed short runs; here t0 = 0.25 and k = 20 are shares of training: λ(0) = 0.007,
    λ = ½ at a quarter, 0.99 at the half. Published: about +1 on the average of GLUE's development
    sets, BERT-base (not read again here); a replication on a set of 456 rows found no γ better than
    AdamW.
    Cost: one pass over θ, θ⁰ per step; state: θ⁰.

    Keys:
        k: how steeply the annealing goes, per share of training.
        t0: the share of training at which λ(t) is ½.
    """

    formula: ClassVar[str] = "(1 − λ(t))·(γ/2)·‖θ − θ⁰‖², steps times λ(t)"
    citation: ClassVar[str] = """@inproceedings{chen2020recall,
  title     = {Recall and Learn: Fine-tuning Deep Pretrained Language Models with Less Forgetting},
  author    = {Chen, Sanyuan and Hou, Yutai and Cui, Yiming and Che, Wanxiang and Liu, Ting and
               Yu, Xiangzhan},
  booktitle = {Conference on Empirical Methods in Natural Language Processing (EMNLP)},
  year      = {2020}, note = {arXiv:2004.12651}
}"""
    default_lambda: ClassVar[float] = 2500.0

    type: Literal["recadam"] = "recadam"
    apply: Literal["proximal"] = "proximal"
    k: float = Field(20.0, gt=0, allow_inf_nan=False)
    t0: float = Field(0.25, ge=0, le=1)

    def schedule(self, progress: float) -> float:
        return 1.0 - self.step_share(progress)

    def step_share(self, progress: float) -> float:
        return 0.5 * (1.0 + math.tanh(0.5 * self.k * (progress - self.t0)))  # the sigmoid, stable
