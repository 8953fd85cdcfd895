"""masked-image-modeling: what is hidden, errors, whole runs, and fine-tuning what was adapted."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
import torch
import yaml
from datasets import Dataset, DatasetDict
from PIL import Image
from test_resume import StopAt
from tiny_run import picture
from transformers import (
    AutoConfig,
    DeiTConfig,
    DeiTForMaskedImageModeling,
    FocalNetConfig,
    FocalNetForMaskedImageModeling,
    SwinConfig,
    SwinForMaskedImageModeling,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hf_sft import running
from hf_sft.cli import main
from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.models import ModelSource, load_model
from hf_sft.recipe import Recipe
from hf_sft.tasks import ImageClassification, MaskedImageModeling
from hf_sft.tasks.image_masks import Grid, grid_of
from hf_sft.tasks.reconstruction import patches, reconstruct, whole
from hf_sft.training_arguments import training_arguments

datasets.disable_progress_bars()
RECIPES = Path(__file__).parent.parent / "recipes" / "masked-image-modeling"
SIDE = 16
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
       "image_size": SIDE, "patch_size": 4}  # fmt: skip
STAGES = {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}
DECODER = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 8,
           "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 16}  # fmt: skip
FOCAL = {"focal_levels": [1, 1], "focal_windows": [3, 3]}
SOURCES = {
    "vit": lambda: ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=4)),
    "deit": lambda: DeiTForMaskedImageModeling(DeiTConfig(**VIT, encoder_stride=4)),
    "swin": lambda: SwinForMaskedImageModeling(
        SwinConfig(**STAGES, num_heads=[1, 2], window_size=2, encoder_stride=4)
    ),
    "focalnet": lambda: FocalNetForMaskedImageModeling(
        FocalNetConfig(**STAGES, **FOCAL, encoder_stride=4)
    ),
    "mae": lambda: ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER)),
    "classifier": lambda: ViTForImageClassification(ViTConfig(**VIT)),
}


def source(folder, kind):
    torch.manual_seed(0)
    SOURCES[kind]().save_pretrained(folder / kind)
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {kind: source(folder, kind) for kind in SOURCES}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Waves of two directions, a folder each."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in ("across", "down"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                at = np.mgrid[:20, :20][int(label == "down")] / 2 + draw.uniform(0, 6)
                grey = (127 + 100 * np.sin(at))[..., None].repeat(3, 2).astype("uint8")
                Image.fromarray(grey).save(folder / split / label / f"{number}.png")
    return folder


def recipe(folder, source, images, task=(), overrides=(), **blocks):
    training = {"output_dir": str(folder / "out"), "num_train_epochs": 2, "use_cpu": True,
                "learning_rate": 0.01, "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip
    whole_recipe = {
        "task": {"type": "masked-image-modeling", **dict(task)},
        "data": {"type": "image-folder", "path": str(images), "labelled": False},
        "model": {"name": str(source)},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        **blocks,
        "training": training | blocks.get("training", {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole_recipe), "utf-8")
    return path


def method(kind):
    return {"method": "mae"} if kind == "mae" else {}


def report(folder):
    return json.loads((folder / "out" / "report.json").read_text("utf-8"))


# ---- what is hidden ----


def test_squares_are_whole_and_as_many_as_asked_for():
    grid = Grid(side=12, block=3, ratio=0.6)
    for draw in range(5):
        squares = grid.hidden(draw).view(4, 3, 4, 3).transpose(1, 2).reshape(16, 9)
        assert bool((squares.all(1) | ~squares.any(1)).all())
        assert int(squares.all(1).sum()) == 10  # ⌈0.6 · 16⌉
    assert torch.equal(grid.hidden(3), grid.hidden(3))
    assert not torch.equal(grid.hidden(3), grid.hidden(4))
    assert int(Grid(2, 1, 0.99).hidden(0).sum()) == 3  # one stays to be seen


def test_the_square_is_simmims_where_it_fits():
    def side(image, patch, size=None):
        return grid_of(ViTConfig(image_size=image, patch_size=patch), size, 0.5).block

    assert side(192, 16) == 2  # 32 pixels
    assert side(28, 4) == 1
    assert side(28, 7, 14) == 2
    with pytest.raises(RecipeError, match="task.mask_size: squares of 6 pixels.*Choices: 4, 8"):
        side(16, 4, 6)


# ---- errors ----


def test_the_error_is_the_models_own_loss_and_patches_come_back_whole():
    pixels, hidden = torch.randn(3, 3, SIDE, SIDE), torch.rand(3, 16) < 0.5
    assert torch.equal(whole(patches(pixels, 16), 3), pixels)
    model = SOURCES["vit"]().eval()
    for at in range(3):
        one = {"pixel_values": pixels[at : at + 1], "bool_masked_pos": hidden[at : at + 1]}
        out = model(**one)
        found = reconstruct(*one.values(), out.reconstruction, "simmim", False)
        assert float(found.errors[0, 0]) == pytest.approx(float(out.loss), rel=1e-4)


@pytest.mark.parametrize("normalized", [False, True])
def test_maes_error_is_its_own_loss(normalized):
    model = ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER, norm_pix_loss=normalized)).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    out = model(pixels, noise=torch.rand(2, 16))
    assert torch.equal(patches(pixels, 16), model.patchify(pixels))
    found = reconstruct(pixels, out.mask, out.logits, "mae", normalized)
    assert float(found.errors[:, 0].mean()) == pytest.approx(float(out.loss), rel=1e-4)
    perfect = patches(pixels, 16)
    if normalized:
        perfect = (perfect - perfect.mean(-1, True)) / (perfect.var(-1, keepdim=True) + 1e-6).sqrt()
    best = reconstruct(pixels, out.mask, perfect, "mae", normalized)
    assert torch.allclose(best.found, pixels, atol=1e-4)
    assert float(best.errors[:, 0].max()) == 0
    assert bool((best.errors[:, 1] > 0.5).all())


def test_the_guess_is_the_mean_colour_of_what_is_seen():
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[..., 2:] = 1.0
    hidden = torch.tensor([[False, True, False, False]])  # the upper right patch, all ones
    found = reconstruct(pixels, hidden, torch.zeros_like(pixels), "simmim", False)
    assert found.errors[0].tolist() == pytest.approx([1.0, 1 - 1 / 3])  # 4 of 12 seen are ones


# ---- whole runs ----


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_model_trains_and_its_numbers_repeat(kind, sources, images, tmp_path, capsys):
    task = {**method(kind), "augment": "basic"} if kind == "vit" else method(kind)
    assert main(["run", str(recipe(tmp_path, sources[kind], images, task))]) == 0
    found = report(tmp_path)
    scores = found["metrics"]["test"]
    assert scores["reconstruction_error"] == pytest.approx(scores["loss"], rel=1e-4)
    assert found["retention"]["by"] == "pairwise similarity"
    assert len(found["pictures"]["test"]["reconstructions"]) == 6
    assert "data:image/jpeg" in (tmp_path / "out" / "report.html").read_text("utf-8")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert f"{scores['reconstruction_error']:.4f}" in capsys.readouterr().out
    auto = "AutoModelForPreTraining" if kind == "mae" else "AutoModelForMaskedImageModeling"
    assert auto in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def adapted(sources, images, tmp_path_factory):
    """Runs that have adapted a ViT and a ViTMAE."""
    found = {}
    for kind in ("vit", "mae"):
        folder = tmp_path_factory.mktemp(kind)
        assert main(["run", str(recipe(folder, sources[kind], images, method(kind)))]) == 0
        found[kind] = folder / "out"
    return found


@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_predict_gives_errors_and_pictures(kind, adapted, images, tmp_path, capsys):
    given, place = images / "test", tmp_path / "pictures"
    capsys.readouterr()
    assert main(["predict", str(adapted[kind]), str(given), "--batch-size", "3"]) == 0
    records = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    errors = [float(record["reconstruction_error"]) for record in records]
    scores = json.loads((adapted[kind] / "report.json").read_text("utf-8"))["metrics"]["test"]
    assert np.mean(errors) == pytest.approx(scores["reconstruction_error"], rel=1e-4)
    assert main(["predict", str(adapted[kind]), str(given), "--output", str(place)]) == 0
    with (place / "predictions.csv").open() as file:
        drawn = list(csv.DictReader(file))
    assert len(drawn) == len(errors) == 8
    with Image.open(place / drawn[0]["picture"]) as strip:
        assert strip.width == 3 * strip.height


METHODS = {
    "train-last": {"freeze": {"type": "train-last", "count": 1}},
    "lp-ft": {"freeze": {"type": "lp-ft"}},
    "similarity": {"penalty": {"type": "similarity"}},
}


@pytest.mark.parametrize("kind", ["vit", "mae"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_work(kind, name, sources, images, tmp_path):
    path = recipe(tmp_path, sources[kind], images, method(kind), **METHODS[name])
    assert main(["run", str(path)]) == 0
    found = report(tmp_path)
    assert found["freeze"]["verified_unchanged"]
    assert np.isfinite(found["metrics"]["test"]["loss"])


def test_the_sinusoidal_tables_of_mae_never_move(sources, images, tmp_path):
    path = Recipe.load(recipe(tmp_path, sources["mae"], images, {"method": "mae"}))
    prepared = running.prepare(path, training_arguments(path))
    tables = {n: p for n, p in prepared.trainer.model.named_parameters() if "pos" in n}
    assert set(tables) == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    before = {name: table.clone() for name, table in tables.items()}
    for table in before.values():  # empty in the source, which was built from a configuration
        made = build_2d_sinusoidal_position_embedding(4, 4, table.shape[2], cls_token=True)
        first, second = made.chunk(2, 1)
        assert torch.equal(table[0], torch.cat([second, first], 1))
    prepared.trainer.train()
    assert all(torch.equal(before[name], tables[name]) for name in tables)
    assert not any(table.requires_grad for table in tables.values())


# ---- the same draws ----


def trainer(path, stop=None, **training):
    loaded = Recipe.load(path, [f"training.{key}={value}" for key, value in training.items()])
    found = running.prepare(loaded, training_arguments(loaded)).trainer
    if stop:
        found.add_callback(StopAt(stop))
    return found


@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_a_resumed_run_is_the_uninterrupted_one(kind, sources, images, tmp_path):
    """4 steps, cut inside the first epoch and between both."""
    task = {**method(kind), "augment": "basic"}
    path = recipe(tmp_path, sources[kind], images, task)
    uncut = trainer(path)
    uncut.train()
    for step in (1, 2, 3):
        place = {"output_dir": tmp_path / f"cut{step}"}
        trainer(path, stop=step, **place).train()
        torch.manual_seed(step)
        resumed = trainer(path, **place)
        resumed.train(resume_from_checkpoint=True)
        assert tiny.different(tiny.weights(uncut.model), tiny.weights(resumed.model)) == [], step


@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_a_step_is_the_same_for_any_accumulation(kind, sources, images, tmp_path):
    found = []
    for size in (8, 4, 2):
        found.append(trainer(
            recipe(tmp_path, sources[kind], images, method(kind)), optim="sgd", learning_rate=1e-3,
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size,
        ))  # fmt: skip
        found[-1].train()
    for cut in found[1:]:
        assert tiny.distance(tiny.weights(found[0].model), tiny.weights(cut.model)) <= 1e-6


def test_masks_of_training_differ_between_epochs_and_evaluated_ones_do_not(
    sources, images, tmp_path
):
    found = trainer(recipe(tmp_path, sources["vit"], images))
    rows, collate = found.train_dataset, found.data_collator

    def hidden(rows):
        return collate([rows[at] for at in range(4)])["bool_masked_pos"]

    first = hidden(rows)
    assert torch.equal(first, hidden(rows))
    rows.draws.begin(0, 1)
    assert not torch.equal(first, hidden(rows))
    assert torch.equal(hidden(rows.rows), hidden(rows.rows))
    assert len({tuple(mask.tolist()) for mask in hidden(rows.rows)}) > 1  # the row's own


# ---- fine-tuning what was adapted ----


def classify(folder, name, images, **model):
    return recipe(
        folder, name, images, {"type": "image-classification"},
        data={"type": "image-folder", "path": str(images)}, model={"name": str(name), **model},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["vit", "mae"])
@pytest.mark.parametrize("anchored", [False, True], ids=["to-adapted", "to-original"])
def test_adapt_first_then_fine_tune_pulled_to_either(
    kind, anchored, adapted, sources, images, tmp_path
):
    """The decoder and the mask token stay behind, without a word of the recipe."""
    model = {"anchor": str(sources[kind])} if anchored else {}
    assert main(["run", str(classify(tmp_path, adapted[kind] / "model", images, **model))]) == 0
    found = report(tmp_path)
    assert found["source"]["anchor"] == (sources[kind].name if anchored else None)
    assert all(group["drift"] for group in found["groups"] if group["name"] != "head")
    assert any("decoder" in name for name in found["source"]["left_over"])
    saved = AutoConfig.from_pretrained(tmp_path / "out" / "model")
    assert saved.model_type == "vit"
    original = max(g["relative_drift"] for g in found["groups"] if g["name"] != "head")
    assert original > 0.01 if anchored else original > 0


def test_the_anchor_is_where_the_adaptation_began(adapted, sources, images, tmp_path):
    """At λ so large that nothing but the pull counts, training leads back to the original."""
    name = adapted["vit"] / "model"
    path = classify(tmp_path, name, images, anchor=str(sources["vit"]))
    strong = ["penalty.lambda=10", "training.num_train_epochs=30", "training.max_grad_norm=0"]
    sgd = ["training.optim=sgd", "training.learning_rate=0.02"]
    assert main(["run", str(path), *strong, *sgd]) == 0
    back = max(g["relative_drift"] for g in report(tmp_path)["groups"] if g["name"] != "head")
    assert back < 0.01


def test_encoders_of_mae_are_the_same_function_as_a_plain_vit(sources):
    """Seen whole: mask_ratio 0 and no shuffling."""
    model = ModelSource(name=str(sources["mae"]))
    loaded = load_model(model, ImageClassification(), ["a", "b"], lambda name: sources["mae"])
    mae = ViTMAEForPreTraining.from_pretrained(sources["mae"], mask_ratio=0.0)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        ordered = torch.arange(16.0).expand(2, 16)
        theirs = mae.vit.eval()(pixels, noise=ordered).last_hidden_state
        ours = loaded.model.vit.eval()(pixels).last_hidden_state
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}


def test_a_classifier_gets_a_decoder_and_a_mask_token(sources):
    place = sources["classifier"]
    loaded = load_model(ModelSource(name=str(place)), MaskedImageModeling(), [], lambda name: place)
    assert loaded.fresh == {"decoder.0.weight", "decoder.0.bias", "vit.embeddings.mask_token"}
    assert loaded.model.config.encoder_stride == 4
    assert loaded.processor.size["height"] == SIDE


# ---- bad data and settings ----


def test_models_of_the_other_method_are_refused_with_the_remedy(sources, images, tmp_path, capsys):
    assert main(["check", str(recipe(tmp_path, sources["mae"], images))]) == 2
    assert "Set task.method: mae" in capsys.readouterr().err
    assert main(["check", str(recipe(tmp_path, sources["vit"], images, {"method": "mae"}))]) == 2
    assert "Set task.method: simmim" in capsys.readouterr().err
    with pytest.raises(SourceError, match="a bert model .* Name a model of one of these types"):
        MaskedImageModeling().auto_model(AutoConfig.for_model("bert"))


def test_bad_images_and_columns_are_told(tmp_path):
    good = picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    task, rows = MaskedImageModeling(), Dataset.from_dict(
        {"image": [str(good), str(tmp_path / "bad.png"), None]}
    )  # fmt: skip
    with pytest.raises(DataError) as told:
        task.check(DatasetDict(train=rows))
    assert "data.train row 2: " in str(told.value)
    assert "data.train row 3: there is no image" in str(told.value)
    with pytest.raises(DataError, match="Did you mean 'img'"):
        MaskedImageModeling(image="imgs").check(
            DatasetDict(train=Dataset.from_dict({"img": ["a"]}))
        )
    with pytest.raises(DataError, match="holds no images but"):
        task.check(DatasetDict(train=Dataset.from_dict({"image": [1, 2]})))
    with pytest.raises(DataError, match="no classes"):
        task.check(DatasetDict(train=rows), ["cat"])


def test_settings_that_mean_nothing_are_told(images):
    rows = DatasetDict(train=Dataset.from_dict({"image": [str(images / "test/down/0.png")]}))
    with pytest.raises(DataError, match="mask_size: mae hides single patches"):
        MaskedImageModeling(method="mae", mask_size=8).check(rows)
    with pytest.raises(DataError, match="normalized: only mae"):
        MaskedImageModeling(normalized=True).check(rows)
    with pytest.raises(RecipeError, match="label_smoothing_factor"):
        MaskedImageModeling().training_loss(rows["train"], 0.1)


def test_a_folder_without_images_is_refused(sources, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["check", str(recipe(tmp_path, sources["vit"], tmp_path / "empty"))]) == 2
    assert "holds no images" in capsys.readouterr().err


# ---- recipes that come along ----


def hub_folder(folder, images, **labels):
    """Rows of the Hub's schema as parquet, whose columns beside the image are left alone."""
    for split in ("train", "test"):
        files = sorted(images.glob(f"{split}/*/*.png"))
        columns = {"image": [str(file) for file in files]}
        columns |= {name: [value] * len(files) for name, value in labels.items()}
        rows = Dataset.from_dict(columns).cast_column("image", datasets.Image())
        folder.mkdir(exist_ok=True)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(("name", "kind", "labels"), [
    ("pets_swin_simmim", "swin", {"label": 1, "image_id": "a", "label_cat_dog": 0}),
    ("food101_vit_mae", "mae", {"label": 1}),
], ids=["pets", "food101"])  # fmt: skip
def test_recipes_for_the_hub_load_rows_of_that_schema(
    name, kind, labels, sources, images, tmp_path
):
    place = hub_folder(tmp_path / "rows", images, **labels)
    settings = [f"data.path={place}", f"model.name={sources[kind]}", "training.use_cpu=true"]
    settings += ["data.splits=null", f"training.output_dir={tmp_path / 'out'}"]
    loaded = Recipe.load(RECIPES / f"{name}.yaml", settings)
    prepared = running.prepare(loaded, training_arguments(loaded))
    prepared.rehearse(loaded)
    assert {split: len(rows) for split, rows in prepared.data.items()} == {"train": 16, "test": 8}
