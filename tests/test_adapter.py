"""A recipe's adapter: LoRA beside a frozen source, trained, resumed, merged into model/."""

import builtins
import json

import pytest
import tiny
import tiny_image_run
import tiny_language
import tiny_run
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from hf_sft import Recipe
from hf_sft.cli import main
from hf_sft.errors import RecipeError
from hf_sft.running import prepare, run
from hf_sft.training_arguments import training_arguments

LORA = {"type": "lora", "r": 4, "lora_alpha": 8}
SP = {"type": "lora-sp", "lambda": 0.001}
TEXT = {"adapter": LORA, "penalty": SP}


def text_run(folder, overrides=(), **blocks):
    return Recipe.load(tiny_run.text_recipe(folder, **{**TEXT, **blocks}), overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    training = {"num_train_epochs": 20, "learning_rate": 0.03}
    adapter = {**LORA, "target_modules": "all-linear"}
    return folder, run(text_run(folder, training=training, adapter=adapter))


def test_it_learns_and_says_what_it_is(done):
    folder, report = done
    told = report.data["adapter"]
    assert {k: told[k] for k in LORA} == LORA
    assert {"attention.self.query", "output.dense"} <= {
        name.partition("layer.0.")[2] or name for name in told["target_modules"]
    } or {"query", "dense"} <= set(told["target_modules"])
    assert 0 < told["trainable_share"] < 1
    assert report.data["metrics"]["test"]["accuracy"] > 0.9
    assert report.data["freeze"]["verified_unchanged"]
    assert report.data["freeze"]["frozen_tensors"] > 30
    assert report.data["retention"]["examples"] > 0
    names = [group["name"] for group in report.data["groups"]]
    assert "bert.encoder.layer.0" in names
    assert all(0 < g["cka"] <= 1.0001 for g in report.data["groups"] if ".layer." in g["name"])
    assert report.data["retention"]["spearman"] < 1
    for page in ("README.md", "report.html"):
        assert "adapters train" in (folder / "out" / page).read_text("utf-8")


def test_the_model_is_merged_and_the_adapter_lies_beside_it(done):
    folder, _ = done
    source = {n: p for n, p in _source(folder).named_parameters() if "classifier" not in n}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "model").eval()
    moved = [n for n, p in model.named_parameters() if n in source and (p != source[n]).any()]
    assert moved
    assert any("query.weight" in name for name in moved)
    assert not any("LayerNorm" in name or "bias" in name or "embeddings" in name for name in moved)
    beside = PeftModel.from_pretrained(_source(folder), folder / "out" / "adapter").eval()
    ids = torch.arange(5, 9)[None]
    assert torch.allclose(model(ids).logits, beside(ids).logits, atol=1e-5)
    written = json.loads((folder / "out" / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert written["base_model_name_or_path"] == "source"
    assert str(folder) not in json.dumps(written)


def test_the_drift_is_that_of_the_merged_weights(done):
    folder, report = done
    source = dict(_source(folder).named_parameters())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "model")
    moved = {n: (p - source[n]).double() for n, p in model.named_parameters() if n in source}
    layer = "bert.encoder.layer.0"
    told = next(group for group in report.data["groups"] if group["name"] == layer)
    expected = sum(float(d.square().sum()) for n, d in moved.items() if n.startswith(layer))
    assert expected > 0
    assert told["drift"] == pytest.approx(expected**0.5, rel=1e-4)


def _source(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder / "source", num_labels=2)


def test_commands_take_the_run_as_any_other(done, capsys):
    folder, report = done
    assert main(["evaluate", str(folder / "out")]) == 0
    assert f"{report.data['metrics']['test']['accuracy']:.4f}" in capsys.readouterr().out
    (folder / "lines.txt").write_text("rose old\noak dry\n", "utf-8")
    given = ["predict", str(folder / "out"), str(folder / "lines.txt")]
    assert main([*given, "--output", str(folder / "found.jsonl")]) == 0
    rows = [json.loads(line) for line in (folder / "found.jsonl").open(encoding="utf-8")]
    classify = pipeline("text-classification", str(folder / "out" / "model"), device="cpu")
    assert [row["label"] for row in rows] == [a["label"] for a in classify(["rose old", "oak dry"])]


def test_resuming_is_not_stopping(tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    kept = {"save_strategy": "steps", "save_steps": 3}
    torch.manual_seed(0)
    tiny_run.source_folder(tmp_path / "whole" / "source")
    (tmp_path / "cut" / "source").symlink_to(tmp_path / "whole" / "source")
    whole = run(text_run(tmp_path / "whole", training=kept))
    with monkeypatch.context() as broken:
        broken.setattr("hf_sft.running.keep_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(text_run(tmp_path / "cut", training=kept))
    last = max((tmp_path / "cut" / "out" / "checkpoints").glob("checkpoint-*"), key=_step)
    assert _step(last) > 3
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    again = run(text_run(tmp_path / "cut", training=kept))
    assert again.data["metrics"]["test"] == whole.data["metrics"]["test"]
    models = [_merged(tmp_path / name) for name in ("whole", "cut")]
    assert tiny.different(*models) == []


def _step(folder):
    return int(folder.name.rpartition("-")[2])


def _merged(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "model")
    return tiny.weights(model)


def test_causal_models(tmp_path):
    torch.manual_seed(0)
    recipe = tiny_language.recipe(tmp_path, task={"generate": 2}, adapter=LORA, penalty=SP)
    report = run(Recipe.load(recipe))
    assert report.data["adapter"]["target_modules"] == ["q_proj", "v_proj"]
    assert len(report.data["tables"]["test"]["generated"]) == 2
    assert report.data["retention"]["by"] == "original head"
    assert report.data["retention"]["kl"] > 0
    assert main(["evaluate", str(tmp_path / "out")]) == 0


def test_a_prior_on_answers_goes_with_it(tmp_path):
    torch.manual_seed(0)
    prior = [SP, {"type": "r3f"}]
    assert run(text_run(tmp_path, penalty=prior, training={"max_steps": 2})).data["adapter"]
    with pytest.raises(RecipeError, match="similarity looks at the source"):
        text_run(tmp_path, penalty={"type": "similarity"})


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"freeze": {"type": "train-last", "count": 1}}, "freeze: with an adapter"),
        ({"penalty": {"type": "l2-sp"}}, "l2-sp looks at the source's own weights.*lora-sp"),
        ({"model": {"anchor": "./source"}}, "model.anchor: with an adapter"),
        ({"adapter": {**LORA, "use_dora": True}}, r"use_dora: no such key.*r, lora_alpha"),
        ({"adapter": {**LORA, "target_modules": "(query"}}, "target_modules: this is no regular"),
        ({"adapter": {**LORA, "r": 0}}, "adapter.r"),
        ({"adapter": {**LORA, "rank": 4}}, "adapter.rank"),
        ({"adapter": {"type": "ia3"}}, "adapter.type"),
    ],
)
def test_what_does_not_go_together_is_told(blocks, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        text_run(tmp_path, **blocks)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"adapter": {**LORA, "target_modules": ["nowhere"]}}, "target_modules.*nowhere"),
        ({"adapter": {**LORA, "target_modules": ["query", "qurey"]}}, "'qurey' fits no.*'query'"),
        (
            {"adapter": {**LORA, "target_modules": ["query", "classifier"]}},
            "'classifier' is new.*Leave it out",
        ),
        ({"adapter": {**LORA, "target_modules": ".*classifier"}}, "'.*classifier' is new"),
        ({"adapter": {**LORA, "target_modules": ["attention"]}}, "no layer of .* that peft adapts"),
        ({"task": {"add_tokens": ["quince"]}}, "task.add_tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_told(blocks, said, tmp_path):
    recipe = text_run(tmp_path, **blocks)
    with pytest.raises(RecipeError, match=said):
        prepare(recipe, training_arguments(recipe))


def test_what_is_new_is_told_where_a_name_fits_it_too(tmp_path, caplog):
    """It trains whole all the same, and lies in adapter/."""
    recipe = text_run(tmp_path, adapter={**LORA, "target_modules": ".*(query|classifier)"})
    prepared = prepare(recipe, training_arguments(recipe))
    assert "classifier is new and trains whole" in caplog.text
    trains = {n for n, p in prepared.trainer.model.named_parameters() if p.requires_grad}
    assert {n for n in trains if "classifier" in n} == {
        f"base_model.model.classifier.modules_to_save.default.{end}" for end in ("weight", "bias")
    }
    assert all("query.lora_" in n for n in trains if "classifier" not in n)


def test_tied_tables_are_refused(tmp_path):
    adapter = {**LORA, "target_modules": ["embed_tokens"]}
    recipe = Recipe.load(tiny_language.recipe(tmp_path, adapter=adapter, penalty=SP))
    with pytest.raises(RecipeError, match="tied"):
        prepare(recipe, training_arguments(recipe))


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **more):
        if name == "peft":
            raise ImportError(name)
        return imported(name, *rest, **more)

    recipe = text_run(tmp_path)
    args = training_arguments(recipe)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"hf-sft\[peft\]"):
        prepare(recipe, args)


