"""LoRA-SP: λ‖s·B·A‖² from the small factors is that of the formed product; PEFT models train."""

import copy
import math

import pytest
import tiny
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from test_resume import StopAt, outcome
from torch import nn

from hf_sft import (
    L2SP,
    LayerGroups,
    LinearProbe,
    LoRASP,
    Recipe,
    StartingPoint,
    TrainLast,
    TransferTrainer,
)
from hf_sft.component import find
from hf_sft.errors import RecipeError, UserError
from hf_sft.penalties import Penalty

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
STRENGTH = 0.3


class Layers(nn.Module):
    """One of each layer that LoRA can adapt."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 5)
        self.line = nn.Conv1d(3, 4, 2)
        self.image = nn.Conv2d(3, 4, (3, 2))
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.linear(self.words(x)).mean(1))


TARGETS = ["words", "linear", "line", "image"]


def adapted(model=None, double=True, **settings):
    """A PEFT model whose factors are random, its starting point, its parameters by name."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": TARGETS, **settings})
    model = get_peft_model(Layers() if model is None else model, config)
    model = model.double() if double else model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
                parameter.grad = torch.zeros_like(parameter)
    start = StartingPoint.of(model, fresh=trained(model))
    return model, start, dict(model.named_parameters())


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def formed(model, adapters=("default",)):
    """Σ ‖ΔW‖², with ΔW as PEFT itself would merge it."""
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    assert layers
    found = [layer.get_delta_weight(name) for layer in layers for name in adapters]
    return torch.stack([delta.square().sum() for delta in found]).sum()


# ---- the formula ----


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scaled", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_value_and_gradient_are_those_of_the_formed_product(target, scaled):
    model, start, theta = adapted(target_modules=[target], **scaled)
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    factors = [p for name, p in theta.items() if "lora_" in name]
    assert len(factors) == 2
    expected = STRENGTH * formed(model)
    found = penalty.value(theta, start)
    assert torch.allclose(found, expected, rtol=1e-12)
    gradients = torch.autograd.grad(expected, factors)
    penalty.add_gradient_(theta, start)
    for factor, gradient in zip(factors, gradients, strict=True):
        assert gradient.abs().max() > 1e-3
        assert torch.allclose(factor.grad, gradient, rtol=1e-12, atol=1e-15)


def test_it_is_l2_sp_of_the_merged_weights():
    """λ carries over: Ω is L2-SP's of W⁰ + s·B·A."""
    model, start, theta = adapted()
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    value = penalty.value(theta, start).item()
    anchor = StartingPoint.of(copy.deepcopy(model).unload().requires_grad_(True), fresh=())
    merged = model.merge_and_unload().requires_grad_(True)
    pulled = L2SP(lambda_=STRENGTH).value(dict(merged.named_parameters()), anchor)
    assert value == pytest.approx(pulled.item(), rel=1e-10)


def test_gradients_scale_and_add():
    model, start, theta = adapted()
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    penalty.add_gradient_(theta, start)
    once = {n: p.grad.clone() for n, p in theta.items() if p.grad is not None}
    penalty.add_gradient_(theta, start, scale=2.0**10)
    assert all(torch.allclose(theta[n].grad, g * (2**10 + 1)) for n, g in once.items())


def test_half_precision_is_summed_in_single():
    model, start, theta = adapted(double=False)
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    whole = penalty.value(theta, start).item()
    model.to(torch.bfloat16)
    found = penalty.value(theta, start)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(whole, rel=0.05)
    for parameter in theta.values():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    penalty.add_gradient_(theta, start)
    assert all(theta[n].grad.dtype == torch.bfloat16 for n in trained(model))


def test_nothing_pulls_at_the_source():
    """B = 0, where LoRA starts: no value, no gradient."""
    model, start, theta = adapted()
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    with torch.no_grad():
        for name, parameter in theta.items():
            if "lora_B" in name or "embedding_B" in name:
                parameter.zero_()
    assert penalty.value(theta, start) == 0
    penalty.add_gradient_(theta, start)
    assert all(not p.grad.any() for n, p in theta.items() if "lora_" in n)


def test_a_frozen_factor_is_left_and_the_other_pulled():
    model, start, theta = adapted(target_modules=["linear"])
    penalty = LoRASP(lambda_=STRENGTH)
    penalty.attach(model, start)
    a, b = (theta[f"base_model.model.linear.lora_{k}.default.weight"] for k in "AB")
    a.requires_grad_(False)
    penalty.add_gradient_(theta, start)
    assert not a.grad.any()
    assert b.grad.any()
    b.requires_grad_(False)
    assert penalty.value(theta, start) == 0


