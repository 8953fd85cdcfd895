"""Rules: a λ of its own for parts of a model, by role, name or depth, from YAML to training."""

import json
import math

import pytest
import tiny
import torch
import yaml
from tiny_run import text_recipe

from hf_sft import (
    L2SP,
    LPFT,
    LayerGroups,
    LearningRate,
    Recipe,
    StartingPoint,
    TransferTrainer,
    run,
)
from hf_sft.errors import RecipeError
from hf_sft.selection import Rule, at_depth, first_match, of_role

HEAD = {"classifier.weight", "classifier.bias"}
TINY = {"bert": HEAD, "gpt2": set(), "vit": {"classifier.weight"}, "resnet": set()}


def groups_of(kind="bert", fresh=HEAD):
    return LayerGroups.of(tiny.KINDS[kind][0](), fresh=fresh)


def strengths(rules, kind="bert", fresh=HEAD, **settings):
    """c_n by name."""
    model = tiny.KINDS[kind][0]()
    groups = LayerGroups.of(model, fresh=fresh)
    start = StartingPoint.of(model, fresh=fresh, groups=groups)
    found = L2SP(**{"lambda": 0.1, "rules": rules, **settings}).coefficients(start)
    return {name: found[name] for name in groups.parameters}


# ---- what a rule speaks of ----


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_roles_share_out_every_parameter(kind):
    """By what it is: weight, bias, norm, embedding; by place: stem, block, head."""
    groups = groups_of(kind, fresh=())
    for roles in (("weight", "bias", "norm", "embedding"), ("stem", "block", "head")):
        parts = [of_role(role, groups) for role in roles]
        assert set().union(*parts) == set(groups.parameters)
        assert sum(map(len, parts)) == len(set(groups.parameters))


def test_roles_of_bert():
    groups = groups_of()
    assert of_role("embedding", groups) == {
        f"bert.embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")
    }
    assert "bert.embeddings.LayerNorm.bias" in of_role("norm", groups)
    assert "bert.embeddings.LayerNorm.bias" not in of_role("bias", groups)
    assert "bert.encoder.layer.0.output.dense.bias" in of_role("bias", groups)
    assert of_role("head", groups) >= HEAD


def test_depth_counts_blocks_from_either_end():
    groups = groups_of("resnet", fresh=())
    count, blocks = len(groups.blocks), [set(b.parameters) for b in groups.blocks]
    assert count > 2
    for i in range(count):
        assert at_depth(i, groups) == blocks[i] == at_depth(i - count, groups)
    assert at_depth((0, -1), groups) == set().union(*blocks) == of_role("block", groups)
    assert at_depth((1, 2), groups) == blocks[1] | blocks[2]
    assert at_depth((-2, -1), groups) == blocks[-2] | blocks[-1]
    assert at_depth(count, groups) == set()


def test_keys_of_a_rule_all_have_to_fit():
    groups = groups_of()
    rule = Rule(role="bias", name="*attention*", depth=1)
    found = rule.selects(groups.parameters, groups)
    assert found
    assert all("layer.1.attention" in n and n.endswith("dense.bias") or "self" in n for n in found)
    assert found == {n for n in of_role("bias", groups) & at_depth(1, groups) if "attention" in n}
    assert Rule().selects(groups.parameters, groups) == set(groups.parameters)
    assert str(rule) == "role: bias, name: *attention*, depth: 1"


def test_the_first_rule_that_fits_wins():
    groups = groups_of()
    rules = [Rule(name="*layer.0.*"), Rule(role="bias"), Rule()]
    found = first_match(rules, groups, "x")
    assert found.keys() == set(groups.parameters)
    for name in groups.parameters:
        expected = 0 if "layer.0." in name else 1 if name in of_role("bias", groups) else 2
        assert found[name] is rules[expected], name


# ---- coefficients ----


def test_a_lambda_for_each_depth():
    rules = [
        {"depth": 0, "lambda": 3.0},
        {"depth": -1, "lambda": 2.0},
        {"role": "stem", "lambda": 0},
    ]
    found, groups = strengths(rules, head=0.7), groups_of()
    places = {n: i for i, g in enumerate(groups) for n in g.parameters}
    assert len(groups) == 4
    for name, c in found.items():
        expected = 0.7 if name in HEAD else (0.0, 3.0, 2.0, 0.1)[places[name]]
        assert c == expected, name


