"""FunctionPrior: a penalty on what the model computes, in the loss."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hf_sft.layer_groups import LayerGroups
from hf_sft.penalties.penalty import Penalty


class FunctionPrior(Penalty):
    """A term of the loss that holds the function f_θ to the source's f_θ⁰ on the batch's inputs.

    It joins the task loss in training only, as ``weight`` times a mean over the batch, scaled
    exactly as the task loss is: one step is the same for any accumulation and number of processes.
    With weight 0 it is left out altogether.

    Attributes:
        needs: what it wants to see of the forward passes: ``outputs`` (the model's own),
            ``logits`` (of the source's head), ``embeddings``, ``maps`` (of inner layers).
        source: whether it needs the source's own forward pass.
        per: what its mean is over: the items of the task loss (labels that are not ignored), or
            whole examples.
        studies: how many examples `study` wants.

    Keys:
        weight: factor on the batch's mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[bool] = True
    per: ClassVar[Literal["item", "example"]] = "item"
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)

    @property
    def studies(self) -> int:
        return 0

    def layers(self, model: nn.Module, groups: LayerGroups) -> list[str]:
        """Modules whose outputs are the maps it compares."""
        return []

    def study(
        self, model: nn.Module, groups: LayerGroups, batches: Sequence[Mapping[str, Any]]
    ) -> Any:
        """What is found out once at θ⁰, before the first step; `loss` gets it as source.studied.

        Args:
            model: a copy at θ⁰ in eval mode, to be changed at will.
            groups: its layer groups.
            batches: of ``studies`` examples spread over the train set, labels included.
        """
        return None

    @abstractmethod
    def loss(self, model: nn.Module, source: Any, inputs: Mapping[str, Any], seen: Any) -> Tensor:
        """The batch mean as a scalar tensor (), before ``weight``.

        Args:
            model: the model that trains.
            source: what is known of f_θ⁰ on this batch (`training.source_function`), or None.
            inputs: the batch as the model took it, labels included.
            seen: what was seen of f_θ in the forward pass just made (`hf_sft.embeddings.Taps`).
        """