def test_all_active_adapters_count_and_others_do_not():
    model, _, _ = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["linear"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "second" in name:
                parameter.normal_()
    model.double()
    fresh = {n for n, _ in model.named_parameters() if "lora_" in n}
    for active in (["default"], ["second"], ["default", "second"]):
        model.base_model.set_adapter(active)
        start, penalty = StartingPoint.of(model, fresh=fresh), LoRASP(lambda_=STRENGTH)
        penalty.attach(model, start)
        found = penalty.value(dict(model.named_parameters()), start)
        expected = 0.0
        for module in model.modules():
            if hasattr(module, "get_delta_weight"):
                for name in set(active) & set(module.scaling):
                    expected += STRENGTH * module.get_delta_weight(name).square().sum().item()
        assert found.item() == pytest.approx(expected, rel=1e-10)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True, "target_modules": ["linear"]}, "DoRA"),
        ({"init_lora_weights": "pissa", "target_modules": ["linear"]}, "pissa"),
        ({"init_lora_weights": "olora", "target_modules": ["linear"]}, "olora"),
    ],
)
def test_variants_are_refused(settings, why):
    model = get_peft_model(Layers(), LoraConfig(r=2, **settings))
    start = StartingPoint.of(model, fresh=trained(model))
    with pytest.raises(UserError, match=rf"linear, adapter 'default'.*{why}.*plain LoRA"):
        LoRASP().attach(model, start)


def test_other_methods_are_refused():
    config = AdaLoraConfig(target_modules=["linear"], init_r=4, total_step=10)
    model = get_peft_model(Layers(), config)
    start = StartingPoint.of(model, fresh=trained(model))
    with pytest.raises(UserError, match="SVDLinear is not supported"):
        LoRASP().attach(model, start)
    config = IA3Config(target_modules=["linear"], feedforward_modules=[])
    with pytest.raises(UserError, match="ia3.*is not supported"):
        LoRASP().attach(get_peft_model(Layers(), config), start)
    with pytest.raises(UserError, match="no active LoRA adapter.*l2-sp"):
        LoRASP().attach(Layers(), start)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(UserError, match="no active LoRA adapter"):
        LoRASP().attach(get_peft_model(tiny.bert(), config), start)


def test_quantised_layers_are_refused():
    """By their class: those of bitsandbytes, GPTQ and the like live in files of their own."""
    model, start, _ = adapted(target_modules=["linear"])
    layer = model.base_model.model.linear
    named = {"__module__": "peft.tuners.lora.bnb"}
    layer.__class__ = type("Linear8bitLt", (type(layer),), named)
    with pytest.raises(UserError, match="lora.bnb.Linear8bitLt is not supported"):
        LoRASP().attach(model, start)


def test_merged_adapters_and_groups_are_refused():
    model, start, _ = adapted()
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge_adapter"):
        LoRASP().attach(model, start)

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Conv2d(4, 4, 3, groups=2)

    model, start, _ = adapted(Grouped(), target_modules=["image"], r=2)
    with pytest.raises(UserError, match="in groups"):
        LoRASP().attach(model, start)


def test_adapters_that_count_as_the_source_are_refused():
    model, _, _ = adapted()
    start = StartingPoint.of(model, fresh=())
    with pytest.raises(UserError, match="fresh="):
        LoRASP().attach(model, start)


@pytest.mark.parametrize("unit", ["alpha", "half_life", "radius"])
def test_only_lambda_is_its_strength(unit):
    with pytest.raises(ValueError, match=f"{unit} is a unit of squared distances"):
        LoRASP(**{unit: 0.1})
    with pytest.raises(ValueError, match="apply"):
        LoRASP(apply="proximal")
    assert find(Penalty, "lora-sp") is LoRASP
    assert Recipe  # YAML: test_rules.py


# ---- a training ----


CONFIG = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value", "word_embeddings"]}


def lora_bert():
    torch.manual_seed(11)  # A is random
    return get_peft_model(tiny.bert(), LoraConfig(**CONFIG))


def run(folder, penalty=None, freeze=None, stop=None, model=None, **changes):
    model = lora_bert() if model is None else model
    torch.manual_seed(0)
    return TransferTrainer(
        model,
        tiny.arguments(folder, **changes),
        train_dataset=tiny.texts(24),
        penalty=penalty,
        freeze=freeze,
        fresh=trained(model),
        callbacks=[StopAt(stop)] if stop else [],
    )


def test_layer_groups_of_a_peft_model():
    """The wrapped model's own order; adapters stand where their layers stand."""
    model = lora_bert()
    fresh = trained(model)
    groups = LayerGroups.of(model, fresh=fresh)
    plain = LayerGroups.of(tiny.bert())
    assert [group.role for group in groups] == [group.role for group in plain]
    assert set(groups.parameters) == {name for name, _ in model.named_parameters()}
    for number, block in enumerate(groups.blocks):
        inside = [name for name in block.parameters if "lora_" in name]
        assert len(inside) == 4
        assert all(f"layer.{number}." in name for name in inside)
    assert sum("lora_embedding" in name for name in groups.stem.parameters) == 2
    heads = {name for name in fresh if "modules_to_save" in name}
    assert heads <= set(groups.head.parameters)


