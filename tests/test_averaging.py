"""Ema and Swa: closed forms in float64, training untouched, resuming bit for bit."""

import pytest
import tiny
import torch
from transformers import Trainer, TrainerCallback, TrainerState

from hf_sft import L2SP, TrainLast, TransferTrainer
from hf_sft.errors import SourceError, UserError
from hf_sft.weights.averaging import Ema, Swa

STEPS = 10


class Watch(TrainerCallback):
    """The weights before the first step and after every one."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.seen.append(tiny.weights(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append(tiny.weights(model))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trainer(folder, callbacks, kind="resnet", dtype=torch.float32, freeze=None, **changes):
    build, rows = tiny.KINDS[kind]
    rows = [{k: v.to(dtype) if torch.is_tensor(v) else v for k, v in row.items()}
            for row in rows(40)]  # fmt: skip
    args = tiny.arguments(folder, max_steps=STEPS, save_total_limit=9, **changes)
    return TransferTrainer(
        build().to(dtype), args, train_dataset=rows, penalty=L2SP(lambda_=0.01), fresh=[],
        freeze=freeze, callbacks=callbacks,
    )  # fmt: skip


def averaged(callback, model):
    with callback.swapped(model):
        return tiny.weights(model)


def floats(state):
    return {name: t for name, t in state.items() if t.is_floating_point()}


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_ema_is_its_closed_form(decay, tmp_path):
    """θ̄_T = d^T·θ_0 + (1 − d)·Σ_t d^{T−t}·θ_t."""
    ema, watch = Ema(decay, warm_up=False), Watch()
    run = trainer(tmp_path, [watch, ema], dtype=torch.float64)
    run.train()
    assert ema.count == STEPS
    weights = [decay**STEPS, *((1 - decay) * decay ** (STEPS - t) for t in range(1, STEPS + 1))]
    for name, tensor in floats(averaged(ema, run.model)).items():
        wanted = sum(w * state[name] for w, state in zip(weights, watch.seen, strict=True))
        torch.testing.assert_close(tensor, wanted, rtol=1e-12, atol=1e-14)


def test_warm_up_forgets_the_start_sooner(tmp_path):
    ema, watch = Ema(0.9999), Watch()
    run = trainer(tmp_path, [watch, ema], dtype=torch.float64)
    run.train()
    wanted = floats(watch.seen[0])
    for t, state in enumerate(watch.seen[1:], 1):
        d = min(0.9999, (1 + t) / (10 + t))
        wanted = {name: d * old + (1 - d) * state[name] for name, old in wanted.items()}
    for name, tensor in floats(averaged(ema, run.model)).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("share", "first"), [(0.25, 8), (0.5, 6), (1.0, 1), (0.1, 10)])
def test_swa_is_the_mean_of_the_last_share(share, first, tmp_path):
    swa, watch = Swa(share), Watch()
    run = trainer(tmp_path, [watch, swa], dtype=torch.float64)
    run.train()
    assert swa.count == STEPS + 1 - first
    for name, tensor in floats(averaged(swa, run.model)).items():
        wanted = torch.stack([state[name] for state in watch.seen[first:]]).mean(0)
        torch.testing.assert_close(tensor, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_training_does_not_notice(kind, tmp_path):
    plain = trainer(tmp_path, [], kind)
    plain.train()
    watched = trainer(tmp_path, [Ema(0.9), Swa(0.5)], kind)
    watched.train()
    assert tiny.different(tiny.weights(plain.model), tiny.weights(watched.model)) == []


def test_what_is_frozen_and_what_counts_is_the_models_own(tmp_path):
    ema = Ema(0.9)
    run = trainer(tmp_path, [ema], freeze=TrainLast(count=1))
    before = tiny.weights(run.model)
    run.train()
    after, mean = tiny.weights(run.model), averaged(ema, run.model)
    parameters = {name for name, _ in run.model.named_parameters()}
    assert set(ema.average) & parameters == run.ever_trains
    counters = [name for name in after if name.endswith("num_batches_tracked")]
    assert any(int(after[name]) == STEPS for name in counters)
    assert all(torch.equal(mean[name], after[name]) for name in counters)
    for name in run.frozen:
        assert torch.equal(mean[name], before[name]), name
    assert all(not torch.equal(mean[name], after[name]) for name in run.ever_trains)


def test_the_swap_is_undone_bit_for_bit_also_after_an_error(tmp_path):
    ema = Ema(0.5)
    run = trainer(tmp_path, [ema])
    run.train()
    own = tiny.weights(run.model)
    with ema.swapped(run.model) as model:
        assert model is run.model
        assert tiny.different(own, tiny.weights(model))
    assert tiny.different(own, tiny.weights(run.model)) == []
    with pytest.raises(ZeroDivisionError), ema.swapped(run.model):
        raise ZeroDivisionError
    assert tiny.different(own, tiny.weights(run.model)) == []
    mean = averaged(ema, run.model)
    ema.copy_to_(run.model)
    assert tiny.different(mean, tiny.weights(run.model)) == []


def test_half_precision_weights_are_averaged_in_single(tmp_path):
    ema = Ema(0.9)
    run = trainer(tmp_path, [ema], kind="bert", dtype=torch.bfloat16)
    run.train()
    assert {tensor.dtype for tensor in ema.average.values()} == {torch.float32}
    assert {t.dtype for t in floats(averaged(ema, run.model)).values()} == {torch.bfloat16}


def test_a_plain_trainer_takes_it_as_well(tmp_path):
    ema = Ema(0.9)
    args = tiny.arguments(tmp_path, max_steps=3)
    run = Trainer(tiny.bert(), args, train_dataset=tiny.texts(16), callbacks=[ema])
    run.train()
    assert ema.count == 3


AVERAGES = {"ema": lambda: Ema(0.8), "swa": lambda: Swa(0.5)}


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("kind", AVERAGES)
def test_resuming_goes_on_bit_for_bit(kind, restore, tmp_path):
    whole = AVERAGES[kind]()
    run = trainer(tmp_path / "whole", [whole])
    run.train()
    wanted = averaged(whole, run.model)
    for step in (1, 4, 6, 9):
        folder = tmp_path / f"cut-{step}"
        trainer(folder, [StopAt(step), AVERAGES[kind]()]).train()
        resumed = AVERAGES[kind]()
        settings = {"restore_callback_states_from_checkpoint": restore}
        run = trainer(folder, [resumed], **settings)
        run.train(resume_from_checkpoint=True)
        assert resumed.count == whole.count
        assert tiny.different(wanted, averaged(resumed, run.model)) == [], step


def test_a_checkpoint_elsewhere_is_found_through_the_arguments(tmp_path):
    trainer(tmp_path / "first", [StopAt(4), Ema(0.8)]).train()
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    ema = Ema(0.8)
    run = trainer(tmp_path / "second", [ema], resume_from_checkpoint=checkpoint)
    run.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
    assert ema.count == STEPS


@pytest.mark.parametrize("how", ["torn", "missing", "other settings", "other weights"])
def test_an_average_that_is_not_whole_is_refused(how, tmp_path):
    trainer(tmp_path, [StopAt(4), Ema(0.8)]).train()
    file = tmp_path / "checkpoint-4" / Ema(0.8).file
    ema = Ema(0.7 if how == "other settings" else 0.8)
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "missing":
        file.unlink()
    elif how == "other weights":
        trainer(tmp_path / "other", [StopAt(4), Ema(0.8)], learning_rate=1e-3).train()
        (tmp_path / "other" / "checkpoint-4" / file.name).replace(file)
    with pytest.raises(SourceError, match=r"checkpoint-4.*Resume from an earlier"):
        trainer(tmp_path, [ema]).train(resume_from_checkpoint=True)


def test_a_checkpoint_is_left_without_partial_files(tmp_path):
    trainer(tmp_path, [StopAt(4), Ema(0.8)]).train()
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert "ema-0.8-warm-up.safetensors" in names
    assert not [name for name in names if name.endswith(".partial")]


def test_nothing_averaged_and_wrong_settings_are_told(tmp_path):
    with pytest.raises(UserError, match="averaged nothing"):
        Ema(0.9).copy_to_(tiny.bert())
    swa = Swa(0.2)
    run = trainer(tmp_path, [StopAt(5), swa])
    run.train()
    with pytest.raises(UserError, match="ended before the share"), swa.swapped(run.model):
        pass
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="decay"):
            Ema(wrong)
        with pytest.raises(UserError, match="share_of_training"):
            Swa(wrong - 1)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_shards_are_refused_also_where_the_launcher_makes_them(kind, tmp_path, monkeypatch):
    args = tiny.arguments(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match="Ema needs whole tensors"):
        Ema().on_train_begin(args, TrainerState(), None, tiny.bert())
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "false")
    Ema().on_train_begin(args, TrainerState(), None, tiny.bert())
