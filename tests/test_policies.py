"""What each freezing policy lets train, as a pure function of progress and signals."""

import json
import math
import random
import re
from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from torch import nn

import hf_sft
from hf_sft import (
    LISA,
    LPFT,
    AutoFreeze,
    AutoRGN,
    BitFit,
    ChainThaw,
    Gradual,
    LayerGroups,
    LinearProbe,
    NormOnly,
    Signals,
    Surgical,
    TrainFirst,
    TrainLast,
    TrainOnly,
    TrainRange,
)
from hf_sft.component import choices
from hf_sft.errors import RecipeError
from hf_sft.freezing import FreezePolicy, Moment, TrainAll

STEPS = 40


class Deep(nn.Module):
    """Stem, five blocks with a norm each, head: a.0 ... a.4 between in_ and out."""

    def __init__(self, bias=True):
        super().__init__()
        self.in_ = nn.Linear(3, 4, bias=bias)
        self.a = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4, bias=bias), nn.LayerNorm(4, bias=bias)) for _ in range(5)
        )
        self.out = nn.Linear(4, 2)


def groups(fresh=("out.weight", "out.bias"), bias=True):
    return LayerGroups.of(Deep(bias), fresh=fresh)


def trained(policy, progress=0.0, signals=None, of=None):
    """Names of the groups that train, each whole; fails where one trains in part."""
    of = groups() if of is None else of
    trains = policy.plan(of, progress, signals or Signals()).trains
    for group in of:
        assert not set(group.parameters) & trains or set(group.parameters) <= trains, group.name
    return [group.name for group in of if set(group.parameters) & trains]


def walk(policy, of=None, seed=0, gradients=None, scores=None):
    """(what trained, its multipliers) at every step, as a trainer would ask and tell."""
    of = groups() if of is None else of
    signals, found = Signals(seed=seed), []
    for step in range(STEPS):
        progress = step / STEPS
        plan = policy.plan(of, progress, signals)
        found.append((trained(policy, progress, signals, of), dict(plan.multipliers)))
        if "gradients" in policy.watches:
            theta = gradients(step, plan.trains)
            signals = policy.observe(of, signals, Moment(progress, theta))
        if "score" in policy.watches:
            moment = Moment((step + 1) / STEPS, score=scores[step])
            signals = policy.observe(of, signals, moment)
        signals = Signals(json.loads(json.dumps(signals.values)), seed)  # as a checkpoint keeps it
    return found


def changes(found):
    """step -> what trains from it on."""
    return {i: now for i, (now, _) in enumerate(found) if i == 0 or found[i - 1][0] != now}


ALL = ["stem", "a.0", "a.1", "a.2", "a.3", "a.4", "head"]


def test_the_groups_of_this_file():
    assert [group.name for group in groups()] == ALL


def one_of_each():
    """One policy of every type, by type."""
    given = {
        "train-only": {"patterns": ["*bias"]},
        "train-range": {"first": 1, "last": 2},
        "surgical": {"block": 1},
    }
    return {name: cls(**given.get(name, {})) for name, cls in shipped().items()}


def shipped():
    """The product's policies by type; other tests may have made some of their own."""
    found = choices(FreezePolicy).items()
    return {name: cls for name, cls in found if cls.__module__.startswith("hf_sft.")}


def test_every_type_is_public_and_comes_back_from_its_own_description():
    policies = one_of_each()
    assert len(policies) >= 15
    for name, policy in policies.items():
        assert getattr(hf_sft, type(policy).__name__) is type(policy)
        assert type(policy)(**json.loads(json.dumps(policy.describe()))) == policy
        assert policy.describe()["type"] == name