def test_adapters_and_new_heads_are_found_as_fresh(tmp_path):
    tiny.bert().base_model.save_pretrained(tmp_path / "source")
    loaded = type(tiny.bert()).from_pretrained(tmp_path / "source", num_labels=3)
    model = get_peft_model(loaded, LoraConfig(**CONFIG))
    args = tiny.arguments(tmp_path)
    trainer = TransferTrainer(model, args, train_dataset=tiny.texts(8), penalty=LoRASP())
    assert trained(model) <= trainer.starting_point.fresh
    assert not any("lora_" in name for name in trainer.starting_point.digests)
    assert trainer.starting_point.copies == {}


@pytest.mark.parametrize("freeze", [None, TrainLast(count=1), LinearProbe()])
def test_peft_models_train(freeze, tmp_path):
    """With and without a policy: the source stays bit for bit, the log has Ω."""
    trainer = run(tmp_path, LoRASP(lambda_=0.1, head=0.01), freeze)
    before = tiny.weights(trainer.model)
    trainer.train()
    changed = set(tiny.different(before, tiny.weights(trainer.model)))
    fresh = trainer.starting_point.fresh
    assert changed
    assert changed <= fresh
    if freeze is None:
        assert changed == fresh
    frozen = [name for name, _ in trainer.model.named_parameters() if name not in fresh]
    assert trainer.starting_point.changed(trainer.model, frozen) == []
    logged = [e["penalty"] for e in trainer.state.log_history if "penalty" in e]
    theta = dict(trainer.model.named_parameters())
    heads = sum(theta[n].square().sum() for n in fresh if "modules_to_save" in n)
    expected = 0.1 * formed(trainer.model) + 0.01 * heads
    assert logged[-1] == pytest.approx(expected.item(), rel=1e-5)


def test_the_pull_shortens_the_product(tmp_path):
    found = []
    for strength in (0.0, 0.3, 100.0):
        trainer = run(tmp_path, LoRASP(lambda_=strength))
        trainer.train()
        found.append(formed(trainer.model).item())
    assert found[0] > found[1] > found[2] > 0


def test_lambda_zero_is_plain_peft(tmp_path):
    found = []
    for penalty in (None, LoRASP(lambda_=0.0)):
        trainer = run(tmp_path, penalty)
        trainer.train()
        found.append(tiny.weights(trainer.model))
    assert tiny.different(*found) == []


def test_resuming_is_not_stopping(tmp_path):
    penalty = LoRASP(lambda_=0.1, head=0.01)
    whole = run(tmp_path / "whole", penalty)
    whole.train()
    run(tmp_path / "cut", penalty, stop=3).train()
    resumed = run(tmp_path / "cut", penalty)
    resumed.train(resume_from_checkpoint=True)
    expected, found = outcome(whole), outcome(resumed)
    assert tiny.different(expected[0], found[0]) == []
    loaded = PeftModel.from_pretrained(tiny.bert(), tmp_path / "cut" / "checkpoint-3")
    assert any("lora_" in name for name in loaded.state_dict())


def test_weight_decay_is_off_on_what_is_pulled(tmp_path):
    trainer = run(tmp_path, LoRASP(lambda_=0.1), weight_decay=0.1)
    names = trainer.get_decay_parameter_names(trainer.model)
    assert not any("lora_" in name for name in names)
    assert any("modules_to_save" in name for name in names)


def test_rules_by_depth_and_infinity(tmp_path):
    """A block's adapters may have a λ of their own; ∞ leaves them at the source."""
    rules = [{"depth": 0, "lambda": math.inf}, {"depth": 1, "lambda": 0.5}]
    trainer = run(tmp_path, LoRASP(lambda_=0.1, rules=rules))
    before = tiny.weights(trainer.model)
    trainer.train()
    changed = tiny.different(before, tiny.weights(trainer.model))
    assert not any("layer.0." in name for name in changed)
    assert any("layer.1." in name for name in changed)
    assert trainer.pull.strength(next(n for n in changed if "layer.1." in n)) == 0.5
    assert trainer.pull.strength(next(n for n in changed if "lora_embedding" in n)) == 0.1
    with pytest.raises(RecipeError, match="factors of one product"):
        run(tmp_path, LoRASP(rules=[{"name": "*lora_A*", "lambda": 1.0}]))
    with pytest.raises(RecipeError, match="no starting point"):
        run(tmp_path, LoRASP(rules=[{"role": "head", "lambda": 1.0}]))
