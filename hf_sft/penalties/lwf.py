"""LwF: the source's own head is held to its answers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hf_sft.penalties.answers import counted, divergence, kind_of, logits_of, squares
from hf_sft.penalties.function_prior import FunctionPrior


class LwF(FunctionPrior):
    """weight · τ² · mean KL(softmax(z⁰/τ) ‖ softmax(z/τ)), z⁰ the source's logits, z those now.

    Li and Hoiem 2016, "Learning without forgetting" (ECCV, arXiv 1606.09282): on the new task's own
    inputs, the source's head on the moving backbone keeps answering what it answered on θ⁰; τ²
    keeps the gradient's size at any temperature (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
    ``distance: mse`` compares the logits themselves, mean (z − z⁰)² over examples and classes.
    The source's head is kept where the task has replaced it (and stays as it is; it is asked in
    eval mode); else the model's own logits are compared, of language models at every position that
    predicts a label. The mean is over the examples or positions that the task loss is taken over.
    Flags (multi-label) are compared one by one, numbers (regression) by their squared difference.
    Defaults: τ = 2, the paper's, and weight 1, its λ_o (tllib: τ = 3, weight 4 without the τ²).
    Published, ResNet-50 on CUB-200, fine-tuning → LwF: 51.2 → 56.7 with 15 % of the data, 81.8 →
    81.5 with all of it (tllib's table, one seed).
    Cost per step: z⁰ is remembered where the inputs recur, else one forward pass of the source; a
    replaced head takes one more forward and backward pass of the backbone. Memory: the source.

    Keys:
        tau: the temperature τ.
        distance: kl of the answers, or mse of the logits.
    """

    formula: ClassVar[str] = "weight·τ²·mean KL(softmax(z⁰/τ) ‖ softmax(z/τ))"
    citation: ClassVar[str] = """@inproceedings{li2016learning,
  title     = {Learning without Forgetting},
  author    = {Li, Zhizhong and Hoiem, Derek},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2016}, note = {arXiv:1606.09282}
}"""
    needs: ClassVar[frozenset[str]] = frozenset({"outputs", "logits"})

    type: Literal["lwf"] = "lwf"
    tau: float = Field(2.0, gt=0, allow_inf_nan=False)
    distance: Literal["kl", "mse"] = "kl"

    def loss(self, model: nn.Module, source: Any, inputs: Mapping[str, Any], seen: Any) -> Tensor:
        function = source.function
        if function.own_head:
            answering, now = function.model, function.through_head(model, inputs)
        else:
            answering, now = model, logits_of(seen.outputs)
        now, weights = counted(now, inputs, answering)
        then, _ = counted(source.logits, inputs, answering)
        kind = kind_of(answering, now)
        if self.distance == "mse" or kind == "values":
            return (weights * squares(then, now)).sum()
        return self.tau**2 * (weights * divergence(then, now, kind, self.tau)).sum()
