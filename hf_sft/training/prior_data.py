"""What weight priors may find out of the source and the data before the first step."""

import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast
from torch import Tensor, nn

from hf_sft.errors import RecipeError, UserError, listing
from hf_sft.penalties import WeightPrior
from hf_sft.penalties.answers import without_labels
from hf_sft.starting_point import StartingPoint
from hf_sft.training.fisher import Estimator, diagonal_fisher, log_probabilities
from hf_sft.training.fisher_cache import cached
from hf_sft.training.loss_scale import collator, undisturbed
from hf_sft.training.source_function import keys

log = logging.getLogger(__name__)
MOST_CLASSES = 32  # up to which every label is summed over where nobody says how


def prepare(trainer: Any) -> None:
    """Let every weight prior find out what it needs; at θ⁰, whatever the weights are now.

    Raises:
        RecipeError: two priors want a metric, and θ⁰ has room for one.
    """
    priors = trainer.pull.weight_priors
    measured = [p.type for p in priors if type(p).metric is not WeightPrior.metric]
    if len(measured) > 1:
        raise RecipeError(
            f"penalty: {' and '.join(measured)} both weigh single entries; keep one, and give "
            "parts of the model a strength of their own with its rules."
        )
    for prior in priors:
        prior.prepare(trainer.model, trainer.starting_point, PriorData(trainer))


class PriorData:
    """The train set of one trainer and its source's function, as a weight prior may use them."""

    def __init__(self, trainer: Any):
        self.trainer, self.start = trainer, trainer.starting_point
        own = trainer.source is not None and trainer.source is not trainer.model
        self.source = trainer.source if own else None

    def fisher(self, estimator: Estimator | None, samples: int, seed: int) -> dict[str, Tensor]:
        """Diagonal Fisher information at θ⁰ of every parameter with a copy, by `diagonal_fisher`.

        Over ``samples`` random examples of the train set, through the source's own head where it
        has one. Kept on disk; every process has the numbers of the first.

        Args:
            estimator: None takes true up to 32 classes, sampled above, label-free without a head.
        """
        trainer = self.trainer
        model = trainer.model if self.source is None else self.source
        home = next(model.parameters()).device
        at = self._at_source(model.to(trainer.args.device))
        with undisturbed(model), trainer.accelerator.local_main_process_first():
            model.eval()
            chosen = self._estimator(model, estimator, seed)
            identity = self._identity(model, at, chosen, samples, seed)

            def compute() -> dict[str, Tensor]:
                log.info("Fisher information (%s) over %d examples.", chosen, samples)
                return diagonal_fisher(model, self.examples(samples, seed), at, chosen, seed)

            found = cached(identity, compute, trainer.accelerator.is_local_main_process)
        found = {name: found[name].to(tensor.device) for name, tensor in at.items()}
        model.to(home)
        return broadcast(found) if trainer.args.world_size > 1 else found

    def examples(self, samples: int, seed: int) -> Iterator[dict[str, Any]]:
        """Batches of one example each, on the device: the same at every call with a seed."""
        rows = self.trainer.train_dataset
        if rows is None:
            raise UserError("penalty: fisher-sp looks at training data: give a train_dataset.")
        transformers.set_seed(seed)  # of augmentations; the caller puts the random state back
        if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(rows), generator=generator)[:samples].tolist()
            drawn = (rows[i] for i in order)
        else:
            drawn = islice(iter(rows), samples)
        collate = collator(self.trainer)
        for row in drawn:
            yield self.trainer._prepare_inputs(collate([row]))

    def _at_source(self, model: nn.Module) -> dict[str, Tensor]:
        """θ⁰ of what is asked for, by the names of ``model``."""
        names, known = list(self.start.copies), dict(model.named_parameters())
        if model is not self.trainer.model:
            if lost := [name for name in names if name not in known]:
                raise UserError(
                    f"penalty: fisher-sp: the source given has no parameter {listing(lost)}."
                )
            return {name: known[name] for name in names}
        rest = [name for name in self.start.digests if name not in self.start.copies]
        if moved := self.start.changed(model, rest):
            raise UserError(
                f"penalty: fisher-sp looks at the source, and {listing(moved)} moved since the "
                "trainer was built. Build the trainer right after loading the model."
            )
        return {name: self.start.anchor(name, known[name]) for name in names}

    def _estimator(self, model: nn.Module, asked: Estimator | None, seed: int) -> Estimator:
        """How to estimate, where nobody said so."""
        headless = self.source is None and bool(self.start.fresh)
        if headless and asked in ("true", "sampled"):
            raise UserError(
                f"penalty.estimator: {asked} asks the source for its own labels, and this source "
                "came without a head for them (the new one knows nothing). Take label-free."
            )
        if asked is not None or headless:
            return asked or "label-free"
        first = without_labels(next(iter(self.examples(1, seed))), model)
        try:
            with torch.no_grad():
                positions, classes = log_probabilities(model, model(**first)).shape
        except UserError:
            return "label-free"
        return "true" if positions == 1 and classes <= MOST_CLASSES else "sampled"

    def _identity(
        self, model: nn.Module, at: dict[str, Tensor], estimator: str, samples: int, seed: int
    ) -> dict[str, Any]:
        """Everything F depends on."""
        own = model is self.trainer.model
        start = self.start if own else StartingPoint.of(model, fresh=(), trains=())
        content = hashlib.sha256()
        for batch in self.examples(samples, seed):
            content.update(b"".join(keys(batch)))
        return {
            "source": start.fingerprint,
            "model": type(model).__name__,
            "names": hashlib.sha256("\n".join(sorted(at)).encode()).hexdigest(),
            "estimator": estimator,
            "samples": samples,
            "seed": seed,
            "data": content.hexdigest(),
            "device": self.trainer.args.device.type,
            "versions": [1, torch.__version__, transformers.__version__],
        }
