"""The ``adapter`` block: low-rank adapters beside the source's weights, by peft."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from hf_sft.adapter_targets import layer_ends, refuse_idle_targets, usual_targets
from hf_sft.component import Component
from hf_sft.errors import RecipeError, SourceError, listing
from hf_sft.freezing import TrainAll
from hf_sft.layer_groups import LayerGroups
from hf_sft.model_source import LoadedModel, ModelSource
from hf_sft.penalties import FunctionPrior
from hf_sft.penalties.lora_sp import LoRASP
from hf_sft.tasks.pooling import reads_mean

KINDS = {  # task -> peft's name of it, by which it would put the architecture's own head on top
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "text-generation": "CAUSAL_LM",
    "translation": "SEQ_2_SEQ_LM",
    "summarization": "SEQ_2_SEQ_LM",
}
INSIDE = "base_model.model."  # where peft puts the wrapped model's own names
MISSING = (
    "adapter: the package peft is not installed. Install it with pip install 'hf-sft[peft]', or "
    "leave the block out."
)


class Adapter(Component):
    """What trains beside a frozen source; found by its ``type``."""


class LoRA(Adapter):
    """LoRA (Hu et al. 2022, arXiv 2106.09685): W = W⁰ + s·B·A, W⁰ frozen, s = α/r.

    The keys are named as in ``peft.LoraConfig``, of which these are a part. B starts at 0, so that
    training starts at the source. What is new, such as a head, trains whole and is saved with the
    adapters: what peft's ``modules_to_save`` is for, without a key. Anything else of the source
    stays as it is, so that ``model/`` is the source plus s·B·A; DoRA, which also scales W⁰, and
    peft's other methods are not offered.

    Keys:
        r: the rank.
        lora_alpha: α.
        target_modules: ends of the names of linear, embedding or convolution layers of the source,
            a regular expression of whole names, or all-linear; peft's choice for the architecture
            by default.
        lora_dropout: on what goes into the adapters.
        use_rslora: s = α/√r.
    """

    citation: ClassVar[str] = """@inproceedings{hu2022lora,
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and
               Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR}, year = {2022}, note = {arXiv:2106.09685}
}"""
    type: Literal["lora"] = "lora"
    r: int = Field(8, ge=1)
    lora_alpha: float = Field(16, gt=0)
    target_modules: list[str] | str | None = None
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _an_expression(cls, given: list[str] | str | None) -> list[str] | str | None:
        if isinstance(given, str):
            try:
                re.compile(given)
            except re.error as error:
                raise ValueError(f"this is no regular expression ({error})") from error
        return given

    def wrapped(self, loaded: LoadedModel, source: ModelSource, task: str) -> LoadedModel:
        """``loaded`` with the adapters in its model; only they and what is new will train.

        Raises:
            RecipeError: peft is missing, target modules are not there, are new, or are tied.
        """
        try:
            import peft  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise RecipeError(MISSING) from error
        if loaded.rows:
            raise RecipeError("adapter: new tokens would have embeddings that never train. Leave "
                              "task.add_tokens out, or the adapter.")  # fmt: skip
        new = sorted({_module(name) for name in loaded.fresh & _parameters(loaded.model)})
        refuse_idle_targets(loaded.model, self.target_modules, new)
        config = peft.LoraConfig(
            **self.model_dump(exclude={"type", "target_modules"}),
            target_modules=self.target_modules or usual_targets(loaded.model),
            task_type=None if reads_mean(loaded.model) else KINDS.get(task),
            modules_to_save=new or None,
            exclude_modules=new or None,
        )
        try:
            model = peft.get_peft_model(loaded.model, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise RecipeError(
                f"adapter.target_modules: {self.target_modules!r} fits no layer of "
                f"{type(loaded.model).__name__} that peft adapts ({error}). Name ends of names; "
                f"its layers end in: {listing(layer_ends(loaded.model), 12)}."
            ) from error
        _refuse_tied(model)
        model.peft_config["default"].base_model_name_or_path = (
            loaded.source.hub_id or loaded.source.name  # no path of this machine
        )
        fresh = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        globs = source.layer_groups and [INSIDE + glob for glob in source.layer_groups]
        groups = _as_before(LayerGroups.of(model, globs, fresh))
        return replace(loaded, model=model, groups=groups, fresh=fresh)


def _as_before(groups: LayerGroups) -> LayerGroups:
    """The groups by the names they have in the model without adapters."""
    named = (replace(group, name=group.name.removeprefix(INSIDE)) for group in groups.groups)
    return replace(groups, groups=tuple(named))


def _parameters(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _module(parameter: str) -> str:
    """The module that holds a new parameter.

    Raises:
        SourceError: the model itself holds it, and cannot be copied beside itself.
    """
    module = parameter.rpartition(".")[0]
    if not module:
        raise SourceError(
            f"adapter: {parameter} is new and no part of a layer, so that peft cannot train it "
            "beside adapters. Name a source that has it, or leave the adapter out."
        )
    return module


def _refuse_tied(model: Any) -> None:
    """A word table that is the head as well would be two different ones once adapters are added.

    Raises:
        RecipeError: an adapter stands at such a table.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    tied = [n for names in places.values() if len(names) > 1 for n in names if "base_layer" in n]
    if tied:
        raise RecipeError(
            f"adapter.target_modules: {listing(tied)} is tied to another layer, and would be "
            "another matrix in each. Leave it out."
        )


def conflicts(blocks: dict[str, Any]) -> list[str]:
    """What does not go together with an ``adapter`` block, one line each."""
    if blocks.get("adapter") is None:
        return []
    found = []
    if not isinstance(blocks.get("freeze"), TrainAll):
        found.append(
            "freeze: with an adapter, the source is frozen and adapters train all the time. Leave "
            "freeze out, or choose layers by adapter.target_modules."
        )
    for penalty in blocks.get("penalty") or ():
        looks = isinstance(penalty, FunctionPrior) and {"maps", "embeddings"} & penalty.needs
        alone = isinstance(penalty, FunctionPrior) and not penalty.source and not looks
        if not (penalty is None or alone or isinstance(penalty, LoRASP)):
            found.append(
                f"penalty: {penalty.type} looks at the source's own weights or function, beside "
                "which adapters train. Take lora-sp, which pulls what they add to the weights."
            )
    if getattr(blocks.get("model"), "anchor", None) is not None:
        found.append(
            "model.anchor: with an adapter, θ⁰ is where training starts. Leave one of them out."
        )
    return found


def adapted(recipe: Any, loaded: LoadedModel) -> LoadedModel:
    """``loaded`` with the recipe's adapter in its model; as it is without one."""
    if recipe.adapter is None:
        return loaded
    return recipe.adapter.wrapped(loaded, recipe.model, recipe.task.type)


def save_adapters(model: Any, folder: Path) -> None:
    """Write what peft loads beside the source; nothing for a model without adapters."""
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder, save_embedding_layers=False)  # they are the source's


def merged(model: Any) -> Any:
    """The model with its adapters added to its weights, as a copy; a model without any itself."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def told(model: Any, adapter: Adapter | None) -> dict[str, Any] | None:
    """The block as it was settled, and how many parameters train; None without one."""
    if adapter is None:
        return None
    config, sizes = model.peft_config["default"], list(model.parameters())
    trains = sum(p.numel() for p in sizes if p.requires_grad)
    whole = sum(p.numel() for p in sizes)
    targets = config.target_modules
    return {
        **adapter.describe(),
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "trainable": trains,
        "trainable_share": trains / whole,
    }