@pytest.mark.parametrize("name", one_of_each())
def test_plans_are_pure_and_inside_what_ever_trains(name):
    policy, model = one_of_each()[name], Deep()
    of = LayerGroups.of(model, fresh=("out.weight",))
    before = [p.requires_grad for p in model.parameters()]
    ever = policy.ever_trains(of)
    seen = set()
    for step in range(STEPS + 1):
        plans = [policy.plan(of, step / STEPS, Signals(seed=3)) for _ in range(2)]
        assert plans[0] == plans[1]
        assert plans[0].trains <= ever
        seen |= plans[0].trains
    assert [p.requires_grad for p in model.parameters()] == before
    assert policy.dynamic or seen == ever, "a static policy knows exactly what trains"
    assert type(policy).dynamic in (True, False)
    assert policy.dynamic or policy.plan(of, 1.0, Signals()) == policy.plan(of, 0.0, Signals())


# ---- ranges, one block ----


@pytest.mark.parametrize(
    ("policy", "blocks"),
    [
        (TrainRange(first=1, last=3), ["a.1", "a.2", "a.3"]),
        (TrainRange(first=-2, last=-1), ["a.3", "a.4"]),
        (TrainRange(first=0, last=-1), ["a.0", "a.1", "a.2", "a.3", "a.4"]),
        (TrainRange(first=2, last=2), ["a.2"]),
        (Surgical(block=0), ["a.0"]),
        (Surgical(block=-1), ["a.4"]),
        (Surgical(block="stem"), ["stem"]),
    ],
)
def test_blocks_by_number(policy, blocks):
    assert trained(policy) == [*blocks, "head"]


def test_ranges_meet_the_other_ways_to_say_the_same():
    of = groups()
    for policy, same in [
        (TrainRange(first=-2, last=-1), TrainLast(count=2)),
        (TrainRange(first=3, last=3), Surgical(block=3)),
        (TrainRange(first=3, last=3), TrainOnly(patterns=["a.3.*"])),
    ]:
        assert policy.plan(of, 0.0, Signals()) == same.plan(of, 0.0, Signals())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (TrainRange(first=0, last=5), r"freeze\.last: there is no block 5; .* 0 to 4, or -5 to -1"),
        (TrainRange(first=-6, last=2), r"freeze\.first: there is no block -6"),
        (TrainRange(first=-1, last=2), r"first -1 \(block 4\) lies behind last 2 \(block 2\)"),
        (Surgical(block=5), r"freeze\.block: there is no block 5"),
        (LISA(count=6), "Choices: 0 to 5"),
        (TrainOnly(patterns=["a.*", "!b.*"]), "'b.\\*' matches no parameter"),
        (TrainOnly(patterns=["!a.*", "a.*"]), "'!a.\\*' closes nothing that a pattern before it"),
        (TrainOnly(patterns=["*weight", "!*bias"]), "'!\\*bias' closes nothing"),
    ],
    ids=str,
)
def test_what_is_not_there_is_an_error(policy, message):
    with pytest.raises(RecipeError, match=message):
        policy.plan(groups(), 0.0, Signals())


def test_a_model_without_what_is_to_train_is_an_error():
    with pytest.raises(RecipeError, match="no bias below the head"):
        BitFit().plan(groups(bias=False), 0.0, Signals())
    bare = LayerGroups.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(RecipeError, match="no normalisation layer"):
        NormOnly().plan(bare, 0.0, Signals())
    pure = LayerGroups.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    if pure.stem is None:
        with pytest.raises(RecipeError, match="no stem"):
            Surgical(block="stem").plan(pure, 0.0, Signals())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NormOnly(norm_affine="frozen"), "nothing to train"),
        (lambda: Gradual(when="stall", over=0.4), "over has no effect"),
        (lambda: Gradual(patience=3), "patience has no effect"),
        (lambda: LPFT(probe=1.0), "less than 1"),
        (lambda: LISA(count=0), "greater than or equal to 1"),
        (lambda: TrainRange(first=True, last=2), "no truth value"),
    ],
)
def test_settings_that_cannot_act_are_refused(build, message):
    with pytest.raises(ValidationError, match=message):
        build()


# ---- patterns ----


