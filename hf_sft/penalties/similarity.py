"""Similarity prior: the batch's pairwise similarities are held to the source's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hf_sft.penalties.function_prior import FunctionPrior


class Similarity(FunctionPrior):
    """w · mean_{i≠k} (⟨e_i, e_k⟩ − ⟨e⁰_i, e⁰_k⟩)² over the pairs of a batch.

    e are the L2-normalised embeddings (batch, dim) under θ: hidden states averaged over real
    positions, a CNN's pooled features; e⁰ those under θ⁰. Needs no head, and leaves every rotation
    of the embedding space free. The pairs are those inside a micro-batch of one process: cutting a
    step into smaller ones leaves fewer pairs, each counting more, so that this prior alone is not
    the same for any accumulation. After similarity-preserving distillation (Tung and Mori 2019,
    ICCV, arXiv 1907.09682) and relational distillation (Park et al. 2019, CVPR, arXiv 1904.05068),
    which distil a teacher; here the teacher is the source.
    Cost: none beyond the batch's Gram matrix where the inputs recur (e⁰ is then remembered after
    one pass over the data), else one forward pass of the source per step; memory: the source.
    Default w = 10. Published gains are of distillation: not comparable.
    """

    formula: ClassVar[str] = "weight·mean (⟨e_i, e_k⟩ − ⟨e⁰_i, e⁰_k⟩)²"
    citation: ClassVar[str] = """@inproceedings{tung2019similarity,
  title     = {Similarity-Preserving Knowledge Distillation},
  author    = {Tung, Frederick and Mori, Greg},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2019}, note = {arXiv:1907.09682}
}"""
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    per: ClassVar[Literal["item", "example"]] = "example"

    type: Literal["similarity"] = "similarity"
    weight: float = Field(10.0, ge=0, allow_inf_nan=False)

    def loss(self, model: nn.Module, source: Any, inputs: Mapping[str, Any], seen: Any) -> Tensor:
        now, then = cosines(seen.embeddings(inputs)), cosines(source.embeddings)
        if len(now) < 2:
            return now.sum() * 0.0  # one example has no pairs
        return (now - then).square().sum() / (len(now) * (len(now) - 1))


def cosines(embeddings: Tensor) -> Tensor:
    """(batch, batch): cosine similarities of all pairs, in float32; those with itself are 1."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    return unit @ unit.T
