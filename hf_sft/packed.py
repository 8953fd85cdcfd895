"""Packed files, gzip and parquet: unpacked no further than a table or a text could come to."""

import zlib
from pathlib import Path

import pyarrow.parquet as pq

FREE = 100 * 2**20  # bytes that any file may unpack to
RATIO = 200  # times its own size beyond that; texts pack 3 to 20 times smaller, zeros 1000 times
ROWS = 10_000_000  # that any parquet file may hold; more, where each takes a byte of it
GZIP = 31  # zlib's word for gzip with the largest window


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz.

    Raises:
        OSError: it cannot be read.
        ValueError: it is torn, is no gzip, or unpacks to more than any text would.
    """
    raw = path.read_bytes()
    return unpacked(raw) if path.name.lower().endswith(".gz") else raw


def unpacked(raw: bytes) -> bytes:
    """All members of a gzip file, one after the other (RFC 1952)."""
    most, size, parts = max(FREE, RATIO * len(raw)), 0, []
    while raw:
        member = zlib.decompressobj(GZIP)
        try:
            parts.append(member.decompress(raw, most - size + 1))
        except zlib.error as error:
            raise ValueError(f"it is no whole gzip file ({error})") from error
        size += len(parts[-1])
        if size > most:
            raise ValueError(
                f"it unpacks to more than {most >> 20} MB, {RATIO} times its own size or more, as "
                "no table of texts does. Unpack it yourself if it is what you want"
            )
        if not member.eof:
            raise ValueError("it ends before its end was written; get it anew")
        raw = member.unused_data.lstrip(b"\0")  # what pads a tape's last block
    return b"".join(parts)


def refuse_bomb(path: Path) -> None:
    """Look at what a parquet file says of itself, before any of it is unpacked.

    Pages unpack to the bytes in its metadata; equal values in a column take next to none of them,
    so rows are counted too.

    Raises:
        ValueError: more bytes, or more rows, than a table of that size has.
        Exception: pyarrow's, for a file that is none.
    """
    told, size = pq.read_metadata(path), path.stat().st_size
    unpacked_size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups))
    if unpacked_size > max(FREE, RATIO * size):
        raise ValueError(f"it unpacks to {unpacked_size >> 20} MB, {RATIO} times its size or more")
    if told.num_rows > max(ROWS, size):
        raise ValueError(f"it has {told.num_rows:,} rows in {size:,} bytes; no row is that small")
