"""Laws of linear CKA and feature-wise R², and where the layers of a model are looked at."""

import pytest
import tiny
import torch

from hf_sft import LayerGroups
from hf_sft.reporting.geometry import Views, cka, compare, places, r2


def features(rows=40, size=12, seed=0):
    return torch.randn(rows, size, dtype=torch.float64, generator=tiny._generator(seed))


def rotation(size, seed=7):
    return torch.linalg.qr(features(size, size, seed))[0]


def by_definition(x, y):
    """‖YᵀX‖_F² / (‖XᵀX‖_F·‖YᵀY‖_F), as it is written."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms = [torch.linalg.matrix_norm(m) for m in (y.T @ x, x.T @ x, y.T @ y)]
    return float(norms[0] ** 2 / (norms[1] * norms[2]))


def test_cka_of_features_with_themselves_is_one():
    assert cka(features(), features()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-3, -4.0])
def test_cka_does_not_see_rotation_scale_and_offset(scale):
    x, y = features(), features(seed=1) + features()
    changed = scale * y @ rotation(12) + features(1, seed=3)
    assert cka(x, changed) == pytest.approx(cka(x, y), abs=1e-12)
    assert cka(x, changed) < 0.99


def test_cka_sees_more_than_a_rotation():
    stretched = features() * torch.linspace(0.01, 3, 12, dtype=torch.float64)
    assert cka(features(), stretched) < 0.9


@pytest.mark.parametrize("sizes", [(12, 5), (3, 200)])
def test_cka_is_its_definition_for_any_two_sizes(sizes):
    x, y = features(size=sizes[0]), features(size=sizes[1], seed=1)
    assert cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-12)
    assert cka(y, x) == pytest.approx(cka(x, y), abs=1e-12)


def test_cka_of_orthogonal_features_is_zero():
    basis = torch.linalg.qr(features(40, 13) - features(40, 13).mean(0))[0]
    assert cka(basis[:, :6], basis[:, 6:12]) == pytest.approx(0, abs=1e-12)


def test_features_that_never_vary_have_no_cka():
    assert cka(features(), torch.full((40, 3), 0.1)) is None


def test_r2_is_one_for_the_same_features_but_for_offset_and_scale():
    assert r2(features(), 3 - 2 * features()).tolist() == pytest.approx([1] * 12, abs=1e-12)


def test_r2_is_the_share_of_variance_that_a_line_explains():
    x, y = features(), features(seed=1) + features()
    for j, found in enumerate(r2(x, y)):
        basis = torch.stack([x[:, j], torch.ones(40, dtype=torch.float64)], 1)
        rest = y[:, j] - basis @ torch.linalg.lstsq(basis, y[:, j : j + 1]).solution[:, 0]
        share = 1 - rest.square().sum() / (y[:, j] - y[:, j].mean()).square().sum()
        assert float(found) == pytest.approx(float(share), abs=1e-10)


def test_r2_sees_a_rotation_that_cka_does_not():
    turned = features() @ rotation(12)
    assert cka(features(), turned) == pytest.approx(1, abs=1e-12)
    assert float(r2(features(), turned).mean()) < 0.5


def test_dead_units_of_the_source_do_not_count_and_units_that_die_count_zero():
    x, y = features(), features()
    x[:, 0], y[:, 1] = 0.1, 0.1
    found = r2(x, y)
    assert len(found) == 11
    assert found[0] == 0
    assert found[1:].min() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["bert", "vit", "resnet", "convnext", "t5"])
def test_every_layer_group_below_the_head_has_its_own_place(kind):
    model = tiny.KINDS[kind][0]()
    groups = LayerGroups.of(model)
    found = places(model, groups)
    below = [group for group in groups if group.role != "head" and group.parameters]
    assert list(found) == [group.name for group in below]
    assert len(set(found.values())) == len(found)
    for group in below:
        module = model.get_submodule(found[group.name])
        inside = {f"{found[group.name]}.{name}" for name, _ in module.named_parameters()}
        assert inside <= set(group.parameters)


def seen(model, layers, rows, size):
    views = Views(model, layers)
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = {"pixel_values": torch.stack([r["pixel_values"] for r in rows[start:][:size]])}
            model(**batch)
            views.take(batch)
    views.taps.remove()
    return views.features()


def test_the_size_of_batches_makes_no_difference():
    model, rows = tiny.resnet().eval(), tiny.images(12)
    layers = places(model, LayerGroups.of(model))
    whole, parts = seen(model, layers, rows, 12), seen(model, layers, rows, 5)
    for name in layers:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_change_shows_from_its_depth_on():
    """Layers before the first changed one are the same; from it on they are not."""
    model, changed, rows = tiny.resnet().eval(), tiny.resnet().eval(), tiny.images(24)
    groups = LayerGroups.of(model)
    layers = places(model, groups)
    with torch.no_grad():
        for name in groups.blocks[2].parameters:
            weight = changed.get_parameter(name)
            weight.add_(torch.randn(weight.shape, generator=tiny._generator(9)))
    found = compare(seen(model, layers, rows, 8), seen(changed, layers, rows, 8), groups)
    at = [row["name"] for row in found].index(groups.blocks[2].name)
    for row in found[:at]:
        assert (row["cka"], row["r2"]) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))
    assert found[at]["cka"] < 0.99
    assert found[at]["r2_quartiles"] == sorted(found[at]["r2_quartiles"])
