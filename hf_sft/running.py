"""run(recipe) -> Report: data, model, encode, groups, starting point, trainer, train, publish."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from datasets import DatasetDict
from transformers import TrainingArguments

from hf_sft import model_folder, output_folder, plan, unlost
from hf_sft.adapter import adapted, merged, save_adapters
from hf_sft.anchor import at_anchor, begin_elsewhere_, load_anchor
from hf_sft.averages import take_average_
from hf_sft.data_identity import data_identity
from hf_sft.errors import DataError, RecipeError, UserError, listing
from hf_sft.freezing import Signals
from hf_sft.loaders.splits import split
from hf_sft.models import LoadedModel, load_model
from hf_sft.on_disk import on_disk
from hf_sft.penalties import FunctionPrior
from hf_sft.processes import refuse_sharded, warn_if_fewer
from hf_sft.publishing import publish, push_when_asked, refuse_hopeless
from hf_sft.recipe import Recipe
from hf_sft.reporting.measured import Report, measured
from hf_sft.reporting.source_probe import SourceProbe
from hf_sft.tasks import cut_texts
from hf_sft.training.rehearsal import rehearse
from hf_sft.training.run_record import refuse_other_source
from hf_sft.training.trainer import Seq2SeqTransferTrainer, TransferTrainer
from hf_sft.training_arguments import training_arguments


@dataclass(frozen=True)
class Prepared:
    """Everything a run is made of, before its first step."""

    data: DatasetDict
    encoded: DatasetDict
    names: list[str]
    loaded: LoadedModel
    trainer: TransferTrainer
    probe: SourceProbe | None = None
    anchor: str | None = None  # the name of θ⁰'s source where it is not where training starts
    cut_texts: dict[str, list[dict]] = field(default_factory=dict)  # per split, see `cut_texts`

    def rehearse(self, recipe: Recipe) -> None:
        """Build and try everything that training will need; two rows pass the model.

        Raises:
            RecipeError: Trainer, the model or a collator does not take what the recipe says.
        """
        try:
            rehearse(self.trainer)
        except UserError:
            raise
        except Exception as error:  # whatever an optimizer, a sampler or a model says of settings
            reason = str(error).strip() or type(error).__name__
            raise RecipeError(
                f"{recipe.path.name}: training cannot start: {type(error).__name__}: {reason}"
            ) from error

    def plan(self) -> str:
        """What is about to happen, as a table."""
        source = self.loaded.source
        sizes = {name: len(rows) for name, rows in self.data.items()}
        named = source.told + (f", anchored to {self.anchor}" if self.anchor else "")
        return plan.table(self.trainer, named, sizes)


def run(
    recipe: Recipe, overwrite: bool = False, then: Callable[[Report], None] | None = None
) -> Report:
    """Train as the recipe says and leave model, report and card in its output folder.

    An unfinished run of the same recipe there goes on from its newest whole checkpoint. Pushed, if
    that is asked for, is what is finished; ``then`` sees the report before.

    Raises:
        UserError: anything the user can put right; nothing has been written then.
        PushError: the Hub did not take it; everything has been written.
    """
    with output_folder.nothing_left(recipe.output_dir):
        report = _run(recipe, overwrite)
    if then is not None:
        then(report)
    push_when_asked(recipe)
    return report


def _run(recipe: Recipe, overwrite: bool) -> Report:
    started = time.perf_counter()
    resume = output_folder.claim(recipe, overwrite)
    args = training_arguments(recipe)
    warn_if_fewer(args.world_size)
    prepared = prepare(recipe, args)
    if args.process_index == 0:
        print(prepared.plan())  # noqa: T201
    identity = data_identity(prepared.data)
    if resume is not None:
        output_folder.refuse_other_data(recipe, identity)
        refuse_other_source(Path(resume), prepared.trainer.starting_point.fingerprint)
    prepared.rehearse(recipe)
    refuse_hopeless(recipe, prepared)
    output_folder.record(recipe, args, overwrite, identity)
    unlost.train(prepared.trainer, resume)
    take_average_(prepared.trainer)
    with unlost.written(recipe.output_dir):
        keep_model(recipe, prepared)  # before anything is measured: the training is not lost then
        report = measured(recipe, prepared, started)
        publish(recipe, prepared, report)
    return report


def prepare(recipe: Recipe, args: TrainingArguments, before: Prepared | None = None) -> Prepared:
    """Steps 1 to 6: everything is checked, nothing is trained or written.

    ``before``: the same task and data, prepared for another training; they are not read again.
    """
    task = recipe.task
    data = _checked_data(recipe) if before is None else before.data
    names = task.names(data)
    transformers.set_seed(args.seed)  # the new head is drawn here
    loaded = load_model(recipe.model, task, names, recipe.locate)
    anchor = load_anchor(recipe.model, task, names, recipe.locate, loaded, recipe.penalty)
    encoded, cut = (before.encoded, before.cut_texts) if before else _encoded(recipe, data, loaded)
    with at_anchor(anchor, loaded) as loaded:
        trainer = build_trainer(recipe, args, data, encoded, adapted(recipe, loaded))
    begin_elsewhere_(trainer.starting_point, anchor, loaded.model)
    probe = SourceProbe.of(recipe, loaded)
    anchored = anchor and anchor.source.name
    return Prepared(data, encoded, names, loaded, trainer, probe, anchored, cut)


def _checked_data(recipe: Recipe) -> DatasetDict:
    try:
        return load_data(recipe)
    except UserError as error:
        raise DataError("\n".join([str(error), *_more_problems(recipe)])) from error


def _encoded(recipe: Recipe, data: DatasetDict, loaded: LoadedModel) -> tuple[DatasetDict, dict]:
    """What the model takes of every split, and which texts were cut for that."""
    encoded, cut = DatasetDict(), {}
    for name, rows in data.items():
        with cut_texts.collected() as cut[name]:
            encoded[name] = recipe.task.encode(rows, loaded.processor, loaded.model.config)
    for held in encoded.keys() - {"train"}:
        encoded[held] = recipe.task.held_still(encoded[held], loaded.processor)
    return encoded, cut


def _more_problems(recipe: Recipe) -> list[str]:
    """What else would be wrong once the data are right: the source, and the policy on it."""
    try:
        loaded = load_model(recipe.model, recipe.task, ["a", "b"], recipe.locate)
        recipe.freeze.plan(loaded.groups, 0.0, Signals())
    except UserError as error:
        return [str(error)]
    return []


def load_data(recipe: Recipe) -> DatasetDict:
    """Raw splits with checked columns and encoded labels, carved and capped."""
    checked = recipe.task.check(recipe.data.load(recipe.locate), recipe.data.keep_labels)
    return on_disk(split(checked, recipe.data, recipe.task.stratum, recipe.selects))


def build_trainer(
    recipe: Recipe,
    args: TrainingArguments,
    data: DatasetDict,
    encoded: DatasetDict,
    loaded: LoadedModel,
) -> TransferTrainer:
    """The trainer with the recipe's penalty and policy; metrics stream."""
    watched = next((split for split in ("validation", "test") if split in data), "train")
    task, processor = recipe.task, loaded.processor
    timm = loaded.model.config.model_type == "timm_wrapper"
    trainer = _trainer(
        recipe,
        model=loaded.model,
        args=args,
        train_dataset=task.for_training(encoded["train"], processor),
        eval_dataset=None if args.eval_strategy == "no" else encoded[watched],
        # timm keeps its preprocessing in config.json; saving its processor would only warn.
        processing_class=None if timm else processor,
        data_collator=task.collator(processor),
        compute_metrics=task.metrics(task.names(data), processor, data[watched]),
        compute_loss_func=task.training_loss(data["train"], args.label_smoothing_factor),
        preprocess_logits_for_metrics=task.summarizer(processor),
        penalty=recipe.penalty,
        freeze=recipe.freeze,
        learning_rates=recipe.learning_rates,
        cache=recipe.cache,
        nonfinite=recipe.nonfinite,
        source=source_model(recipe, loaded),
        rows=loaded.rows,
        fresh=loaded.fresh,
        layer_groups=loaded.groups,
    )
    for callback in recipe.callbacks():
        trainer.add_callback(callback)
    return trainer


