"""Detectors and segmenters that are the source whole: their head, and what the report sees."""

import pytest
import tiny_backbones
import tiny_detection
import tiny_masks
import torch
import transformers
from datasets import Dataset

from hf_sft import LayerGroups
from hf_sft.heads import outputs_per_class
from hf_sft.reporting import drift, geometry


def rt_detr():
    """With weights large enough that images are told apart."""
    model = tiny_detection.rt_detr().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def upernet():
    torch.manual_seed(0)
    backbone = transformers.ConvNextConfig(
        **tiny_backbones.SIZES, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    settings = {"hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 8}
    config = transformers.UperNetConfig(backbone_config=backbone, num_labels=3, **settings)
    return transformers.UperNetForSemanticSegmentation(config)


MODELS = {
    "detr": tiny_detection.detr,
    "conditional": tiny_detection.conditional,
    "deformable": tiny_detection.deformable,
    "rt_detr": tiny_detection.rt_detr,
    "yolos": tiny_detection.yolos,
    "segformer": tiny_masks.segformer,
    "mask2former": tiny_masks.mask2former,
    "upernet": upernet,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_holds_the_outputs_and_is_the_same_for_other_labels(name):
    """Where the labels are the source's nothing is fresh; else the outputs per class are."""
    model = MODELS[name]()
    outputs = outputs_per_class(model)
    head = set(LayerGroups.of(model).head.parameters)
    assert outputs
    assert outputs <= head < {name for name, _ in model.named_parameters()}
    assert set(LayerGroups.of(model, fresh=outputs).head.parameters) == head


def test_rt_detrs_boxes_are_of_the_head():
    head = LayerGroups.of(tiny_detection.rt_detr()).head.parameters
    assert {name.split(".")[-3] for name in head if "bbox" in name} >= {"layers"}
    assert not any("query_pos_head" in name or "backbone" in name for name in head)


def test_the_function_of_rt_detr_is_measured():
    """Its encoder gives maps of several scales; the layer of its encoder is in a list of one."""
    model = rt_detr()
    groups = LayerGroups.of(model)
    rows = Dataset.from_dict({"seed": [0, 1, 2, 3]})

    def collate(rows):
        draws = [torch.Generator().manual_seed(row["seed"]) for row in rows]
        images = [torch.randn(3, 64, 64, generator=generator) for generator in draws]
        return {"pixel_values": torch.stack(images)}

    head = set(groups.head.parameters)
    found, layers = drift.compare(model, False, model, head, rows, collate, groups)
    assert found["examples"] == 4
    assert found["spearman"] == pytest.approx(1)
    seen = {layer["name"] for layer in layers}
    assert {"stem", "model.encoder.aifi.0", "model.decoder.layers.0"} <= seen
    assert all(layer["cka"] == pytest.approx(1) for layer in layers)


@pytest.mark.parametrize("name", ["deformable", "rt_detr"])
def test_the_last_layer_is_looked_at_not_what_is_registered_after_it(name):
    model = MODELS[name]()
    found = geometry.places(model, LayerGroups.of(model))
    last = [group for group in found if "decoder.layers" in group][-1]
    assert found[last] == last
