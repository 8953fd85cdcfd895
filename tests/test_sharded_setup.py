"""What is said and refused where a training is to be sharded."""

import logging
from types import SimpleNamespace

import pytest
import tiny
import yaml

from hf_sft import L2SP, Gradual, LoRASP, LwF, Mixout, TrainLast, TransferTrainer
from hf_sft.cli_recipes import recipes_folder
from hf_sft.errors import UserError
from hf_sft.freezing import TrainAll
from hf_sft.processes import refuse_sharded
from hf_sft.training.sharded_setup import parameters_are_known, settle_sharding

PLUGIN = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}


def sharded(fsdp=False, deepspeed=False, **plugin):
    """What `settle_sharding` looks at of a trainer on an accelerator, which is not there."""
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**{**PLUGIN, **plugin}))
    return SimpleNamespace(
        args=SimpleNamespace(fsdp=fsdp, world_size=2, device=SimpleNamespace(type="cuda")),
        is_fsdp_enabled=fsdp,
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(state=state),
    )


@pytest.mark.parametrize(("penalty", "policy"), [([L2SP()], TrainAll()), ([], TrainLast(count=1))])
def test_deepspeed_is_refused_with_the_reason(penalty, policy):
    with pytest.raises(UserError, match="inside the backward pass"):
        settle_sharding(sharded(deepspeed=True), penalty, policy)
    settle_sharding(sharded(deepspeed=True), [], TrainAll())  # plain Trainer's own business


@pytest.mark.parametrize(
    ("penalty", "policy", "plugin", "told"),
    [
        (L2SP(), None, {"fsdp_version": 1}, "fsdp_version: 1"),
        (L2SP(), None, {"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
        (L2SP(), None, {"activation_checkpointing": True}, "training.gradient_checkpointing"),
        (LwF(), None, {}, "lwf copies the whole source"),
        (Mixout(), None, {}, "mixout mixes whole weights"),
        (LoRASP(), None, {}, "lora-sp multiplies factors"),
        (L2SP(), Gradual(), {}, "gradual changes what trains"),
    ],
)
def test_what_cannot_act_on_rows_is_refused(penalty, policy, plugin, told):
    with pytest.raises(UserError, match=told):
        settle_sharding(sharded(fsdp=True, **plugin), [penalty], policy or TrainAll())


def test_everything_wrong_is_told_at_once():
    wrong = sharded(fsdp=True, fsdp_version=1, cpu_ram_efficient_loading=True)
    with pytest.raises(UserError) as told:
        settle_sharding(wrong, [Mixout()], Gradual())
    assert str(told.value).count("\n- ") == 4


def test_what_acts_on_rows_is_taken():
    settle_sharding(sharded(fsdp=True), [L2SP()], TrainLast(count=1))


def test_fsdp_that_is_not_active_is_said(monkeypatch, tmp_path, caplog):
    """As ``accelerate launch --config_file recipes/accelerate/fsdp2.yaml`` starts it on a CPU."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with caplog.at_level(logging.WARNING):
        args = tiny.arguments(tmp_path)
        trainer = TransferTrainer(
            tiny.bert(), args, train_dataset=tiny.texts(8), penalty=L2SP(), fresh=()
        )
    assert not trainer.is_fsdp_enabled
    assert "FSDP was asked for and is not active on CPU" in caplog.text
    assert "in one process" in caplog.text


def test_nobody_who_did_not_ask_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), penalty=L2SP(), fresh=())
    assert "FSDP" not in caplog.text


@pytest.mark.parametrize(("kind", "told"), [("fsdp", "FSDP"), ("deepspeed", "DeepSpeed")])
def test_a_recipes_run_is_refused(kind, told):
    with pytest.raises(UserError, match=rf"under {told}:.*gpu_multi\.yaml"):
        refuse_sharded(sharded(**{kind: True}))
    refuse_sharded(sharded())


def test_where_parameters_can_be_looked_at():
    """The drift that trackers hear is measured there only: `Tracked`."""
    assert parameters_are_known(sharded())
    assert parameters_are_known(sharded(fsdp=True))
    assert not parameters_are_known(sharded(deepspeed=True))
    for plugin in ({"fsdp_version": 1}, {"activation_checkpointing": True}):
        assert not parameters_are_known(sharded(fsdp=True, **plugin))


def test_the_shipped_configuration_is_one_that_is_taken():
    found = yaml.safe_load((recipes_folder() / "accelerate" / "fsdp2.yaml").read_text("utf-8"))
    config = {key.removeprefix("fsdp_"): value for key, value in found["fsdp_config"].items()}
    wanted = {
        "fsdp_version": config.pop("version"),
        **{k: config[k] for k in config.keys() & PLUGIN},
    }
    settle_sharding(sharded(fsdp=True, **wanted), [L2SP()], TrainAll())
    assert wanted["fsdp_version"] == 2
    assert wanted["cpu_ram_efficient_loading"] is False
