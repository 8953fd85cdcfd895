"""Weights between source and tuned: endpoints, closed forms, heads, counters, ties, soups."""

import itertools

import pytest
import tiny
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_sft.errors import SourceError, UserError
from hf_sft.layer_groups import LayerGroups
from hf_sft.weights.weight_space import copied, greedy_soup, lines, uniform_soup, wise_ft

HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "vit": {"classifier.weight", "classifier.bias"},
    "resnet": {"timm_model.fc.weight", "timm_model.fc.bias"},
}


def pair(kind, dtype=torch.float32):
    """(source, tuned, groups): every floating-point tensor has moved, every counter has counted."""
    model = tiny.KINDS[kind][0]().to(dtype)
    source = tiny.weights(model)
    tuned = {
        name: t + torch.rand_like(t) if t.is_floating_point() else t + 7
        for name, t in source.items()
    }
    return source, tuned, LayerGroups.of(model, fresh=HEADS[kind])


def same_bits(first, second):
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().reshape(-1).view(torch.uint8),
        second.contiguous().reshape(-1).view(torch.uint8),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", HEADS)
def test_both_ends_are_the_models_bit_for_bit(kind, dtype):
    source, tuned, groups = pair(kind, dtype)
    for tensor in (*source.values(), *tuned.values()):
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[0] = -0.0
    start = wise_ft(source, tuned, 0.0, groups.fresh)
    for name, tensor in tuned.items():
        mine = name in groups.fresh or not tensor.is_floating_point()
        assert same_bits(start[name], tensor if mine else source[name]), name
    for end in (wise_ft(source, tuned, 1.0, groups.fresh), lines(source, tuned, groups, 1.0, 0.0)):
        assert all(same_bits(end[name], tuned[name]) for name in tuned)


def test_in_between_is_the_formula():
    source, tuned, groups = pair("resnet", torch.float64)
    found = wise_ft(source, tuned, 0.3, groups.fresh)
    for name in set(tuned) - groups.fresh:
        if tuned[name].is_floating_point():
            torch.testing.assert_close(found[name], 0.7 * source[name] + 0.3 * tuned[name])


def test_what_training_left_alone_stays_bit_equal():
    source, _, groups = pair("resnet")
    tuned = {name: tensor.clone() for name, tensor in source.items()}
    for alpha in (0.1, 0.35, 0.9):
        assert tiny.different(source, wise_ft(source, tuned, alpha, groups.fresh)) == []
        assert tiny.different(source, lines(source, tuned, groups, alpha, 1 - alpha)) == []


def test_l2_sp_on_a_round_bowl_is_wise_ft():
    """T9: for ½h‖θ − t‖² + λ‖θ − θ⁰‖² the minimiser is WiSE-FT with α = h/(h + 2λ)."""
    source = {"w": torch.randn(5, 3, dtype=torch.float64)}
    best = {"w": torch.randn(5, 3, dtype=torch.float64)}
    for h, lam in itertools.product((0.1, 1.0, 7.0), (0.01, 0.5, 30.0)):
        minimiser = (h * best["w"] + 2 * lam * source["w"]) / (h + 2 * lam)
        found = wise_ft(source, best, h / (h + 2 * lam))["w"]
        torch.testing.assert_close(found, minimiser, rtol=0, atol=1e-14)
        gradient = h * (found - best["w"]) + 2 * lam * (found - source["w"])
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("kind", HEADS)
def test_lines_without_a_slope_is_wise_ft(kind):
    source, tuned, groups = pair(kind)
    for alpha in (0.0, 0.2, 0.7, 1.0):
        flat = lines(source, tuned, groups, alpha, 0.0)
        assert tiny.different(wise_ft(source, tuned, alpha, groups.fresh), flat) == []


@pytest.mark.parametrize("kind", HEADS)
def test_lines_goes_back_farthest_at_the_input(kind):
    source, tuned, groups = pair(kind, torch.float64)
    found = lines(source, tuned, groups, 0.25, 0.75)
    layers = [group for group in groups if group.role != "head"]
    assert layers[0].role == "stem"
    for depth, group in enumerate(layers):
        share = 0.25 + 0.75 * depth / (len(layers) - 1)
        for name in (*group.parameters, *group.buffers):
            if name in tuned and tuned[name].is_floating_point():
                wanted = source[name] + share * (tuned[name] - source[name])
                torch.testing.assert_close(found[name], wanted)
    for name in (*layers[-1].parameters, *groups.head.parameters):
        assert torch.equal(found[name], tuned[name])  # the last norm too


def test_lines_takes_a_head_of_the_source_as_the_last_layer():
    source, tuned, groups = pair("bert", torch.float64)
    known = LayerGroups(groups.groups, groups.norm_parameters, groups.norm_modules)
    found = lines(source, tuned, known, 0.2, 0.3)["classifier.weight"]
    wanted = torch.lerp(source["classifier.weight"], tuned["classifier.weight"], 0.5)
    torch.testing.assert_close(found, wanted)


def test_counters_are_those_of_the_tuned_model():
    source, tuned, groups = pair("resnet")
    counters = [name for name in tuned if name.endswith("num_batches_tracked")]
    assert counters
    for state in (wise_ft(source, tuned, 0.5, groups.fresh), uniform_soup([source, tuned])):
        for name in counters:
            assert state[name].dtype == torch.int64
            assert torch.equal(state[name], tuned[name])


def test_an_old_head_is_left_out_and_a_new_one_kept():
    source, tuned, groups = pair("bert")
    source["old.weight"] = torch.ones(3)
    source["classifier.weight"] = torch.zeros(11, 16)  # another number of classes
    del source["classifier.bias"]
    found = wise_ft(source, tuned, 0.4, groups.fresh)
    assert found.keys() == tuned.keys()
    for name in groups.fresh:
        assert torch.equal(found[name], tuned[name])
        assert found[name].data_ptr() != tuned[name].data_ptr()