def test_the_last_pattern_that_matches_decides():
    names = set(groups().parameters)
    opened = {n for n in names if n.startswith("a.")}

    def trains(*patterns):
        return TrainOnly(patterns=list(patterns)).plan(groups(), 0.0, Signals()).trains

    head = {"out.weight", "out.bias"}
    biases = {n for n in opened if n.endswith("bias")}
    assert trains("a.*", "!*.bias") == opened - biases | head
    assert trains("a.*", "!*.bias", "a.2.0.bias") == opened - biases | {"a.2.0.bias"} | head
    assert trains("a.*", "!a.[!13].*") == {n for n in opened if n[2] in "13"} | head
    assert trains("*", "!out.*") == names, "the head is never left at random values"


# ---- by role ----


def test_bitfit_trains_every_bias_and_norm_only_every_norm():
    model = tiny.bert()
    of = LayerGroups.of(model)
    head = set(of.head.parameters)
    biases = {n for n, p in model.named_parameters() if n.endswith(".bias")}
    assert BitFit().plan(of, 0.0, Signals()).trains == biases | head
    assert any("LayerNorm.bias" in name for name in biases)
    norms = {
        f"{n}.{k}"
        for n, m in model.named_modules()
        if isinstance(m, nn.LayerNorm)
        for k in ("weight", "bias")
    }
    assert NormOnly().plan(of, 0.0, Signals()).trains == norms | head
    of = LayerGroups.of(tiny.resnet())
    trains = NormOnly().plan(of, 0.0, Signals()).trains
    assert trains == of.norm_parameters | set(of.head.parameters)


# ---- over time ----


def test_lp_ft_probes_then_trains():
    assert changes(walk(LPFT(probe=0.3))) == {0: ["head"], 12: ALL}
    assert changes(walk(LPFT(probe=0.1, count=2))) == {0: ["head"], 4: ["a.3", "a.4", "head"]}
    plans = [LPFT(probe=0.3).plan(groups(), p, Signals()) for p in (0, 0.29, 0.3, 1)]
    assert [plan.probing for plan in plans] == [True, True, False, False]


@pytest.mark.parametrize("total", [3, 7, 10, 30, 1000])
def test_lp_ft_probes_the_share_it_says_to_the_step(total):
    for tenth in range(1, 10):
        policy = LPFT(probe=tenth / 10)
        probed = sum(policy.probing(step / total) for step in range(total))
        assert probed == math.ceil(tenth * total / 10 - 1e-9)


def test_gradual_opens_the_last_first_and_all_by_over():
    found = changes(walk(Gradual(over=0.6)))  # six parts below the head, in 24 steps
    assert found == {4 * i: ALL[6 - i :] for i in range(7)}
    assert changes(walk(Gradual(over=1.0)))[34] == ALL[1:], "the stem joins at the very end"
    assert Gradual(over=1.0).plan(groups(), 1.0, Signals()).trains == set(groups().parameters)


def test_gradual_opens_a_part_whenever_the_score_stalls():
    better = [float(i) for i in range(STEPS)]
    assert changes(walk(Gradual(when="stall"), scores=better)) == {0: ["head"]}
    # The best so far is 3 (at step 3); a score as good is no better one.
    scores = [0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 4.0, 4.0, *[9.0 + i for i in range(STEPS)]]
    found = changes(walk(Gradual(when="stall"), scores=scores))
    assert found == {0: ALL[6:], 5: ALL[5:], 6: ALL[4:], 8: ALL[3:]}
    patient = changes(walk(Gradual(when="stall", patience=2), scores=scores))
    assert patient == {0: ALL[6:], 6: ALL[5:]}
    flat = changes(walk(Gradual(when="stall"), scores=[1.0] * STEPS))
    assert list(flat) == [0, 2, 3, 4, 5, 6, 7], "and no further than all"
    lost = changes(walk(Gradual(when="stall"), scores=[math.nan] * STEPS))
    assert list(lost) == [0, 1, 2, 3, 4, 5, 6]