def test_what_no_rule_fits_has_lambda():
    found = strengths([{"role": "bias", "lambda": 5}])
    biases = of_role("bias", groups_of()) - HEAD
    assert {n for n, c in found.items() if c == 5} == biases
    assert all(c == 0.1 for n, c in found.items() if n not in biases | HEAD)


def test_the_gradient_is_that_of_each_coefficient():
    model = tiny.bert().double()
    groups = LayerGroups.of(model, fresh=HEAD)
    start = StartingPoint.of(model, fresh=HEAD, groups=groups)
    rules = [
        {"role": "norm", "lambda": 0},
        {"depth": 1, "lambda": 4.0},
        {"role": "bias", "lambda": 2},
    ]
    penalty = L2SP(lambda_=0.5, head=0.25, rules=rules)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
            parameter.grad = torch.zeros_like(parameter)
    theta, c = dict(model.named_parameters()), penalty.coefficients(start)
    penalty.add_gradient_(theta, start)
    for name, p in theta.items():
        d = p - start.copies[name] if name in start.copies else p
        assert torch.allclose(p.grad, 2 * c[name] * d, rtol=1e-12), name
    assert {0, 0.25, 0.5, 2.0, 4.0} == {c[n] for n in theta}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"name": "bert.encodr.*", "lambda": 1}], r"rules\.0: \(name: bert.encodr.\*\) fits no"),
        ([{"name": "bert.pooler.dense.wieght", "lambda": 1}], "'bert.pooler.dense.weight'"),
        ([{"depth": 2, "lambda": 1}], "numbered 0 to 1"),
        ([{"role": "norm", "depth": 0, "name": "*query*", "lambda": 1}], "fits no parameter"),
        ([{"role": "bias", "lambda": 1}, {"depth": 0, "lambda": 2}, {"role": "bias", "depth": 0,
          "lambda": 3}], r"rules\.2: .*an earlier rule has taken; move it up"),
        ([{"lambda": 1}, {"role": "norm", "lambda": 2}], r"rules\.1: .*earlier rule"),
    ],
)  # fmt: skip
def test_idle_and_shadowed_rules_are_errors(rules, message):
    with pytest.raises(RecipeError, match=message):
        strengths(rules)


def test_rules_without_groups_are_told():
    start = StartingPoint.of(tiny.bert(), fresh=HEAD)
    with pytest.raises(RecipeError, match="groups=groups"):
        L2SP(rules=[{"role": "norm", "lambda": 1}]).coefficients(start)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"role": "norm"}, "Field required"),
        ({"role": "norm", "lambda": -1}, "greater than or equal to 0"),
        ({"role": "norm", "lambda": "nan"}, "greater than or equal to 0"),
        ({"role": "norm", "lambda": True}, "no truth value"),
        ({"depth": True, "lambda": 1}, "no truth value"),
        ({"depth": [2, 1], "lambda": 1}, "empty; write the smaller one first"),
        ({"roles": "norm", "lambda": 1}, "Extra inputs"),
    ],
)
def test_a_rule_that_says_nothing_sensible(rule, message):
    with pytest.raises(ValueError, match=message):
        L2SP(rules=[rule])


# ---- a training ----


def trainer(folder, rules, freeze=None, rows=16, **settings):
    return TransferTrainer(
        tiny.bert(),
        tiny.arguments(folder),
        train_dataset=tiny.texts(rows),
        penalty=L2SP(lambda_=0.1, rules=rules, **settings),
        freeze=freeze,
        fresh=HEAD,
    )


def test_an_idle_rule_is_told_before_training(tmp_path):
    with pytest.raises(RecipeError, match="fits no parameter"):
        trainer(tmp_path, [{"name": "nothing*", "lambda": 1}])


def test_a_rule_on_new_parameters_alone_is_idle(tmp_path):
    """Their coefficient is ``head``, unless a probed head gets a starting point."""
    rules = [{"name": "classifier.*", "lambda": 2}]
    with pytest.raises(RecipeError, match="decayed by penalty.head"):
        trainer(tmp_path, rules)
    probed = trainer(tmp_path, rules, LPFT(probe=0.5), head=0.3)
    assert probed.pull.strength("classifier.weight") == 0.3
    probed.train()
    assert probed.pull.strength("classifier.weight") == 2


