"""FreezePolicy: which parameters train, as a pure function of training progress."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from hf_sft.component import Component
from hf_sft.layer_groups import LayerGroups

Switch = Literal["follow", "train", "frozen"]


@dataclass(frozen=True)
class Signals:
    """What a policy may look at besides progress, recorded at step boundaries and saved."""

    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What trains now.

    Attributes:
        trains: parameters that get a gradient.
        opened: parameters whose modules are in training mode; the others' are in eval mode.
        statistics: normalisation layers' mode: with their parameters, always train, always frozen.
        multipliers: parameter -> factor on the learning rate, where it is not 1.
    """

    trains: frozenset[str]
    opened: frozenset[str]
    statistics: Switch = "follow"
    multipliers: Mapping[str, float] = field(default_factory=dict)

    def apply_(self, model: nn.Module, groups: LayerGroups) -> None:
        """Set ``requires_grad`` and the modes; to be called again after every ``model.train()``."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trains)
        for module in self.still(model, groups):
            module.training = False

    def still(self, model: nn.Module, groups: LayerGroups) -> list[nn.Module]:
        """Modules to keep in eval mode: dropout off, batch statistics untouched.

        Those without an opened parameter; a module without parameters (dropout) goes with the
        nearest module around it that has some.
        """
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
        if self.statistics == "frozen":
            names |= groups.norm_modules
        elif self.statistics == "train":
            names -= groups.norm_modules
        return [module for name, module in model.named_modules() if name in names]


def _ancestors(name: str) -> list[str]:
    """``a.b.weight`` -> ``['', 'a', 'a.b']``."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


class FreezePolicy(Component):
    """The ``freeze`` block. Types say what trains; the head and what is fresh always do.

    ``norm_statistics`` and ``norm_affine`` decide the normalisation layers by themselves: with the
    layers around them (follow), always train, or always frozen.
    """

    norm_statistics: Switch = "follow"
    norm_affine: Switch = "follow"

    @abstractmethod
    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        """Parameters below the head that train at ``progress`` (0..1)."""

    def plan(self, groups: LayerGroups, progress: float, signals: Signals) -> Plan:
        """The plan at ``progress``; the same arguments always give the same plan."""
        new = groups.fresh | set(groups.head.parameters)  # never left at random values
        opened = self.open(groups, progress, signals) | new
        trains = opened
        if self.norm_affine == "train":
            trains = opened | groups.norm_parameters
        elif self.norm_affine == "frozen":
            trains = opened - groups.norm_parameters
        return Plan(trains, opened, self.norm_statistics)

    def ever_trains(self, groups: LayerGroups) -> frozenset[str]:
        """Every parameter that trains at any time: what needs a copy of θ⁰, and DDP's wrapping."""
        return self.plan(groups, 0.0, Signals()).trains


class TrainAll(FreezePolicy):
    """Nothing is frozen: what a recipe without a ``freeze`` block does."""

    type: Literal["train-all"] = "train-all"

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return frozenset(groups.parameters)
