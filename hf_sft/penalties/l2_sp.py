"""L2-SP: the squared distance to the starting point."""

from typing import ClassVar, Literal

from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.square import Square


class L2SP(Square, WeightPrior):
    """Ω = λ·‖θ − θ⁰‖² over what came from the source + head·‖θ_new‖² over what is new.

    Li, Grandvalet, Davoine 2018, "Explicit inductive bias for transfer learning with convolutional
    networks" (ICML, arXiv 1802.01483), whose sums carry ½: their α is 2λ, their αβ is 2·head.
    Gradient 2λ(θ − θ⁰); proximal step θ = (θ̂ + 2ηλ·θ⁰)/(1 + 2ηλ), ordinary weight decay toward θ⁰.
    State: one copy of θ⁰ for the parameters that train.
    Defaults: λ = 0.01; head = 0, no decay of new parameters (the paper: αβ = 0.01, head 0.005).
    Published, ResNet-101, L2 → L2-SP: Stanford Dogs 81.4 → 85.1 in the paper, 83.21 → 86.14 with
    equally tuned arms (Li H. et al., ICLR 2020, table 5); Aircraft, far from the source, −0.3.
    """

    formula: ClassVar[str] = "λ·‖θ − θ⁰‖² + head·‖θ_new‖²"
    citation: ClassVar[str] = """@inproceedings{li2018explicit,
  title     = {Explicit Inductive Bias for Transfer Learning with Convolutional Networks},
  author    = {Li, Xuhong and Grandvalet, Yves and Davoine, Franck},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2018}, note = {arXiv:1802.01483}
}"""

    type: Literal["l2-sp"] = "l2-sp"
