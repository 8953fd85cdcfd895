"""Chunks: the kept tensors of many rows in files that are there whole or not at all."""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

CHUNK = 2**25  # bytes of features in a file at most, roughly
ROWS = 1024  # rows in a file at most: what an interruption loses
READ = 2**20
WAIT = 0.2  # seconds between two looks at what other processes have done


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows: their features one behind the other, and what else is kept of each."""

    features: Tensor  # (Σ positions, …) or (rows, …)
    rest: list[dict[str, Any]] | None = None


class Chunks:
    """The features of all rows of a data set, in one folder.

    A file's name holds its checksum, and it gets the name when it is written: one that is torn is
    made again. Any number of processes may build; each takes a chunk that no other has.

    Args:
        folder: of this data set, prefix and format alone.
        lengths: (rows,) positions of each row; None where a row is one tensor.
        row_bytes: of a position, or of a row.
    """

    def __init__(self, folder: Path, lengths: np.ndarray | None, rows: int, row_bytes: int):
        self.folder, self.lengths, self.rows = folder, lengths, rows
        positions = np.ones(rows, dtype=np.int64) if lengths is None else lengths
        self.ends = np.concatenate([[0], positions.cumsum()])
        self.bytes = int(self.ends[-1]) * row_bytes
        self.size = max(1, min(rows, ROWS, rows * CHUNK // max(1, self.bytes)))  # of a chunk
        self.count = -(-rows // self.size)
        self._open: dict[int, Chunk] = {}

    def rows_of(self, number: int) -> range:
        """The rows of a chunk."""
        return range(number * self.size, min(self.rows, (number + 1) * self.size))

    @property
    def missing(self) -> list[int]:
        """Chunks without a file."""
        there = {path.name[:6] for path in self.folder.glob("*.chunk")}
        return [number for number in range(self.count) if f"{number:06d}" not in there]

    def build(self, make: Callable[[range], Chunk]) -> int:
        """Open all chunks, making those that are missing or torn; the number made here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made, left = 0, list(range(self.count))
        while left:
            waiting = [number for number in left if not self._opened(number)]
            for number in list(waiting):
                try:
                    with FileLock(self.folder / f"{number:06d}.lock", timeout=0):
                        if not self._opened(number):  # another process may just have made it
                            self._write(number, make(self.rows_of(number)))
                            made += 1
                except Timeout:
                    continue
                waiting.remove(number)
            left = waiting
            if left:
                time.sleep(WAIT)
        return made

    def row(self, row: int) -> Tensor:
        """The features of one row: (positions, …), or without that axis."""
        chunk = self._open[row // self.size]
        first = self.ends[row // self.size * self.size]
        here = chunk.features[self.ends[row] - first : self.ends[row + 1] - first]
        return here if self.lengths is not None else here[0]

    def rest(self, row: int) -> dict[str, Any] | None:
        """What else is kept of a row."""
        rest = self._open[row // self.size].rest
        return None if rest is None else rest[row % self.size]

    def _files(self, number: int) -> Iterator[Path]:
        return self.folder.glob(f"{number:06d}-*.chunk")

    def _opened(self, number: int) -> bool:
        """Map a chunk's file, if there is a whole one; one that is torn is removed."""
        if number in self._open:
            return True
        for path in sorted(self._files(number)):
            if path.stem.partition("-")[2] == checksum(path):
                self._take(number, path)
                return True
            path.unlink(missing_ok=True)
        return False

    def _take(self, number: int, path: Path) -> None:
        stored = torch.load(path, mmap=True, weights_only=True)
        self._open[number] = Chunk(stored["features"], stored["rest"])

    def _write(self, number: int, chunk: Chunk) -> None:
        for left in self.folder.glob(f"{number:06d}.*.part"):  # of a process that was killed
            left.unlink(missing_ok=True)
        part = self.folder / f"{number:06d}.{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                torch.save({"features": chunk.features, "rest": chunk.rest}, file)
                file.flush()
                os.fsync(file.fileno())
            path = self.folder / f"{number:06d}-{checksum(part)}.chunk"
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._take(number, path)


def checksum(path: Path) -> str:
    """CRC-32 of a file, as eight hexadecimal digits."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(READ):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
