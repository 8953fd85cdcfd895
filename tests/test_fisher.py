"""Diagonal Fisher information against closed forms; Fisher-SP, its cache and its trainings."""

import json
import logging
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_resume import StopAt, outcome
from torch import nn

from hf_sft import L2SP, FisherSP, StartingPoint, TransferTrainer, diagonal_fisher
from hf_sft.errors import RecipeError, UserError
from hf_sft.training import fisher_cache

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of Hugging Face of this test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hf_sft" / "fisher"


class Logistic(nn.Module):
    """softmax(Wx + b) over inputs called x."""

    def __init__(self, features=4, classes=3):
        super().__init__()
        self.linear = nn.Linear(features, classes).double()

    def forward(self, x, **_):
        return self.linear(x)


def inputs(count, features=4):
    return torch.randn(count, features, dtype=torch.float64)


def closed_form(model, x):
    """F of W_kj is E[p_k(1 − p_k)·x_j²], of b_k E[p_k(1 − p_k)]."""
    p = model(x).softmax(-1)
    spread = p * (1 - p)
    return {
        "linear.weight": (spread.unsqueeze(2) * x.square().unsqueeze(1)).mean(0),
        "linear.bias": spread.mean(0),
    }


# ---- closed forms ----


def test_logistic_regression():
    """T18: the exact sum is the closed form."""
    model, x = Logistic(), inputs(50)
    found, expected = diagonal_fisher(model, [{"x": x}]), closed_form(model, x)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-12), name


@pytest.mark.parametrize("size", [1, 7, 50])
def test_gradients_are_those_of_single_examples(size):
    """Whatever the batches; the square of a batch's mean gradient would shrink with them."""
    model, x = Logistic(), inputs(50)
    found = diagonal_fisher(model, [{"x": part} for part in x.split(size)])
    whole = diagonal_fisher(model, [{"x": x}])
    assert all(torch.allclose(found[n], whole[n], rtol=1e-12) for n in whole)


def test_the_exact_sum_is_the_sum_over_labels_of_a_network():
    """Σ_y p(y|x)·(∂ log p(y|x))² by autograd of one label after the other."""
    model, rows = tiny.bert().double().eval(), tiny.texts(3)
    batch = {k: torch.tensor([row[k] for row in rows]) for k in ("input_ids", "attention_mask")}
    found = diagonal_fisher(model, [batch])
    parameters = dict(model.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(3):
        for label in range(tiny.LABELS):
            row = {k: v[i : i + 1] for k, v in batch.items()}
            log_p = model(**row).logits.log_softmax(-1)[0, label]
            gradients = torch.autograd.grad(log_p, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                expected[name] += log_p.exp().detach() * gradient.square() / 3
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-10, atol=1e-18), name
    assert all(p.grad is None for p in model.parameters())


def test_drawn_labels_are_unbiased():
    """Within 5 standard errors of the exact sum, and not exact."""
    model, x, draws = Logistic(), inputs(1), 2000
    exact = diagonal_fisher(model, [{"x": x}])
    found = diagonal_fisher(model, [{"x": x.expand(draws, -1)}], estimator="sampled")
    p = model(x).softmax(-1)[0].detach()
    for name, share in (("linear.weight", x[0].square()), ("linear.bias", torch.ones(1))):
        # (1[y = k] − p_k)² has the variance p_k(1 − p_k)(1 − 2p_k)²
        deviation = (p * (1 - p)).sqrt() * (1 - 2 * p).abs() / draws**0.5
        error = (found[name] - exact[name]).abs()
        limit = 5 * (deviation.unsqueeze(1) * share if name == "linear.weight" else deviation)
        assert (error <= limit).all(), name
        assert (error > 0).all()


def test_positions_are_drawn_one_by_one_and_padding_is_left_out():
    """log p of a sentence is a sum over its positions: F of drawn labels is Σ_t F_t."""

    class Tagger(Logistic):
        def forward(self, x, attention_mask=None):
            return self.linear(x)

    model, x, draws = Tagger(), inputs(5).unsqueeze(0), 2000
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    found = diagonal_fisher(
        model,
        [{"x": x.expand(draws, -1, -1), "attention_mask": mask.expand(draws, -1)}],
        estimator="sampled",
    )
    expected = closed_form(model, x[0, :3])
    for name in expected:
        assert torch.allclose(found[name], 3 * expected[name], rtol=0.15), name
    with pytest.raises(UserError, match="one answer per example.*5.*sampled"):
        diagonal_fisher(model, [{"x": x}])


def test_label_free_is_the_squared_jacobian_of_the_embedding():
    """Σ_m (∂_j e_m)², within the Monte Carlo error of the random signs."""
    model, rows = tiny.bert().eval(), tiny.texts(1)
    row = {k: torch.tensor([rows[0][k]]) for k in ("input_ids", "attention_mask")}
    many = {k: v.expand(300, -1) for k, v in row.items()}
    names = ["bert.embeddings.LayerNorm.weight", "bert.encoder.layer.1.output.LayerNorm.weight"]
    at = {name: dict(model.named_parameters())[name] for name in names}
    found = diagonal_fisher(model, [many], at, "label-free")
    parameters = list(at.values())
    embedding = model.bert(**row).last_hidden_state.mean(1)[0]
    expected = [torch.zeros_like(p) for p in parameters]
    for value in embedding:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True)
        expected = [e + g.square() for e, g in zip(expected, gradients, strict=True)]
    for name, exact in zip(names, expected, strict=True):
        assert torch.allclose(found[name], exact, rtol=0.35), name
        assert found[name].sum().item() == pytest.approx(exact.sum().item(), rel=0.1)