def test_nothing_given_is_changed():
    source, tuned, groups = pair("resnet")
    before = [{n: t.clone() for n, t in state.items()} for state in (source, tuned)]
    for made in (
        wise_ft(source, tuned, 1.0, groups.fresh),
        lines(source, tuned, groups, 0.5, 0.5),
        uniform_soup([source, tuned]),
    ):
        for tensor in made.values():
            tensor.fill_(3)
    assert tiny.different(before[0], source) == tiny.different(before[1], tuned) == []


def test_a_tied_weight_is_one_weight():
    """T5's embedding is shared by encoder, decoder and output: one depth, one tensor."""
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2,
                      decoder_start_token_id=0)  # fmt: skip
    models = []
    for _ in range(2):
        models.append(T5ForConditionalGeneration(config))
    source, tuned = (model.state_dict() for model in models)
    tied = [n for n, t in tuned.items() if t.data_ptr() == tuned["shared.weight"].data_ptr()]
    assert len(tied) > 2
    groups = LayerGroups.of(models[0])
    made = (wise_ft(source, tuned, 0.5), lines(source, tuned, groups, 0.2, 0.8),
            uniform_soup([source, tuned]))  # fmt: skip
    for state in (*made, copied(tuned)):
        assert all(state[name] is state["shared.weight"] for name in tied)
        models[0].load_state_dict(state)
    twin = copied(tuned)
    assert tiny.different(twin, dict(tuned)) == []
    assert twin["shared.weight"].data_ptr() != tuned["shared.weight"].data_ptr()


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_a_share_outside_the_way_is_refused(alpha):
    source, tuned, groups = pair("bert")
    with pytest.raises(UserError, match="alpha"):
        wise_ft(source, tuned, alpha, groups.fresh)
    with pytest.raises(UserError, match="alpha"):
        lines(source, tuned, groups, alpha, 0.0)


def test_another_source_is_told_by_its_names():
    source, tuned, groups = pair("bert")
    name = "bert.pooler.dense.weight"
    with pytest.raises(SourceError, match=r"classifier.weight \(3, 5\), not \(3, 16\)"):
        wise_ft({**source, "classifier.weight": torch.zeros(3, 5)}, tuned, 0.5)
    del source[name]
    with pytest.raises(SourceError, match=rf"{name} \(missing\)"):
        wise_ft(source, tuned, 0.5, groups.fresh)


# ---- soups ----


def siblings(count, dtype=torch.float32):
    source, _, _ = pair("resnet", dtype)
    return [
        {n: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t + i
         for n, t in source.items()}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_a_soup_does_not_matter(dtype):
    states = siblings(4, dtype)
    soup = uniform_soup(states)
    for order in itertools.permutations(states):
        assert tiny.different(soup, uniform_soup(order)) == []
    assert {n: t.dtype for n, t in soup.items()} == {n: t.dtype for n, t in states[0].items()}


def test_a_soup_is_the_mean():
    states = siblings(3, torch.float64)
    for name, tensor in uniform_soup(states).items():
        if tensor.is_floating_point():
            wanted = torch.stack([state[name] for state in states]).mean(0)
            torch.testing.assert_close(tensor, wanted)


def test_a_soup_of_one_model_is_that_model():
    state = siblings(1)[0]
    for count in (1, 2, 3, 7):
        assert tiny.different(state, uniform_soup([state] * count)) == []


def near(target):
    return lambda state: -float((state["w"] - target).abs())


def vectors(*values):
    return [{"w": torch.tensor(float(value))} for value in values]


def test_a_greedy_soup_keeps_what_does_not_spoil_it():
    soup, tastings = greedy_soup(vectors(9.0, 2.0, -1.5, 3.0), near(0.0))
    assert [t.index for t in tastings] == [2, 1, 3, 0]  # best alone first
    assert [t.kept for t in tastings] == [True, True, False, False]
    assert float(soup["w"]) == 0.25
    assert tastings[1].together == -0.25
    assert tastings[2].together == pytest.approx(-3.5 / 3)


def test_a_greedy_soup_is_never_worse_than_its_best_model():
    for _ in range(20):
        values = torch.randn(5).tolist()
        soup, _ = greedy_soup(vectors(*values), near(0.3))
        best = max(near(0.3)(state) for state in vectors(*values))
        assert near(0.3)(soup) >= best


def test_a_greedy_soup_of_unequal_scores_does_not_depend_on_the_order():
    states = vectors(9.0, 2.0, -1.5, 3.0)
    soup, _ = greedy_soup(states, near(0.0))
    for order in itertools.permutations(states):
        assert torch.equal(greedy_soup(order, near(0.0))[0]["w"], soup["w"])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"fc.bias": torch.zeros(4)}, "fc.bias is float32 (4,), not float32 (3,)"),
     ({"fc.bias": torch.zeros(3).double()}, "fc.bias is float64 (3,), not float32 (3,)"),
     ({"more": torch.zeros(1)}, "more is in one of them only")],
)  # fmt: skip
def test_a_soup_of_unlike_models_says_what_differs(change, said):
    first = {"fc.bias": torch.zeros(3)}
    for soup in (uniform_soup, lambda states: greedy_soup(states, near(0.0))):
        with pytest.raises(SourceError) as error:
            soup([first, first, {**first, **change}])
        assert said in str(error.value)
        assert "model 3 differs from model 1" in str(error.value)


def test_a_soup_of_nothing_is_refused():
    with pytest.raises(UserError, match="no model"):
        uniform_soup([])