def test_chain_thaw_trains_the_head_each_part_alone_and_all():
    found = changes(walk(ChainThaw()))  # eight phases of five steps
    assert list(found) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert list(found.values()) == [["head"], *[[name] for name in ALL[:-1]], ALL]


def test_lisa_draws_anew_every_interval_from_seed_and_interval():
    found = walk(LISA(count=2, every=0.1), seed=1)
    draws = [now for now, _ in found]
    assert all(len(now) == 4 and now[0] == "stem" and now[-1] == "head" for now in draws)
    for i in range(10):
        assert all(now == draws[4 * i] for now in draws[4 * i : 4 * i + 4])
    assert len({tuple(now) for now in draws}) > 3
    assert walk(LISA(count=2, every=0.1), seed=1) == found
    assert walk(LISA(count=2, every=0.1), seed=2) != found
    random.seed(5)
    before = random.getstate()
    assert walk(LISA(count=2, every=0.1), seed=1) == found
    assert random.getstate() == before


def test_lisa_draws_every_block_equally_often():
    of, policy, count = groups(), LISA(count=2), dict.fromkeys(ALL, 0)
    for seed in range(1000):
        for name in trained(policy, 0.0, Signals(seed=seed), of):
            count[name] += 1
    assert count["stem"] == count["head"] == 1000
    # Binomial with p = 2/5: standard deviation 15.5.
    assert all(abs(count[name] - 400) < 5 * 15.5 for name in ALL[1:-1])


# ---- what watches gradients ----


def parameters(gradient, value=None, trains=None):
    """name -> a parameter with the gradient ``gradient(name)`` and ‖θ‖ = ``value(name)``."""
    theta = {}
    for name, p in Deep().named_parameters():
        size = 1.0 if value is None else value(name)
        theta[name] = nn.Parameter(torch.full_like(p, size / p.numel() ** 0.5))
        if trains is None or name in trains:
            theta[name].grad = torch.full_like(p, gradient(name) / p.numel() ** 0.5)
    return theta


def test_auto_rgn_is_the_mean_relative_gradient_over_the_largest():
    size = {n: 1.0 + i for i, (n, _) in enumerate(Deep().named_parameters())}

    def gradients(step, trains):
        return parameters(lambda n: size[n] ** 2 * (1 + step % 2), size.__getitem__)

    found = walk(AutoRGN(batches=2, every=0.25), gradients=gradients)
    assert all(now == ALL for now, _ in found)
    assert [bool(w) for _, w in found] == [False, False] + [True] * 38
    known = {name: value for name, value in size.items() if not name.startswith("out.")}
    largest = max(known.values())
    assert found[2][1].keys() == known.keys(), "what is new keeps the optimizer's rate"
    for name, w in found[2][1].items():
        assert w == pytest.approx(size[name] / largest, rel=1e-5)
    assert max(found[2][1].values()) == 1.0


def test_auto_rgn_measures_again_in_every_interval_and_only_then():
    chosen = "a.2.0.weight"

    def gradients(step, trains):
        return parameters(lambda n: float(1 + step) if n == chosen else 1.0)

    found = walk(AutoRGN(batches=2, every=0.25), gradients=gradients)
    rates = [w.get("a.0.0.weight") for _, w in found]
    assert rates[:2] == [None, None]
    for start in (0, 10, 20, 30):  # the mean of 1 over that of start + 1 and start + 2
        expected = 1 / (start + 1.5)
        assert rates[start + 2 : start + 12][: 38 - start] == pytest.approx(
            [expected] * min(10, 38 - start), rel=1e-5
        )


def test_auto_rgn_leaves_out_skipped_steps_and_undoes_the_loss_scale():
    policy, of = AutoRGN(batches=1), groups()
    broken = parameters(lambda n: math.inf if n == "in_.bias" else 1.0)
    signals = policy.observe(of, Signals(), Moment(0.0, broken, 2.0**16))
    assert policy.multipliers(of, 0.0, signals) == {}
    found = []
    for scale in (1.0, 2.0**16):
        theta = parameters(lambda n, s=scale: s * (3 if "a.1" in n else 1))
        found.append(policy.observe(of, signals, Moment(0.0, theta, scale)))
    assert found[0] == found[1]
    assert set(policy.multipliers(of, 0.0, found[0]).values()) == {1.0, 1 / 3}