def test_labels_of_the_data_and_random_state_do_not_matter():
    model, rows = tiny.bert(0.3).eval(), tiny.texts(4)
    batch = {k: torch.tensor([row[k] for row in rows]) for k in rows[0]}
    found = []
    for seed, labels in ((1, batch["labels"]), (2, 0 * batch["labels"])):
        torch.manual_seed(seed)
        found.append(diagonal_fisher(model, [{**batch, "labels": labels}], estimator="sampled"))
    assert tiny.different(*found) == []
    other = diagonal_fisher(model, [batch], estimator="sampled", seed=1)
    assert tiny.different(found[0], other)


def test_the_point_can_be_another_than_the_weights():
    """At θ⁰ while the model has moved, and the model stays as it is."""
    model, x = Logistic(), inputs(6)
    expected = diagonal_fisher(model, [{"x": x}])
    at = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.linear.weight.add_(1)
    before = tiny.weights(model)
    found = diagonal_fisher(model, [{"x": x}], at)
    assert tiny.different(expected, found) == []
    assert tiny.different(before, tiny.weights(model)) == []
    assert tiny.different(expected, diagonal_fisher(model, [{"x": x}]))


def test_tied_weights_have_the_information_of_both_places():
    model = tiny.gpt2().eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5]])}
    found = diagonal_fisher(model, [batch], estimator="sampled")
    assert "lm_head.weight" not in found
    at = {"transformer.wte.weight": model.transformer.wte.weight}
    alone = diagonal_fisher(model, [batch], at, "sampled")["transformer.wte.weight"]
    assert torch.equal(found["transformer.wte.weight"], alone)
    assert (alone > 0).all()  # through the output layer every word's row matters


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", "one class"])
def test_no_distribution_over_classes_is_told(kind):
    model = tiny.bert().eval()
    if kind == "one class":
        model.classifier = nn.Linear(16, 1)
    else:
        model.config.problem_type = kind
    batch = {"input_ids": torch.tensor([[3, 4, 5]])}
    with pytest.raises(UserError, match="label-free"):
        diagonal_fisher(model, [batch])
    diagonal_fisher(model, [batch], estimator="label-free")
    with pytest.raises(UserError, match="no example"):
        diagonal_fisher(model, [])


# ---- the prior ----