def test_infinite_rules_freeze_and_the_rest_is_pulled(tmp_path):
    found = trainer(tmp_path, [{"role": "norm", "lambda": math.inf}])
    norms = found.layer_groups.norm_parameters
    found.train()
    assert norms <= set(found.frozen)
    assert found.starting_point.changed(found.model, norms) == []
    rest = set(found.starting_point.copies)
    assert rest
    assert not norms & rest
    assert set(found.starting_point.changed(found.model, rest)) == rest
    pinned = {id(p) for n, p in found.model.named_parameters() if n in norms}
    assert not any(id(p) in pinned for p in found.optimizer.state)


def test_zero_by_a_rule_is_free_and_keeps_its_weight_decay(tmp_path):
    found = trainer(tmp_path, [{"depth": 0, "lambda": 0}])
    decayed = set(found.get_decay_parameter_names(found.model))
    block = set(found.layer_groups.blocks[0].parameters)
    assert decayed & block
    assert decayed <= block | HEAD


# ---- recipes ----


@pytest.mark.parametrize("infinity", [".inf", "inf", "'inf'", ".Inf", "Infinity"])
def test_yaml(infinity, tmp_path):
    path = text_recipe(tmp_path)
    text = path.read_text("utf-8")
    block = yaml.safe_load(text)
    block.pop("penalty")
    path.write_text(
        yaml.safe_dump(block)
        + f"""
penalty:
  type: l2-sp
  half_life: 0.5
  apply: proximal
  rules:
    - {{role: norm, lambda: {infinity}}}
    - {{depth: [0, 0], role: weight, lambda: 1e-3}}
    - {{name: bert.embeddings.*, lambda: 0}}
""",
        "utf-8",
    )
    (penalty,) = Recipe.load(path).penalty
    assert [rule.lambda_ for rule in penalty.rules] == [math.inf, 1e-3, 0]
    assert penalty.rules[1].depth == (0, 0)
    described = json.loads(json.dumps(penalty.describe(), allow_nan=False))
    assert described["rules"][0]["lambda"] == "inf"
    assert type(penalty).model_validate(described) == penalty


def test_overrides_and_every_problem_at_once(tmp_path):
    path = text_recipe(tmp_path)
    (penalty,) = Recipe.load(path, ["penalty.rules=[{role: norm, lambda: inf}]"]).penalty
    assert penalty.rules[0].lambda_ == math.inf
    with pytest.raises(RecipeError) as error:
        Recipe.load(path, ["penalty.rules=[{rol: norm, lambda: 1}, {role: nrom}]"])
    lines = str(error.value).splitlines()
    assert any("penalty.rules.0.rol" in line and "'role'" in line for line in lines)
    assert any("penalty.rules.1.role" in line and "'norm'" in line for line in lines)
    assert any("penalty.rules.1.lambda: this key is needed" in line for line in lines)


@pytest.mark.parametrize("block", ["l1-sp", "group-lasso-sp", "fisher-sp", "recadam", "lora-sp"])
def test_every_prior_is_a_block_with_its_type_alone(block, tmp_path):
    (penalty,) = Recipe.load(text_recipe(tmp_path), [f"penalty={{type: {block}}}"]).penalty
    assert penalty.type == block
    assert type(penalty).model_validate(penalty.describe()) == penalty
    for text in (penalty.formula, type(penalty).__doc__):
        assert "λ" in text


def test_a_run_of_a_recipe_with_rules(tmp_path, monkeypatch):
    """From YAML to the report: what is infinite is verified as unchanged."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    rules = "[{role: norm, lambda: inf}, {role: stem, lambda: 2}]"
    path = text_recipe(tmp_path)
    report = run(Recipe.load(path, [f"penalty={{type: fisher-sp, samples: 4, rules: {rules}}}"]))
    values = json.loads(
        (tmp_path / "out" / "report.json").read_text("utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert values["penalty"]["methods"][0]["rules"][0]["lambda"] == "inf"
    assert values["groups"][0]["lambda"] == 2
    assert report


def test_rates_are_rules_too():
    rates = [LearningRate(role="head", multiplier=10), LearningRate(decay=0.5)]
    found = first_match(rates, groups_of(), "learning_rates")
    assert {n for n, rule in found.items() if rule is rates[0]} == of_role("head", groups_of())
    with pytest.raises(ValueError, match="no truth value"):
        LearningRate(multiplier=True)