def test_auto_rgn_gives_a_tensor_of_zeros_the_full_rate_for_good():
    """Grown a little, it would have by far the largest relative gradient and stop all others."""
    zero = "a.1.0.bias"

    def gradients(step, trains):
        return parameters(lambda n: 1.0, lambda n: 1e-6 * step if n == zero else 2.0)

    found = walk(AutoRGN(batches=2, every=0.25), gradients=gradients)
    for _, w in found[2:]:
        assert zero not in w
        assert set(w.values()) == {1.0}


def test_auto_rgn_takes_a_short_interval_as_it_is():
    policy = AutoRGN(batches=5, every=0.05)  # two steps

    def gradients(step, trains):
        return parameters(lambda n: 2.0 if n == "in_.bias" else 1.0)

    found = walk(policy, gradients=gradients)
    assert [bool(w) for _, w in found] == [False] * 3 + [True] * 37


def settling(*calm):
    """Gradients that halve with every window of four steps, and stand still in ``calm`` groups."""

    def gradients(step, trains):
        def size(name):
            return 1.0 if name.startswith(calm) else 0.5 ** (step // 4)

        return parameters(size, trains=trains)

    return gradients


def test_autofreeze_freezes_the_prefix_that_stands_still():
    found = changes(walk(AutoFreeze(), gradients=settling("in_", "a.0.")))
    assert found[0] == ALL
    assert found[8] == ALL[2:], "stem and a.0, after two windows; equal changes are not below"
    assert list(found) == [0, 8]


def test_autofreeze_stops_at_the_first_part_that_still_changes():
    assert list(changes(walk(AutoFreeze(), gradients=settling("a.0.", "a.1.")))) == [0]
    found = changes(walk(AutoFreeze(percentile=0), gradients=settling("in_")))
    assert list(found) == [0], "nothing is below the smallest"


def test_autofreeze_never_freezes_all_and_never_opens_again():
    ends = []
    for seed in range(5):
        rng = random.Random(seed)

        def gradients(step, trains, rng=rng):
            return parameters(lambda n: rng.random() + 0.1, trains=trains)

        counts = [len(now) for now, _ in walk(AutoFreeze(), gradients=gradients)]
        assert counts == sorted(counts, reverse=True)
        ends.append(counts[-1])
    assert min(ends) == 2, "the last block and the head"


def test_autofreeze_does_not_mind_windows_of_unequal_length():
    """40 steps in 7 windows; constant gradients have no change, so nothing is below the median."""
    found = walk(
        AutoFreeze(windows=7), gradients=lambda step, t: parameters(lambda n: 1.0, None, t)
    )
    assert list(changes(found)) == [0]


def test_the_page_names_every_policy_with_its_defaults():
    page = (Path(__file__).parent.parent / "docs" / "freezing.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\w+)` \| (.*?) \| ", page, re.MULTILINE)
    known = {name: cls for name, cls in shipped().items() if cls is not TrainAll}
    assert {name: cls for name, cls, _ in rows} == {n: cls.__name__ for n, cls in known.items()}
    shared = FreezePolicy.model_fields.keys() | {"type"}
    for name, _, text in rows:
        for key, field in known[name].model_fields.items():
            assert key in shared or f"`{key}" in text, (name, key)
            if isinstance(field.default, int | float):
                assert f"({field.default:g})" in text, (name, key)


def test_static_policies_stay_static():
    static = {LinearProbe, TrainFirst, TrainLast, TrainOnly, TrainRange, Surgical, NormOnly}
    static |= {BitFit, TrainAll}
    for policy in one_of_each().values():
        assert policy.dynamic is (type(policy) not in static)