def test_normalised_damped_and_weighing():
    model, x = Logistic(), inputs(20)
    start = StartingPoint.of(model, fresh=())
    raw = diagonal_fisher(model, [{"x": x}])
    mean = torch.cat([f.flatten() for f in raw.values()]).mean()
    prior = FisherSP(lambda_=0.5, damping=0.25)
    start.fisher = prior.weights(diagonal_fisher(model, [{"x": x}]), start)
    for name, f in start.fisher.items():
        assert torch.allclose(f, raw[name] / mean + 0.25, rtol=1e-12)
    unscaled = FisherSP(normalize=False).weights(diagonal_fisher(model, [{"x": x}]), start)
    assert tiny.different(raw, unscaled) == []
    with torch.no_grad():
        model.linear.weight.add_(torch.randn_like(model.linear.weight))
    d = model.linear.weight - start.copies["linear.weight"]
    value = prior.value(dict(model.named_parameters()), start)
    expected = 0.5 * (start.fisher["linear.weight"] * d.square()).sum()
    assert torch.allclose(value, expected, rtol=1e-12)


def test_damping_is_an_l2_sp_beside_it():
    """λΣ(F + ε)d² = λΣFd² + λε‖d‖²."""
    model, x = Logistic(), inputs(20)
    start, other = (StartingPoint.of(model, fresh=()) for _ in range(2))
    start.fisher = FisherSP().weights(diagonal_fisher(model, [{"x": x}]), start)
    other.fisher = FisherSP(damping=0.3).weights(diagonal_fisher(model, [{"x": x}]), other)
    with torch.no_grad():
        model.linear.weight.add_(1)
    theta = dict(model.named_parameters())
    both = FisherSP(lambda_=0.7).value(theta, start) + L2SP(lambda_=0.7 * 0.3).value(theta, start)
    assert torch.allclose(FisherSP(lambda_=0.7, damping=0.3).value(theta, other), both, rtol=1e-12)


def test_the_mean_is_over_the_rows_from_the_source():
    model = nn.Module()
    model.words = nn.Embedding(6, 2)
    start = StartingPoint.of(model, fresh=(), rows={"words.weight": 4})
    fisher = torch.ones(6, 2)
    fisher[:4], fisher[4:] = 2.0, 100.0
    assert (FisherSP().weights({"words.weight": fisher}, start)["words.weight"][:4] == 1).all()


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_no_information_is_told(value):
    """F → 0 would be plain fine-tuning without a word."""
    start = StartingPoint.of(Logistic(), fresh=())
    with pytest.raises(UserError, match="mean of F.*label-free"):
        FisherSP().weights({"linear.bias": torch.full((3,), value)}, start)


def test_a_loop_of_its_own_is_told_what_to_do():
    model = Logistic()
    start = StartingPoint.of(model, fresh=())
    with pytest.raises(UserError, match="start.fisher = penalty.weights"):
        FisherSP().value(dict(model.named_parameters()), start)


# ---- a training ----


def trainer(folder, penalty=None, model=None, fresh=(), rows=None, stop=None, **changes):
    settings = {k: changes.pop(k) for k in ("source",) if k in changes}
    return TransferTrainer(
        tiny.bert(0.2) if model is None else model,
        tiny.arguments(folder, **changes),
        train_dataset=tiny.texts(24) if rows is None else rows,
        penalty=FisherSP(lambda_=0.1, samples=6) if penalty is None else penalty,
        fresh=fresh,
        callbacks=[StopAt(stop)] if stop else [],
        **settings,
    )


