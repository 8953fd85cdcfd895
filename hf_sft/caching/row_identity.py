"""What the rows that a model will be given are, as one hash; images are not decoded for it."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

BATCH = 1000  # rows at a time, so that memory stays flat


def row_identity(rows: Any) -> str:
    """Hash (hex SHA-256) of all rows in order, and of the transform they pass.

    Args:
        rows: a `datasets.Dataset`, or anything with a length and rows by number.
    """
    found = hashlib.sha256(f"{len(rows)} ".encode())
    if hasattr(rows, "with_format"):
        _add_table(found, rows)
    else:
        for number in range(len(rows)):
            _add(found, rows[number])
    return found.hexdigest()


def _add_table(found: Any, rows: Any) -> None:
    import pyarrow as pa  # noqa: PLC0415 (with `datasets` only)
    from datasets.fingerprint import Hasher  # noqa: PLC0415

    if (transform := rows.format["format_kwargs"].get("transform")) is not None:
        found.update(Hasher.hash(transform).encode())
    for part in rows.with_format("arrow").iter(BATCH):
        for column in part.columns:
            for path in _files_alone(column):
                found.update(_file(path).encode())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, part.schema.remove_metadata()) as stream:
            stream.write_table(part.replace_schema_metadata(None).combine_chunks())
        found.update(sink.getvalue())


def _files_alone(column: Any) -> list[str]:
    """Paths of images that the table names without holding their bytes."""
    kind = column.type
    names = [kind.field(i).name for i in range(kind.num_fields)] if hasattr(kind, "field") else []
    if sorted(names) != ["bytes", "path"]:
        return []
    return [v["path"] for v in column.to_pylist() if v and v["bytes"] is None and v["path"]]


def _file(path: str) -> str:
    """A file by name, size and time of change."""
    if not os.path.exists(path):
        return path
    about = os.stat(path)
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def _add(found: Any, value: Any) -> None:
    """A row, or a part of one, told apart from every other."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            found.update(f"{key}: ".encode())
            _add(found, value[key])
    elif torch.is_tensor(value) or isinstance(value, np.ndarray):
        plain = torch.as_tensor(value).detach().cpu().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        found.update(f"{value!r} ".encode())


def batch_identity(batch: Mapping[str, Any]) -> str:
    """Hash (hex SHA-256) of a batch as the model is given it."""
    found = hashlib.sha256()
    _add(found, batch)
    return found.hexdigest()
