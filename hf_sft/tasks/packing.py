"""Packing: several short examples in one row, none of which sees another."""

from bisect import bisect_left, insort
from typing import Any

import torch
from datasets import Dataset

from hf_sft.errors import SourceError

PACKED = ("eager", "sdpa")  # attentions whose masks can be tried on the CPU


def plan(lengths: list[int], room: int) -> list[list[int]]:
    """Row numbers of every pack, by best fit decreasing; each pack has at most ``room`` tokens.

    The longest example first, each into the fullest pack that still has room for it: at most
    11/9 of the fewest packs, plus 4 (Johnson 1974). O(n log n); the order is repeatable: packs by
    their first row, rows of a pack in the data's order.
    """
    packs: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens that still fit, pack), sorted
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(space, (lengths[row], -1))
        left, pack = space.pop(at) if at < len(space) else (room, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(row)
        insort(space, (left - lengths[row], pack))
    return sorted(sorted(pack) for pack in packs)


def packed(rows: Dataset, room: int) -> Dataset:
    """Rows of ``input_ids`` and ``labels`` as packs, with ``position_ids`` that start again at 0.

    The first label of every example must be ignored already: nothing before it predicts it.
    """
    packs = plan([len(ids) for ids in rows["input_ids"]], room)
    return Dataset.from_dict({"rows": packs}).map(
        _joined, fn_kwargs={"examples": rows}, remove_columns=["rows"]
    )


def _joined(pack: dict[str, list[int]], examples: Dataset) -> dict[str, list[int]]:
    parts = examples[pack["rows"]]
    return {
        "input_ids": [token for ids in parts["input_ids"] for token in ids],
        "labels": [label for labels in parts["labels"] for label in labels],
        "position_ids": [i for ids in parts["input_ids"] for i in range(len(ids))],
    }


@torch.no_grad()
def refuse_leak(model: Any) -> None:
    """Try on the model itself that an example in a pack is as if it were alone.

    Two examples of 4 tokens in one row, the first one then exchanged: the second's logits must
    not change. transformers makes a block-diagonal mask of ``position_ids`` that start again, where
    there is no ``attention_mask`` and no cache; a model with attention, convolution or a state of
    its own may know nothing of it.

    Raises:
        SourceError: they change, or the model takes no ``position_ids``.
    """
    if getattr(model.config, "_attn_implementation", "eager") not in PACKED:
        return  # flash attention, which parts the examples by position_ids too, wants a GPU
    first = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    second = first.clone()
    second[:, :4] = first[:, :4].flip(1)
    positions = (torch.arange(8, device=model.device) % 4)[None]
    trained = model.training
    try:
        found = [
            model.eval()(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:]
            for ids in (first, second)
        ]
    except TypeError as error:
        raise _leaks(model, f"it takes no position_ids ({error})") from error
    finally:
        model.train(trained)
    if not torch.allclose(*found, rtol=0, atol=1e-6 * float(found[0].abs().max())):
        raise _leaks(model, "an example changes when another one before it in the row does")


def _leaks(model: Any, why: str) -> SourceError:
    return SourceError(
        f"task.packing: {type(model).__name__} cannot keep packed examples apart: {why}. Set "
        "packing: false, or model.attn_implementation: sdpa."
    )
