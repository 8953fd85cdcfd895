"""Shards: a parameter that FSDP2 has divided, as the rows of it that this process holds.

FSDP2 (torch's ``fully_shard``) divides every parameter along its first dimension and leaves it a
``DTensor``. What acts on single entries acts on the rows that are here, without communication; what
needs a norm adds up in one reduction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from hf_sft.errors import UserError


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, a shared one once; divided ones as such, also after a forward pass.

    A forward pass without a backward pass leaves some of an FSDP2 model gathered.
    """
    if isinstance(model, FSDPModule):
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    return dict(model.named_parameters())


def local(tensor: Tensor | None) -> Tensor | None:
    """The rows that are here, of the same storage; a tensor that is not divided is returned."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, gathered: a collective on all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what `here` has cut: a collective on all processes."""
    if not isinstance(like, DTensor):
        return part
    layout = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    return DTensor.from_local(part, like.device_mesh, like.placements, **layout).full_tensor()


def rows_here(tensor: Tensor) -> slice:
    """Which rows of ``tensor`` lie here.

    Raises:
        UserError: it is divided otherwise than by rows.
    """
    if not isinstance(tensor, DTensor):
        return slice(None)
    ways = [i for i, how in enumerate(tensor.placements) if not how.is_replicate()]
    if len(ways) > 1 or any(tensor.placements[i] != Shard(0) for i in ways):
        raise UserError(
            f"penalty: a parameter is divided as {tensor.placements}, and penalties know rows only "
            "(Shard(0)). Leave out shard_placement_fn, tensor and expert parallelism."
        )
    mesh, count = tensor.device_mesh, tensor.shape[0]
    each = -(-count // mesh.size(ways[0])) if ways else count
    first = min(count, each * mesh.get_local_rank(ways[0])) if ways else 0
    return slice(first, min(count, first + each))


def here(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor the rows that ``like`` has here, as a copy, on its device.

    One that has been cut already stays as it is.
    """
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        rows = rows_here(like)
        if rows.stop - rows.start < len(tensor):
            tensor = tensor[rows].clone()
    return tensor if tensor.device == like.device else tensor.to(like.device)


def first_rows(count: int, tensor: Tensor) -> int:
    """How many of the first ``count`` rows of a tensor lie here."""
    if not isinstance(tensor, DTensor):
        return count
    rows = rows_here(tensor)
    return min(max(0, count - rows.start), rows.stop - rows.start)


def added_up(parts: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """Σ over the processes of what each has found of its rows, (k, …); one reduction for all.

    Args:
        parts: k tensors of one shape; ``parts[i]`` was found on the rows of ``of[i]`` here.
        of: k parameters; of one that is not divided the part is the whole already.
    """
    found = torch.stack(list(parts))
    divided = [i for i, tensor in enumerate(of) if isinstance(tensor, DTensor)]
    if not divided:
        return found
    mesh, placements = of[divided[0]].device_mesh, of[divided[0]].placements
    how = [Replicate() if p.is_replicate() else Partial() for p in placements]
    total = DTensor.from_local(found[divided], mesh, how, run_check=False).full_tensor()
    return found.index_copy(0, torch.tensor(divided, device=found.device), total)


def joined(
    lengths: Sequence[Tensor], of: Sequence[Tensor], sums: Sequence[Tensor] | None = None
) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
    """k norms (n,) and k sums (m,) of tensors from those of their rows here; one reduction.

    Args:
        lengths: k tensors (n,), norms of what each process has; their squares add up.
        of: k parameters, as for `added_up`.
        sums: k tensors (m,) that add up as they are.
    """
    if not any(isinstance(tensor, DTensor) for tensor in of):
        return lengths, sums
    squares = [length.square() for length in lengths]
    if sums is None:
        return added_up(squares, of).sqrt(), None
    both = [torch.cat(pair) for pair in zip(squares, sums, strict=True)]
    found = added_up(both, of)
    return found[:, : len(squares[0])].sqrt(), found[:, len(squares[0]) :]


def norms(*tensors: Tensor) -> Tensor:
    """‖·‖₂ of each of n tensors, (n,)."""
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
