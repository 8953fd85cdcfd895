"""Watch: what is logged beside the loss, about the penalties and how they stand to the task."""

import math
from typing import Any

import torch
from torch import Tensor


class Watch:
    """Looks at the gradients of the steps that Trainer will log, and changes nothing.

    ``penalty`` Ω now, and what function priors have added; ``objective`` its sum with the loss.
    ``pull_to_gradient`` ‖∂Ω/∂θ‖/‖g‖ over the parameters that weight priors act on: from 1 on, the
    pull decides where they go. ``gradient_drift_cosine`` cos(g, θ − θ⁰) over what came from the
    source: below 0 the task leads further away, above 0 it leads back (the sign is SPD's signal).

    g is the reduced gradient before pull and clipping, function priors in it. Without a penalty
    there are none of these. Cost, in steps that are logged: one more pull, and one parameter's
    gradient of memory.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._seen: dict[str, Tensor] = {}

    def look(self, scale: float) -> None:
        """Measure this step if it will be logged; gradients are ``scale`` times themselves."""
        if self.trainer.pull.penalties and self._will_be_logged():
            self._seen = self._measure(scale)

    def logged(self, loss: float) -> dict[str, float]:
        """What stands beside ``loss`` in the log; a collective on all processes."""
        trainer, pull = self.trainer, self.trainer.pull
        found, self._seen = {name: float(value) for name, value in self._seen.items()}, {}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        if pull.weight_priors or pull.function_priors:
            held = trainer.running_loss.held_mean(trainer.accelerator)
            penalty = trainer.penalty_value() + held
            return {"penalty": penalty, "objective": loss + penalty, **found}
        return found

    def _will_be_logged(self) -> bool:
        """As transformers 5.24's DefaultFlowCallback decides after the step."""
        args, state = self.trainer.args, self.trainer.state
        step = state.global_step + 1
        if step == 1 and args.logging_first_step:
            return True
        if args.logging_strategy == "steps":
            return step % state.logging_steps == 0
        last = self.trainer.accelerator.gradient_state.end_of_dataloader
        return args.logging_strategy == "epoch" and last

    @torch.no_grad()
    def _measure(self, scale: float) -> dict[str, Tensor]:
        """Tensors that stay on their device: nothing waits for them before the log does."""
        pull, start = self.trainer.pull, self.trainer.starting_point
        task, pulled, along, grads, drift = (_Sum() for _ in range(5))
        for name, theta in pull.theta.items():
            if theta.grad is None:
                continue
            g = theta.grad
            if pull.pulls(name):
                task.square(g), pulled.square(self._pull(name, theta))
            if name in start.copies:
                rows = slice(start.rows.get(name)) if theta.ndim else ...
                d, g = theta[rows] - start.anchor(name, theta)[rows], g[rows]
                grads.square(g), drift.square(d), along.product(g, d)
        found = {}
        if pulled.any:
            found["pull_to_gradient"] = scale * (pulled.total / task.total).sqrt()
        if drift.any and (pulled.any or pull.function_priors or pull.step_rules):
            found["gradient_drift_cosine"] = along.total / (grads.total * drift.total).sqrt()
        return found

    def _pull(self, name: str, theta: Tensor) -> Tensor:
        """∂Ω/∂θ_n of all weight priors, as training adds it."""
        pull, alone = self.trainer.pull, theta.detach().requires_grad_()
        alone.grad = torch.zeros_like(alone)
        for prior in pull.weight_priors:
            joined = prior.joined(name, pull.start) - {name}
            others = {n: p.detach() for n, p in pull.theta.items() if n in joined} if joined else {}
            prior.add_gradient_({**others, name: alone}, pull.start, 1.0, pull.progress())
        return alone.grad


class _Sum:
    """A sum over parameters in float64, on their device."""

    def __init__(self):
        self.total: Tensor | float = 0.0

    @property
    def any(self) -> bool:
        return torch.is_tensor(self.total)

    def square(self, tensor: Tensor) -> None:
        """Add ‖tensor‖²."""
        self.total = self.total + torch.linalg.vector_norm(tensor.float()).double().square()

    def product(self, a: Tensor, b: Tensor) -> None:
        """Add ⟨a, b⟩."""
        self.total = self.total + (a.float() * b.float()).sum(dtype=torch.float64)
