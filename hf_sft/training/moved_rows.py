"""MovedRows: the rows of large embedding tables that have left θ⁰, elsewhere a pull is zero.

Half of a small language model is its word table, of which a training set names a few per cent.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_sft.penalties.terms import CHUNK
from hf_sft.starting_point import StartingPoint

SMALLEST = 4 * CHUNK  # elements of a table for which looking costs less than pulling
LARGEST_SHARE = 0.25  # of rows that have moved: beyond it the whole table is pulled at once
LOOK_AGAIN = 100  # steps after which θ and θ⁰ themselves are compared anew


class MovedRows:
    """For every large embedding table on the CPU, the rows with θ ≠ θ⁰.

    A row with a gradient of zero at every step, no state in the optimizer and no weight decay has
    not moved. The rows are found by comparing θ with θ⁰ at the first step and now and then, and
    between by the norms of their gradients. Tables with weight decay are left out, and so are
    those that have grown, have a ``max_norm`` or sparse gradients.
    """

    def __init__(self, model: nn.Module, start: StartingPoint, optimizer: torch.optim.Optimizer):
        self.start, self.optimizer = start, optimizer
        plain = [group for group in optimizer.param_groups if not group.get("weight_decay")]
        eligible = {id(p) for group in plain for p in group["params"]} & {
            id(m.weight)
            for m in model.modules()
            if isinstance(m, nn.Embedding) and m.max_norm is None and not m.sparse
        }
        self._tables = {
            name
            for name, p in model.named_parameters()
            if id(p) in eligible and name in start.copies and name not in start.rows
            if p.device.type == "cpu" and p.numel() >= SMALLEST
        }
        self._moved: dict[str, Tensor] = {}
        self._age = 0

    @torch.no_grad()
    def look(self, theta: Mapping[str, Tensor], after: bool = False) -> dict[str, Tensor]:
        """Name -> indices (k,) of the only rows with θ ≠ θ⁰, before a step with these gradients.

        ``after``: the step is taken.
        """
        if self._age % LOOK_AGAIN == 0:
            self._moved.clear()
        self._age += 1
        found = {}
        for name in sorted(self._tables):
            parameter = theta[name]
            if parameter.grad is None or isinstance(parameter, DTensor):
                continue
            if name not in self._moved:
                self._moved[name] = self._compared(name, parameter)
            before = self._moved[name]
            self._moved[name] = before | (torch.linalg.vector_norm(parameter.grad, dim=1) != 0)
            found[name] = (self._moved[name] if after else before).nonzero().flatten()
            if len(found[name]) > LARGEST_SHARE * len(parameter):
                self._tables.remove(name)
                del found[name]
        return found

    def _compared(self, name: str, parameter: Tensor) -> Tensor:
        """Rows that differ from θ⁰, or that the optimizer may still move without a gradient."""
        moved = (parameter != self.start.anchor(name, parameter)).any(1)
        for state in self.optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(state) and state.shape == parameter.shape:
                moved |= (state != 0).any(1)
        return moved
