"""Files and values made wrong in every way that hostile or torn data are, from a seed."""

import copy
import gzip
import io
import json
import random
import zlib

HOSTILE = [
    "", " ", "\0", "a\0b", "\x1b[31m", '"><script>alert(1)</script>', "../../x", "/etc/passwd",
    "C:\\x", "| a |", "---\nlicense: x", "=cmd()", "\u202egnp.x", "\ud83d\ude00", "x" * 5000, "NaN",
    "nan", "inf", "-1", "1e999", "9" * 400, "9" * 5000, "0x1f", "null", "true", "a,b\n\"c", "\r",
    "\u2028", "\ufeff", "{}", "[[[[", "&amp;", "%s%n", "${HOME}", "~root/x", "package:os/..",
    "-0", "1_000", "٣", "³", "\ud800",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, float("inf"), float("nan"),
    -0.0, 0.5, [], {}, [[]], [None], {"": None}, {"type": "x"}, [1, "a"], {"a": {"b": {}}},
]  # fmt: skip
PIECES = [
    b"\0", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b'"', b"'", b",", b"\n", b"\r", b"\t", b"[", b"{",
    b"<", b">", b"&", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"-", b":", b"*a", b"&a ", b"!!python/x",
    b"\xef\xbb\xbf", b"\x1a", b"0", b"9" * 500, b"[" * 3000, b"\x1f\x8b", b"PK\x03\x04", b"%!PS",
]  # fmt: skip


def deep(depth: int, kind: str = "list"):
    value = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def mutated(raw: bytes, name: str, rng: random.Random) -> bytes:
    """The file with one to three faults; inside of what is packed, and of json's values, too."""
    if name.endswith(".gz") and rng.random() < 0.7:
        return gzip.compress(mutated(gzip.decompress(raw), name[:-3], rng), mtime=0)
    if name.endswith("json") and rng.random() < 0.7:
        return _json(raw, rng)
    if name.endswith("jsonl") and rng.random() < 0.7:
        lines = raw.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = _json(lines[at].encode(), rng).decode("utf-8", "surrogateescape")
        return "\n".join(lines).encode("utf-8", "surrogateescape")
    for _ in range(rng.randint(1, 3)):
        raw = rng.choice((_flip, _cut, _copy, _insert, _insert, _word, _word, _end))(raw, rng)
    return raw


def _place(raw: bytes, rng) -> tuple[int, int]:
    start = rng.randrange(len(raw) + 1)
    return start, min(len(raw), start + int(rng.expovariate(0.1)))


def _flip(raw: bytes, rng) -> bytes:
    if not raw:
        return raw
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def _cut(raw: bytes, rng) -> bytes:
    start, end = _place(raw, rng)
    return raw[:start] + raw[end:]


def _copy(raw: bytes, rng) -> bytes:
    start, end = _place(raw, rng)
    return raw[:end] + raw[start:end] * rng.choice((1, 2, 50)) + raw[end:]


def _insert(raw: bytes, rng) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.choice(PIECES) + raw[at:]


def _word(raw: bytes, rng) -> bytes:
    """A word, cell or number in place of another."""
    start, end = _place(raw, rng)
    return raw[:start] + rng.choice(HOSTILE).encode("utf-8", "surrogatepass") + raw[end:]


def _end(raw: bytes, rng) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _json(raw: bytes, rng) -> bytes:
    found = json.loads(raw)
    for _ in range(rng.randint(1, 2)):
        found = changed(found, rng)
    try:
        text = json.dumps(found, ensure_ascii=rng.random() < 0.5)
    except (RecursionError, ValueError):
        return b"[" * 100_000
    return text.encode("utf-8", "surrogatepass")


def changed(value, rng: random.Random):
    """The value with one of its nodes another, gone, doubled or under another key."""
    value = copy.deepcopy(value)
    nodes = list(_nodes(value))
    if not nodes:
        return any_value(rng)
    holder, key = rng.choice(nodes)
    how = rng.random()
    if how < 0.6:
        holder[key] = any_value(rng)
    elif how < 0.8:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(rng.choice(nodes)[0]))
    else:
        holder[rng.choice(HOSTILE)] = holder.pop(key)
    return value


def any_value(rng: random.Random):
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(HOSTILE)
    if kind < 0.95:
        return copy.deepcopy(rng.choice(VALUES))
    return deep(rng.choice((5, 40, 150, 400)), rng.choice(("list", "dict")))


def _nodes(value):
    count = range(len(value)) if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else count:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _nodes(value[key])


def packed_zeros(count: int) -> bytes:
    """A gzip file of ``count`` zeros, made without holding them."""
    file, packer = io.BytesIO(), zlib.compressobj(9, zlib.DEFLATED, 31)
    part = bytes(1 << 20)
    for _ in range(count >> 20):
        file.write(packer.compress(part))
    file.write(packer.flush())
    return file.getvalue()
