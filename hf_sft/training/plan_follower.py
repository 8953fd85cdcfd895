"""PlanFollower: makes a model do what a freezing policy plans, step after step."""

from collections.abc import Collection
from typing import Any

from torch import nn

from hf_sft.freezing.base import FreezePolicy, Moment, Plan, Signals
from hf_sft.layer_groups import LayerGroups


class PlanFollower:
    """Applies the plan of a policy whenever it changes, and remembers what that took.

    Args:
        policy: a pure function of progress and signals.
        groups: the model's layer groups.
        trainable: what the caller lets train; nothing else ever does.
        seed: of the run, for policies that draw.

    Attributes:
        signals: what the policy remembers; saved and restored with a checkpoint.
        transitions: what trained from which step on.
        idle: parameters that may train, and that no plan so far has let.
        fixed: names of the modules whose buffers no plan so far has let move.
    """

    def __init__(
        self,
        policy: FreezePolicy,
        groups: LayerGroups,
        trainable: Collection[str],
        seed: int = 0,
    ):
        self.policy, self.groups, self.trainable = policy, groups, frozenset(trainable)
        self.seed = seed
        self.ever_trains = policy.ever_trains(groups) & self.trainable
        self.idle, self.fixed = set(self.ever_trains), None
        self.begin()

    def begin(self, memory: dict[str, Any] | None = None) -> None:
        """Start anew, or go on from what `memory` gave; what has moved before stays counted."""
        memory = memory or {"idle": self.idle, "fixed": self.fixed}
        self.signals = Signals(memory.get("signals", {}), memory.get("seed", self.seed))
        self.transitions: list[dict[str, Any]] = list(memory.get("transitions", []))
        self.idle = set(memory["idle"])
        self.fixed = None if memory["fixed"] is None else set(memory["fixed"])
        self.plan: Plan | None = None
        self._applied: tuple[int | None, Signals] | None = None
        self._model: nn.Module | None = None
        self._still: list[nn.Module] = []

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {
            "signals": dict(self.signals.values),
            "seed": self.signals.seed,
            "transitions": self.transitions,
            "idle": sorted(self.idle),
            "fixed": sorted(self.fixed or ()),
        }

    def follow(self, model: nn.Module, progress: float, step: int) -> bool:
        """Make ``model`` follow the plan at ``progress``; whether anything changed."""
        at = step if self.policy.dynamic else None
        if model is self._model and self._applied is not None:
            before, signals = self._applied
            if at == before and signals is self.signals:
                return False
        plan = self.policy.plan(self.groups, progress, self.signals)
        changed = plan != self.plan or model is not self._model
        self._applied, self._model = (at, self.signals), model
        if changed:
            self._apply(model, plan, step)
        return changed

    def _apply(self, model: nn.Module, plan: Plan, step: int) -> None:
        for name, parameter in model.named_parameters():
            trains = name in plan.trains and name in self.trainable
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None  # zeroed gradients are no freeze: Adam would still step
        plan.settle_norms_(model, self.groups)
        self._still = plan.still(model, self.groups)
        if self.plan is None or plan.trains != self.plan.trains:
            self._note(plan, step)
        still = {id(module) for module in self._still}
        moving = plan.moving(model, self.groups)
        fixed = {
            name
            for name, module in model.named_modules()
            if id(module) in still or (name in self.groups.norm_modules and name not in moving)
        }
        self.fixed = fixed if self.fixed is None else self.fixed & fixed
        self.idle -= plan.trains
        self.plan = plan

    def _note(self, plan: Plan, step: int) -> None:
        trains = {
            group.name: sum(name in plan.trains and name in self.trainable for name in names)
            for group in self.groups
            if (names := group.parameters)
        }
        entry = {"step": step, "trains": {name: count for name, count in trains.items() if count}}
        if self.transitions and self.transitions[-1]["step"] >= step:
            self.transitions.pop()
        if not self.transitions or self.transitions[-1]["trains"] != entry["trains"]:
            self.transitions.append(entry)

    def reopen(self) -> None:
        """Forget what was applied: something else has set ``requires_grad``."""
        self.plan, self._applied = None, None

    def hold(self) -> None:
        """Keep the frozen modules in eval mode; to be called after every ``model.train()``."""
        for module in self._still:
            vars(module)["training"] = False  # nine times as fast as Module's own way

    def observe(self, moment: Moment) -> None:
        """Let the policy look at a step or an evaluation."""
        self.signals = self.policy.observe(self.groups, self.signals, moment)

    def frozen(self, model: nn.Module) -> list[str]:
        """Parameters that have not trained so far, and buffers that no plan has let move."""
        still = {n for n, _ in model.named_parameters()} - self.ever_trains | self.idle
        return [name for name, _ in model.named_parameters() if name in still] + [
            name for name, _ in model.named_buffers() if name.rpartition(".")[0] in self.fixed
        ]
