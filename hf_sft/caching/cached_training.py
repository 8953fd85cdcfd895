"""CachedTraining: a Trainer that begins every forward pass where the frozen layers end."""

import logging
from pathlib import Path
from typing import Any

from hf_sft.caching.feature_cache import FeatureCache
from hf_sft.caching.kept_rows import KeptRows
from hf_sft.caching.phase import Phase, refuse_unfit
from hf_sft.caching.prefix import Prefix
from hf_sft.caching.replay import FEATURES, ROWS
from hf_sft.caching.seam import NoCache
from hf_sft.training.completed import chosen
from hf_sft.training.loss_scale import undisturbed

log = logging.getLogger(__name__)


class CachedTraining:
    """For a Trainer class with a plan: ``cache`` computes the frozen prefix once per row.

    While nothing below the seam trains, batches bring stored features with them and the model goes
    on from there, in training and in the evaluations within it. As soon as the plan opens a layer
    below, batches are whole again. Where it cannot be right, or does not pay, a warning says why.
    """

    def __init__(self, *args: Any, cache: FeatureCache | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.cache = cache
        self.prefix: Prefix | None = None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any):
        """As Trainer's."""
        checkpoint = chosen(resume_from_checkpoint, self.args.output_dir)
        self.prefix = self._built(checkpoint)
        if self.prefix is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        try:
            with self.prefix.replay.following():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.prefix.end()
            self.prefix = None

    def _built(self, checkpoint: Path | None) -> Prefix | None:
        if self.cache is None:
            return None
        try:
            prefix = self.planned_cache(checkpoint)
            log.info("Feature cache %s.", prefix)
            with undisturbed(self.model):
                prefix.build()
            prefix.light.begin()
            return prefix
        except (NoCache, OSError) as reason:
            log.warning("No feature cache: %s. Training goes on without.", reason)
            return None

    def cache_outlook(self) -> str:
        """What will be kept, how much it is and whether it is there; or why nothing will be."""
        try:
            prefix = self.planned_cache()
            prefix.refuse_useless()
        except NoCache as reason:
            return f"none: {reason}"
        return f"{prefix}, {'to be made' if prefix.missing else 'there already'}"

    def planned_cache(self, checkpoint: Path | None = None) -> Prefix:
        """What `train` would keep, from a checkpoint on or from the start.

        Raises:
            NoCache: nothing, and why.
        """
        refuse_unfit(self)
        with undisturbed(self.model):
            return Prefix(self, self.cache, Phase(self, checkpoint))

    def _kept(self, rows: Any) -> KeptRows | None:
        kept = self.prefix.sets.get(id(rows)) if self.prefix is not None else None
        return kept if kept is not None and (kept.keeps or rows is self.train_dataset) else None

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any):
        """As Trainer's (private in 5.24); over row numbers where features are kept."""
        kept = self._kept(dataset)
        if kept is None:
            return super()._get_dataloader(dataset, *args, **kwargs)
        sampler = kwargs.pop("sampler_fn", None)
        given = self.data_collator
        self.data_collator = kept
        try:
            fitting = None if sampler is None else lambda numbers: sampler(dataset)
            numbers = range(len(kept))
            return super()._get_dataloader(numbers, *args, sampler_fn=fitting, **kwargs)
        finally:
            self.data_collator = given

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any):
        """As Trainer's; once the plan has opened the prefix, batches are made whole."""
        if self.prefix is not None:
            self.prefix.look()
            kept = self.prefix.sets[id(self.train_dataset)]
            if FEATURES in inputs and not kept.keeps:  # fetched before the plan changed
                inputs = self._prepare_inputs(kept.now(inputs[ROWS].tolist()))
        return super().training_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """As Trainer's, skipped layers included; the parameters are counted once."""
        if not self._light:
            return super().floating_point_ops(inputs)
        main = inputs.get(self.prefix.main)
        return 0 if main is None else 6 * main.numel() * self.prefix.light.counted

    def _clip_grad_norm(self, model: Any) -> Any:
        """As Trainer's (private in 5.24), over what may have a gradient."""
        if not self._light:
            return super()._clip_grad_norm(model)
        parameters = self.prefix.light.parameters
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    @property
    def _light(self) -> bool:
        return self.prefix is not None and self.prefix.light.on