def expected_fisher(model, count=6, seed=0, **settings):
    """Over the examples the trainer draws."""
    rows = tiny.texts(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    batches = [{k: torch.tensor([rows[i][k]]) for k in rows[i]} for i in order]
    return diagonal_fisher(model.eval(), batches, **settings)


def test_training_pulls_with_the_information_at_the_source(tmp_path):
    run = trainer(tmp_path)
    run.train()
    start, raw = run.starting_point, expected_fisher(tiny.bert())
    expected = FisherSP().weights(raw, start)
    assert start.fisher.keys() == start.copies.keys()
    assert all(torch.allclose(start.fisher[n], expected[n], rtol=1e-5) for n in expected)
    logged = [e["penalty"] for e in run.state.log_history if "penalty" in e]
    assert logged[-1] > 0


def test_the_fisher_of_a_run_disturbs_nothing(tmp_path):
    """λ = 0: weights, random state and modes are those of a run without it."""
    found = []
    for penalty in (L2SP(lambda_=0.0), FisherSP(lambda_=0.0, samples=4, estimator="sampled")):
        torch.manual_seed(3)
        run = trainer(tmp_path, penalty)
        run.train()
        found.append({**tiny.weights(run.model), "rng": torch.get_rng_state()})
    assert tiny.different(*found) == []


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
@pytest.mark.parametrize("estimator", ["true", "sampled", "label-free"])
def test_resuming_is_not_stopping(estimator, apply, tmp_path, monkeypatch):
    """Bit for bit, also where the cache is lost in between: F is that of θ⁰, not of the weights."""
    penalty = FisherSP(lambda_=1.0, samples=4, estimator=estimator, apply=apply)
    whole = trainer(tmp_path / "whole", penalty)
    whole.train()
    tensors, schedule, _ = outcome(whole)
    trainer(tmp_path / "cut", penalty, stop=4).train()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "another"))
    torch.manual_seed(9)
    resumed = trainer(tmp_path / "cut", penalty)
    resumed.train(resume_from_checkpoint=True)
    found = outcome(resumed)
    assert tiny.different(tensors, found[0]) == []
    assert found[1] == schedule
    assert tiny.different(whole.starting_point.fisher, resumed.starting_point.fisher) == []
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert tiny.different(whole.starting_point.fisher, resumed.starting_point.fisher) == []
    assert tiny.different(tensors, outcome(resumed)[0]) == []


def test_the_model_may_have_moved_and_its_statistics_may_not(tmp_path, monkeypatch):
    moved = trainer(tmp_path / "a")
    with torch.no_grad():
        moved.model.bert.pooler.dense.weight.add_(1)
    moved.train()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "another"))
    still = trainer(tmp_path / "b")
    still.train()
    assert tiny.different(moved.starting_point.fisher, still.starting_point.fisher) == []
    images = trainer(tmp_path / "c", model=tiny.resnet(), rows=tiny.images(8))
    next(b for n, b in images.model.named_buffers() if n.endswith("running_mean")).add_(1)
    with pytest.raises(UserError, match="running_mean moved"):
        images.train()


# ---- which estimator ----


def test_a_new_head_knows_nothing(tmp_path, caplog):
    """Label-free without being asked, and by name where something else is asked."""
    with caplog.at_level(logging.INFO, logger="hf_sft"):
        run = trainer(tmp_path, fresh=HEAD)
        run.train()
    assert "(label-free)" in caplog.text
    assert not HEAD & run.starting_point.fisher.keys()
    assert run.starting_point.fisher["bert.pooler.dense.weight"].abs().max() == 0  # below no label
    for estimator in ("true", "sampled"):
        asked = trainer(tmp_path, FisherSP(estimator=estimator, samples=2), fresh=HEAD)
        with pytest.raises(UserError, match="without a head.*label-free"):
            asked.train()


def test_the_source_is_asked_through_its_own_head(tmp_path):
    """Another number of classes than the task's; neither weights nor place of it change."""
    torch.manual_seed(5)
    source = type(tiny.bert())(tiny.bert().config.__class__(**{**tiny.BERT, "num_labels": 7}))
    model = tiny.bert()
    model.bert.load_state_dict(source.bert.state_dict())
    before = tiny.weights(source)
    run = trainer(tmp_path, model=model, fresh=HEAD, source=source)
    run.train()
    names = run.starting_point.copies
    at = {name: dict(source.named_parameters())[name] for name in names}
    expected = FisherSP().weights(expected_fisher(source, at=at), run.starting_point)
    assert all(
        torch.allclose(run.starting_point.fisher[n], expected[n], rtol=1e-5, atol=1e-9)
        for n in expected
    )
    assert tiny.different(before, tiny.weights(source)) == []


