"""FreezePolicy: which parameters train, as a pure function of training progress."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_sft.component import Component
from hf_sft.layer_groups import LayerGroups

Switch = Literal["follow", "train", "frozen"]
Mode = Literal["follow", "batch", "running"]


@dataclass(frozen=True)
class Signals:
    """What a policy remembers of the training so far; saved in every checkpoint.

    Attributes:
        values: JSON values.
        seed: of the run, for policies that draw.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Moment:
    """What can be seen at one point of the training.

    Attributes:
        progress: share of the optimizer steps done before this one, 0..1.
        theta: the parameters with the reduced gradients of the task, times ``scale``; None where
            the moment is no step.
        score: the watched metric of an evaluation just made, higher is better; None where the
            moment is no evaluation.
    """

    progress: float
    theta: Mapping[str, Tensor] | None = None
    scale: float = 1.0
    score: float | None = None


@dataclass(frozen=True)
class Plan:
    """What trains now.

    Attributes:
        trains: parameters that get a gradient.
        opened: parameters whose modules are in training mode; the others' are in eval mode.
        statistics: normalisation layers' running statistics: moving where their parameters are
            opened, always, never.
        mode: what they normalise by: the batch where statistics move, always the batch, or always
            the running statistics.
        multipliers: parameter -> factor on the learning rate, where it is not 1.
        probing: the fresh parameters have no starting point yet; when this ends, they have.
    """

    trains: frozenset[str]
    opened: frozenset[str]
    statistics: Switch = "follow"
    mode: Mode = "follow"
    multipliers: Mapping[str, float] = field(default_factory=dict)
    probing: bool = False

    def apply_(self, model: nn.Module, groups: LayerGroups) -> None:
        """Set ``requires_grad`` and the modes; to be called again after every ``model.train()``."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trains)
        self.settle_norms_(model, groups)
        for module in self.still(model, groups):
            module.training = False

    def settle_norms_(self, model: nn.Module, groups: LayerGroups) -> None:
        """Batch norm with fixed statistics that normalises by the batch all the same: no tracking.

        In evaluation it normalises by its running statistics as ever.
        """
        fixed = self._fixed_statistics(model, groups) if self.mode == "batch" else set()
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.track_running_stats = name not in fixed

    def still(self, model: nn.Module, groups: LayerGroups) -> list[nn.Module]:
        """Modules to keep in eval mode: dropout off, batch statistics untouched.

        Those without an opened parameter; a module without parameters (dropout) goes with the
        nearest module around it that has some.
        """
        names = self._unopened(model, groups)
        if self.mode == "batch":
            names -= groups.norm_modules
        elif self.mode == "running" or self.statistics == "frozen":
            names |= groups.norm_modules
        elif self.statistics == "train":
            names -= groups.norm_modules
        return [module for name, module in model.named_modules() if name in names]

    def moving(self, model: nn.Module, groups: LayerGroups) -> set[str]:
        """Norm modules whose running statistics move."""
        return set(groups.norm_modules) - self._fixed_statistics(model, groups)

    def _fixed_statistics(self, model: nn.Module, groups: LayerGroups) -> set[str]:
        if self.statistics == "frozen" or self.mode == "running":
            return set(groups.norm_modules)
        still = constant_norms(model, groups)
        if self.statistics == "train":
            return still
        return still | (self._unopened(model, groups) & groups.norm_modules)

    def _unopened(self, model: nn.Module, groups: LayerGroups) -> set[str]:
        """Names of the modules that go with no opened parameter."""
        known = set(groups.parameters)
        owners: set[str] = set()  # every module around a parameter
        opened: set[str] = set()  # every module around an opened one
        for name, _ in model.named_parameters(remove_duplicate=False):
            around = _ancestors(name)
            owners.update(around)
            if name in self.opened or name not in known:
                opened.update(around)
        names = set()
        for name, _ in model.named_modules():
            nearest = name
            while nearest and nearest not in owners:
                nearest = nearest.rpartition(".")[0]
            if nearest not in opened:
                names.add(name)
        return names


def constant_norms(model: nn.Module, groups: LayerGroups) -> set[str]:
    """Norm modules that can never change: all they have are buffers (DETR's frozen batch norm)."""
    return {
        name
        for name, module in model.named_modules()
        if name in groups.norm_modules
        and not isinstance(module, _BatchNorm)
        and next(module.parameters(), None) is None
    }


def _ancestors(name: str) -> list[str]:
    """``a.b.weight`` -> ``['', 'a', 'a.b']``."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


class FreezePolicy(Component):
    """The ``freeze`` block. Types say what trains; the head and what is fresh always do.

    Three switches decide the normalisation layers by themselves.

    Attributes:
        dynamic: whether the plan changes over time.
        watches: what `observe` looks at: ``gradients`` after every step, ``score`` after every
            evaluation.
        multiplies: whether the plan has learning-rate multipliers.

    Keys:
        norm_statistics: running statistics move with the layers around them, always or never.
        norm_affine: scale and shift train with the layers around them (follow), always, never.
        norm_mode: normalise by the batch where statistics move (follow), by the batch, or by the
            running statistics, which then stay.
    """

    dynamic: ClassVar[bool] = False
    watches: ClassVar[frozenset[str]] = frozenset()
    multiplies: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    norm_statistics: Switch = "follow"
    norm_affine: Switch = "follow"
    norm_mode: Mode = "follow"

    @model_validator(mode="after")
    def _one_source_of_statistics(self):
        if self.norm_mode == "running" and self.norm_statistics == "train":
            raise ValueError(
                "norm_mode: running leaves the statistics as they are; norm_statistics: train "
                "moves them: leave one of the two out"
            )
        return self

    @abstractmethod
    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        """Parameters below the head that train at ``progress`` (0..1)."""

    def always(self, groups: LayerGroups, progress: float) -> frozenset[str]:
        """What trains at ``progress`` whatever `open` says: nothing is left at random values."""
        return groups.fresh | set(groups.head.parameters)

    def multipliers(
        self, groups: LayerGroups, progress: float, signals: Signals
    ) -> Mapping[str, float]:
        """Parameter -> factor on its learning rate, where it is not 1."""
        return {}

    def probing(self, progress: float) -> bool:
        """Whether the head is still being probed; it is anchored where it stands when that ends."""
        return False

    def observe(self, groups: LayerGroups, signals: Signals, moment: Moment) -> Signals:
        """What is remembered after ``moment``; a pure function, called for what it `watches`."""
        return signals

    def plan(self, groups: LayerGroups, progress: float, signals: Signals) -> Plan:
        """The plan at ``progress``; the same arguments always give the same plan."""
        opened = self.open(groups, progress, signals) | self.always(groups, progress)
        return Plan(
            self._with_norms(opened, groups),
            opened,
            self.norm_statistics,
            self.norm_mode,
            self.multipliers(groups, progress, signals),
            self.probing(progress),
        )

    def ever_opens(self, groups: LayerGroups) -> frozenset[str]:
        """Parameters below the head that train at any time."""
        return frozenset(groups.parameters) if self.dynamic else self.open(groups, 0.0, Signals())

    def ever_trains(self, groups: LayerGroups) -> frozenset[str]:
        """Every parameter that trains at any time: what needs a copy of θ⁰, and DDP's wrapping."""
        return self._with_norms(self.ever_opens(groups) | self.always(groups, 0.0), groups)

    def _with_norms(self, opened: frozenset[str], groups: LayerGroups) -> frozenset[str]:
        if self.norm_affine == "train":
            return opened | groups.norm_parameters
        return opened - groups.norm_parameters if self.norm_affine == "frozen" else opened


class TrainAll(FreezePolicy):
    """Nothing is frozen: what a recipe without a ``freeze`` block does."""

    type: Literal["train-all"] = "train-all"

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return frozenset(groups.parameters)