def test_images_by_timm(tmp_path):
    """Convolutions named by the recipe; model/ loads without peft, as timm's own folder."""
    adapter = {**LORA, "target_modules": r".*layer\d.*conv[12]"}
    torch.manual_seed(0)
    report = run(Recipe.load(tiny_image_run.image_recipe(tmp_path, adapter=adapter, penalty=SP)))
    assert report.data["adapter"]["trainable_share"] < 1
    assert report.data["freeze"]["verified_unchanged"]
    assert not any("lora" in name for name in load_file(tmp_path / "out/model/model.safetensors"))
    assert main(["evaluate", str(tmp_path / "out")]) == 0


def test_tags_of_words(tmp_path):
    torch.manual_seed(0)
    tiny_run.source_folder(tmp_path / "source")
    lines = "red\tB-flower\nrose\tI-flower\nold\tO\n\noak\tB-tree\nnew\tO\n\n"
    for name in ("train.conll", "test.conll"):
        (tmp_path / name).write_text(lines * 4, "utf-8")
    task = {"type": "token-classification"}
    data = {"type": "conll", "train": "train.conll", "test": "test.conll"}
    path = tiny_run.text_recipe(tmp_path, **TEXT)
    blocks = yaml.safe_load(path.read_text("utf-8")) | {"task": task, "data": data}
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    report = run(Recipe.load(path))
    assert report.data["adapter"]["trainable"] > 0
    assert main(["evaluate", str(tmp_path / "out")]) == 0