def source_model(recipe: Recipe, loaded: LoadedModel) -> Any:
    """The source with its own head, where a penalty on its function will ask for it."""
    wants = [p for p in recipe.penalty if isinstance(p, FunctionPrior) and p.source]
    if loaded.inside is not None:
        refuse_answers(wants)
    if not wants or loaded.inside is not None:
        return None
    original, has_head = loaded.original()
    return original if has_head else None


def refuse_answers(priors: list[FunctionPrior]) -> None:
    """What is new around a backbone has no answers and no embeddings that could be held.

    Raises:
        RecipeError: one of the penalties would hold them.
    """
    if wrong := [p.type for p in priors if p.needs & {"logits", "embeddings"}]:
        raise RecipeError(
            f"penalty: {listing(wrong)} holds answers or embeddings of the whole source, which "
            "here is a backbone only (model.backbone_of). Take a penalty on weights, such as "
            "l2-sp, or delta, which holds maps inside of it."
        )


def _trainer(recipe: Recipe, **settings: Any) -> TransferTrainer:
    """TransferTrainer; what Trainer refuses of the ``training`` block is the recipe's mistake."""
    try:
        trainer = (Seq2SeqTransferTrainer if recipe.task.writes else TransferTrainer)(**settings)
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # OSError: its folder
        raise RecipeError(f"{recipe.path.name}: training: {error}") from error
    refuse_sharded(trainer)
    return trainer


def keep_model(recipe: Recipe, prepared: Prepared) -> None:
    """Save the trained model and its processor; adapters beside it, where there are any."""
    if prepared.trainer.is_world_process_zero():
        folder, model = recipe.output_dir / output_folder.MODEL, prepared.trainer.model
        model_folder.save(merged(model), prepared.loaded.processor, folder)
        save_adapters(model, recipe.output_dir / output_folder.ADAPTER)
