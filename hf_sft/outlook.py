"""Outlook: what a freezing policy plans for every layer group, over all of the training."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from hf_sft.freezing import Plan, Signals
from hf_sft.freezing.base import constant_norms
from hf_sft.layer_groups import LayerGroup
from hf_sft.penalties import WeightPrior
from hf_sft.training.rates import multipliers
from hf_sft.training.trainer import TransferTrainer

SAMPLES = 500  # optimizer steps at which a plan is looked at, where there are more
MOST_PHASES = 12  # of one group, before rates that change all the time become a range
Strengths = list[tuple[WeightPrior, dict[str, float]]]


@dataclass(frozen=True)
class Span:
    """A share of training, from ``start`` to ``end``, in which one plan holds."""

    start: float
    end: float
    plan: Plan


def spans(trainer: TransferTrainer) -> list[Span]:
    """The plan over time, of every optimizer step or of SAMPLES of them, before any signal."""
    policy, signals = trainer.freeze, Signals(seed=trainer.args.seed)
    count = min(steps(trainer), SAMPLES) if policy.dynamic else 1
    found: list[Span] = []
    for k in range(count):
        plan = policy.plan(trainer.layer_groups, k / count, signals)
        same = found and found[-1].plan == plan
        start = found.pop().start if same else k / count
        found.append(Span(start, (k + 1) / count, plan))
    return found


def steps(trainer: TransferTrainer) -> int:
    """Optimizer steps of the training; SAMPLES where the data do not say how many they are."""
    args, rows = trainer.args, trainer.train_dataset
    if trainer.state.max_steps > 0 or args.max_steps > 0:
        return max(trainer.state.max_steps, args.max_steps)
    if not hasattr(rows, "__len__"):
        return SAMPLES
    batches = math.ceil(len(rows) / (args.train_batch_size * args.world_size))
    each = math.ceil(batches / args.gradient_accumulation_steps)
    return max(1, math.ceil(args.num_train_epochs * each))


class Outlook:
    """The spans of a trainer's plan, and what they mean for its layer groups.

    Raises:
        RecipeError: a rule of ``learning_rates`` or of a penalty that fits nothing.
    """

    def __init__(self, trainer: TransferTrainer):
        self.trainer, self.spans = trainer, spans(trainer)
        self.sizes = {name: p.numel() for name, p in trainer.model.named_parameters()}
        self.factors = multipliers(trainer.learning_rates, trainer.layer_groups)
        self._norms = [norm_modes(trainer, span.plan) for span in self.spans]
        probes = trainer.freeze.probing(0.0)
        known = {probed: strengths(trainer, probed) for probed in (False, True)}
        self._strengths = [known[probes and not span.plan.probing] for span in self.spans]

    def rows(self) -> list[dict[str, Any]]:
        """Per layer group: parameters, how many train, λ, learning rate, norm layers, ``phases``.

        ``trainable`` counts what trains at any time, after training what has; λ and learning rate
        are the largest. In a phase whose λ or rate changes, ``…_end`` is where it arrives.
        """
        return [self._row(group) for group in self.trainer.layer_groups]

    def _row(self, group: LayerGroup) -> dict[str, Any]:
        phases = merged(self._phase(group, number) for number in range(len(self.spans)))
        pulls = [phase.get(key) for phase in phases for key in ("lambda", "lambda_end")]
        return {
            "name": group.name,
            "parameters": sum(self.sizes[name] for name in group.parameters),
            "trainable": sum(self.sizes[name] for name in group.parameters if name in self._ever),
            "lambda": max((pull for pull in pulls if pull is not None), default=None),
            "learning_rate": max(phase["learning_rate"] for phase in phases),
            "norm": phases[-1]["norm"],
            "phases": phases,
        }

    @property
    def _ever(self) -> frozenset[str]:
        follower = self.trainer.follower
        if self.trainer.state.global_step:
            return follower.ever_trains - follower.idle
        return follower.trainable & frozenset().union(*(span.plan.trains for span in self.spans))

    def _phase(self, group: LayerGroup, number: int) -> dict[str, Any]:
        span = self.spans[number]
        opened = span.plan.trains & self.trainer.follower.trainable
        names = [name for name in group.parameters if name in opened]
        scale = [self.factors.get(n, 1.0) * span.plan.multipliers.get(n, 1.0) for n in names]
        pulls = [self._pull(names, number, progress) for progress in (span.start, span.end)]
        return {
            "from": span.start,
            "to": span.end,
            "trainable": sum(self.sizes[name] for name in names),
            "lambda": pulls[0],
            **({"lambda_end": pulls[1]} if pulls[1] != pulls[0] else {}),
            "learning_rate": self.trainer.args.learning_rate * max(scale, default=0.0),
            "norm": self._norms[number][group.name],
        }

    def _pull(self, names: list[str], number: int, progress: float) -> float | None:
        """The largest λ of these parameters; None where nothing is pulled."""
        known = [(prior.schedule(progress), c) for prior, c in self._strengths[number]]
        pulls = (sum(share * c.get(name, 0.0) for share, c in known) for name in names)
        return max(pulls, default=None) if known else None


def strengths(trainer: TransferTrainer, probed: bool) -> Strengths:
    """Every weight prior with its c_n: once the fresh parameters are ``probed``, or before."""
    start = copy.copy(trainer.starting_point)
    start.probed = dict.fromkeys(start.fresh) if probed else {}
    return [(prior, prior.coefficients(start)) for prior in trainer.pull.weight_priors]


def norm_modes(trainer: TransferTrainer, plan: Plan) -> dict[str, str | None]:
    """Layer group -> how its norm layers run: ``train``, ``eval``, or ``batch``.

    ``batch``: they normalise by the batch, and their running statistics stay.
    """
    model, groups = trainer.model, trainer.layer_groups
    still = {id(module) for module in plan.still(model, groups)}
    moving, modules = plan.moving(model, groups), dict(model.named_modules())
    constant = constant_norms(model, groups)
    found: dict[str, str | None] = {}
    for group in groups:
        owners = {name.rpartition(".")[0] for name in (*group.parameters, *group.buffers)}
        inside = sorted(owners & groups.norm_modules)
        fixed = [n for n in inside if isinstance(modules[n], _BatchNorm) and n not in moving]
        if not inside:
            found[group.name] = None
        elif all(name in constant or id(modules[name]) in still for name in inside):
            found[group.name] = "eval"
        else:
            found[group.name] = "batch" if fixed else "train"
    return found


def merged(phases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours that say the same as one; rates that change all the time as one range."""
    phases = list(phases)
    found = _merged(phases, ("trainable", "norm", "learning_rate"))
    return found if len(found) <= MOST_PHASES else _merged(phases, ("trainable", "norm"))


def _merged(phases: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for phase in phases:
        last = found[-1] if found else {}
        jumps = last.get("lambda_end", last.get("lambda")) != phase["lambda"]
        if not found or jumps or any(last[key] != phase[key] for key in keys):
            found.append(dict(phase))
            continue
        last["to"] = phase["to"]
        for key in ("lambda", "learning_rate"):
            end = phase.get(f"{key}_end", phase[key])
            last.pop(f"{key}_end", None)
            if end != last[key]:
                last[f"{key}_end"] = end
    return found
