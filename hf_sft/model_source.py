"""ModelSource, the ``model`` block, and LoadedModel, what it has become."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from hf_sft.errors import SourceError
from hf_sft.layer_groups import LayerGroups
from hf_sft.resources import PACKAGE, SHA256
from hf_sft.weight_files import ENDINGS

M = TypeVar("M", bound=nn.Module)


class ModelSource(BaseModel):
    """The ``model`` block; keys beyond these go to ``from_pretrained`` / ``timm.create_model``.

    Keys:
        name: a Hub id, timm/…, a folder, a weight file, or package:module/path.
        anchor: a source of the same shapes that the pull leads to, where training starts from
            another; name itself by default.
        revision: of a Hub id.
        architecture: timm's name, for a bare weight file.
        sha256: of a local file.
        keys: how the file's tensors are found; in-order where it names them otherwise.
        fresh, unused: globs of parameters beside the head that may be missing from the source, or
            left over in it.
        backbone_of: the configuration, key for key, of the Transformers detector or segmenter
            whose backbone the source becomes.
        layer_groups: ordered globs, for a model that cannot be ordered by itself.
        pretrained: false: the network of the source with weights drawn anew, by training.seed;
            θ⁰ is that draw.
        channels_last: weights of convolutions in torch.channels_last; the same values, and faster
            on some machines, see ``hf-sft speed``.
        trust_remote_code: run code of the Hub's repository.

    Example: {name: sentence-transformers/all-MiniLM-L6-v2}
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    name: str
    anchor: str | None = None
    revision: str | None = None
    architecture: str | None = None
    sha256: str | None = Field(None, pattern=SHA256, description="64 hexadecimal digits")
    keys: Literal["by-name", "in-order"] = "by-name"
    fresh: list[str] = []
    unused: list[str] = []
    backbone_of: dict[str, Any] | None = None
    layer_groups: list[str] | None = None
    pretrained: bool = True
    channels_last: bool = False
    trust_remote_code: bool = False

    def files(self) -> dict[str, str]:
        """The local files this block names, where they are no Hub ids."""
        named = {"name": self.name, "anchor": self.anchor or ""}
        near = (PACKAGE, ".", "/", "~")
        return {k: n for k, n in named.items() if n.startswith(near) or Path(n).suffix in ENDINGS}


@dataclass(frozen=True)
class Source:
    """Where θ⁰ came from; no local path, so that it can be published.

    Not ``pretrained``: only the network is the source's, its weights were drawn anew.
    """

    name: str
    revision: str | None = None
    hub_id: str | None = None
    license: str | None = None
    pretrained: bool = True

    @property
    def told(self) -> str:
        """In a line of the plan."""
        drawn = "" if self.pretrained else "(its network; weights drawn anew)"
        return " ".join(filter(None, (self.name, self.revision, drawn)))


def image_convolutions(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights ``channels_last`` lays out otherwise."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def lay_out_channels_last(model: M) -> M:
    """The same model, weights of its images' convolutions in torch.channels_last.

    Not ``model.to``: it takes any weight of four dimensions, and fails at one of five.
    """
    for module in image_convolutions(model):
        module.to(memory_format=torch.channels_last)
    return model


@dataclass
class LoadedModel:
    """A model ready to be fine-tuned, and what is known about its origin.

    Attributes:
        fresh: names of the parameters that did not come from the source.
        left_over: entries of the checkpoint that the model has no use for (an old head).
        original: loads the source with its own head; and whether it has one.
        rows: parameter -> how many of its first rows are the source's, where the task added some.
        inside: where the source is in the model, if it is its backbone only.
    """

    model: transformers.PreTrainedModel
    processor: Any
    source: Source
    groups: LayerGroups
    fresh: frozenset[str]
    left_over: tuple[str, ...]
    original: Callable[[], tuple[transformers.PreTrainedModel, bool]]
    rows: dict[str, int] = field(default_factory=dict)
    inside: Any = None

    def channels_last(self) -> "LoadedModel":
        """The same, weights of images' convolutions in torch.channels_last; so is the original.

        Raises:
            SourceError: it has no such convolution.
        """
        if not image_convolutions(self.model):
            raise SourceError(
                f"model.channels_last: {self.source.name!r} has no convolution of images "
                "(torch.nn.Conv2d or ConvTranspose2d) to lay out so. Leave the key out."
            )

        def original() -> tuple[transformers.PreTrainedModel, bool]:
            model, has_head = self.original()
            return lay_out_channels_last(model), has_head

        return replace(self, model=lay_out_channels_last(self.model), original=original)

    def compared(self, original: Any, collate: Callable, groups: LayerGroups, model: Any) -> dict:
        """What `drift.compare` takes to hold ``model``, tuned, against its ``original``."""
        if self.inside is not None:
            return self.inside.compared(original, collate, model)
        head = set(groups.head.parameters)
        return {"tuned": model, "head": head, "collate": collate, "groups": groups}
