"""MappedFiles: tensors that still lie in the file they were loaded from, kept without a copy.

safetensors maps a file privately: a parameter lies in the page cache until something is written to
it, and only then in memory of its own. What it was stays in the file, and is mapped once more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_sft.errors import SourceError
from hf_sft.exact_copy import exact_copy

MAPS = Path("/proc/self/maps")  # Linux; elsewhere everything is copied


@dataclass
class _Mapping:
    """Addresses ``first`` to ``last`` of this process are bytes of a file, from ``offset`` on."""

    first: int
    last: int
    offset: int
    path: Path
    found: tuple[int, ...]  # the file as it was then, see `_state`
    storage: torch.UntypedStorage | None = None


class MappedFiles:
    """The files that a model's tensors lie in.

    A file that is deleted or replaced by another stays as it was for who has mapped it. One that is
    written to in place does not: that is told at the next use, unless no tensor has changed.
    """

    def __init__(self) -> None:
        self._mappings = list(_mappings())
        self._used: dict[Path, tuple[int, ...]] = {}
        self._kept: dict[Path, dict[str, Tensor]] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as it is now, whatever is written to it later; of no memory where it can be.

        That is where it lies in a private mapping of a file on the CPU, bit-equal to the file. Of
        half the memory where half precision holds it exactly.
        """
        tensor = tensor.detach()
        mapping = self._mapping(tensor)
        if mapping is None:
            return exact_copy(tensor)
        if mapping.storage is None:
            size = mapping.found[2]
            mapping.storage = torch.UntypedStorage.from_file(str(mapping.path), False, size)
        at = tensor.data_ptr() - mapping.first + mapping.offset
        kept = torch.empty(0, dtype=tensor.dtype)
        kept.set_(mapping.storage, at // tensor.element_size(), tensor.shape, tensor.stride())
        if not torch.equal(_bytes(kept), _bytes(tensor)):
            return exact_copy(tensor)
        self._used[mapping.path] = mapping.found
        self._kept.setdefault(mapping.path, {})[name] = kept
        return kept

    def _mapping(self, tensor: Tensor) -> _Mapping | None:
        if tensor.device.type != "cpu" or type(tensor) not in (Tensor, torch.nn.Parameter):
            return None
        if not (tensor.is_contiguous() and tensor.numel()):
            return None
        first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        for mapping in self._mappings:
            inside = mapping.first <= first and first + size <= mapping.last
            aligned = (first - mapping.first + mapping.offset) % tensor.element_size() == 0
            if inside and aligned and _state(mapping.path) == mapping.found:
                return mapping
        return None

    def refuse_written(self, same: Callable[[str, Tensor], bool]) -> None:
        """What is kept is what it was; a few microseconds, once more where a file was touched.

        Args:
            same: of a name and the tensor kept under it, whether it is as it was then.

        Raises:
            SourceError: one of the files has been written to in place.
        """
        for path, found in self._used.items():
            now = _state(path)
            if now[:2] != found[:2] or now == found:
                continue
            if now[:3] != found[:3] or not all(same(*kept) for kept in self._kept[path].items()):
                raise SourceError(
                    f"'{path.name}' in '{path.parent}' has been written to while the training "
                    "holds the starting point in it, which is lost with that. Put the file back "
                    "and start the command again: it goes on from the last checkpoint. To change "
                    "a file that is in use, write a new one and rename it."
                )
            self._used[path] = now


def _mappings():
    """What /proc says of private mappings of files that can be written to in memory."""
    lines = MAPS.read_text("utf-8").splitlines() if MAPS.is_file() else []
    for line in lines:
        addresses, access, offset, _, inode, *name = line.split(maxsplit=5)
        if access != "rw-p" or not name or not name[0].startswith("/"):
            continue
        path, (first, last) = Path(name[0]), (int(end, 16) for end in addresses.split("-"))
        found = _state(path)
        if found[1:2] == (int(inode),):
            yield _Mapping(first, last, int(offset, 16), path, found)


def _state(path: Path) -> tuple[int, ...]:
    """(device, inode, size, time of the last change); () where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