@pytest.mark.parametrize(("kind", "chosen"), [("bert", "true"), ("bert-tokens", "sampled"),
                                              ("gpt2", "sampled"), ("vit", "true"),
                                              ("resnet", "true"), ("t5", "sampled")])  # fmt: skip
def test_every_kind_of_model(kind, chosen, tmp_path, caplog):
    build, rows = tiny.KINDS[kind]
    with caplog.at_level(logging.INFO, logger="hf_sft"):
        run = trainer(tmp_path, FisherSP(samples=2), build(), rows=rows(8), max_steps=1)
        run.train()
    assert f"({chosen})" in caplog.text


def test_two_metrics_are_refused(tmp_path):
    run = trainer(tmp_path, [FisherSP(samples=2), FisherSP(samples=3)])
    with pytest.raises(RecipeError, match="keep one"):
        run.train()


# ---- the cache ----


def counted(monkeypatch):
    """How often F is really computed."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return diagonal_fisher(*args, **kwargs)

    monkeypatch.setattr("hf_sft.training.prior_data.diagonal_fisher", counting)
    return calls


def test_the_same_is_computed_once(tmp_path, cache, monkeypatch):
    calls, found = counted(monkeypatch), []
    for _ in range(2):
        run = trainer(tmp_path)
        run.train()
        found.append(run.starting_point.fisher)
    assert len(calls) == 1
    assert len(list(cache.iterdir())) == 1
    assert tiny.different(*found) == []


def test_everything_it_depends_on_makes_it_another(tmp_path, cache, monkeypatch):
    calls = counted(monkeypatch)
    other = tiny.bert(0.2)
    other.bert.pooler.dense.bias.data[0] += 1e-3
    rows = tiny.texts(24)
    rows[0] = {**rows[0], "input_ids": rows[1]["input_ids"]}
    whole = {"samples": 24, "lambda": 0.1}
    for changes in (
        {"penalty": FisherSP(**whole)},
        {"penalty": FisherSP(**{**whole, "samples": 23})},
        {"penalty": FisherSP(**whole, seed=1)},
        {"penalty": FisherSP(**whole, estimator="sampled")},
        {"penalty": FisherSP(**whole), "model": other},
        {"penalty": FisherSP(**whole), "rows": rows},
    ):
        trainer(tmp_path, max_steps=1, **changes).train()
    assert len(calls) == len(list(cache.iterdir())) == 6
    trainer(tmp_path, FisherSP(**whole, damping=1.0, normalize=False), max_steps=1).train()
    assert len(calls) == 6  # raw F is kept: these two do not matter


@pytest.mark.parametrize("harm", ["cut", "empty", "bit", "other"])
def test_a_torn_entry_is_never_used(harm, tmp_path, cache, monkeypatch):
    calls = counted(monkeypatch)
    first = trainer(tmp_path, max_steps=1)
    first.train()
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "empty":
        content = bytearray()
    elif harm == "bit":
        content[-5] ^= 1
    else:
        tensors = load_file(path)
        fisher_cache._save(path, tensors, json.dumps({"another": 1}))
        content = bytearray(path.read_bytes())
    path.write_bytes(bytes(content))
    again = trainer(tmp_path, max_steps=1)
    again.train()
    assert len(calls) == 2
    assert tiny.different(first.starting_point.fisher, again.starting_point.fisher) == []
    trainer(tmp_path, max_steps=1).train()
    assert len(calls) == 2  # and it was mended


def test_a_crash_while_writing_leaves_nothing(tmp_path, cache, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sft.training.fisher_cache.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).train()
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file"))
    run = trainer(tmp_path)
    run.train()
    assert run.starting_point.fisher
    assert "not kept" in caplog.text
