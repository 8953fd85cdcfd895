"""Ranking: the scores are those of the features, one bad candidate stops no other, disk is safe."""

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from test_cli import refused
from tiny import BERT
from tiny_run import ROWS, WORDS, picture, source_folder, text_recipe, write_csv
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

from hf_sft.cli import main
from hf_sft.errors import UserError
from hf_sft.models import ModelSource
from hf_sft.ranking import rank as ranking
from hf_sft.ranking.rank import overrides_among, rank, show
from hf_sft.ranking.transferability import h_score, leep, logme, nce
from hf_sft.recipe import Recipe

LABELS = np.array([label == "tree" for _, label in ROWS]).astype(int)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def recipe(folder):
    return Recipe.load(text_recipe(folder))


def with_head(folder, classes=4):
    """A source with a head of its own, for classes that are not the target's."""
    source_folder(folder)
    settings = {**BERT, "vocab_size": 5 + len(WORDS), "num_labels": classes}
    BertForSequenceClassification(BertConfig(**settings)).save_pretrained(folder)
    return folder


def by_hand(folder, model_class=AutoModel):
    """The model's outputs on the training rows, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")) for text, _ in ROWS]


def test_scores_are_those_of_the_masked_means(recipe, folder):
    (found,) = rank(recipe, ["./source"])
    features = torch.cat([o.last_hidden_state.mean(1) for o in by_hand(folder / "source")])
    assert found.scores["logme"] == pytest.approx(logme(features, LABELS), abs=1e-4)
    assert found.scores["h_score"] == pytest.approx(h_score(features, LABELS), abs=1e-4)
    assert found.scores["leep"] is found.scores["nce"] is None
    assert (found.width, found.stored, found.problem) == (BERT["hidden_size"], False, None)


def test_a_source_with_its_own_head_is_asked_for_its_answers(recipe, folder):
    (found,) = rank(recipe, [str(with_head(folder / "headed"))])
    outputs = by_hand(folder / "headed", BertForSequenceClassification)
    answers = torch.cat([o.logits for o in outputs]).softmax(-1)
    assert found.scores["leep"] == pytest.approx(leep(answers, LABELS), abs=1e-4)
    assert found.scores["nce"] == pytest.approx(nce(answers.argmax(-1), LABELS), abs=1e-4)
    assert found.scores["logme"] is not None


def test_a_head_that_tells_no_classes_apart_is_no_head(recipe, folder):
    (found,) = rank(recipe, [str(with_head(folder / "regression", classes=1))])
    assert found.scores["leep"] is None
    assert found.scores["logme"] is not None


def test_added_tokens_are_ranked_without_the_head_that_never_saw_them(folder):
    with_head(folder / "headed")
    path = text_recipe(folder, task={"type": "text-classification", "add_tokens": ["rose-red"]})
    for stored in (False, True):
        (found,) = rank(Recipe.load(path), ["./headed"])
        assert found.stored == stored
        assert found.scores["leep"] is None
        assert found.scores["logme"] is not None


def test_the_highest_logme_comes_first_and_a_problem_last(recipe, folder):
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        source_folder(folder / f"source{seed}")
    names = ["./gone", *(f"./source{seed}" for seed in (1, 2, 3))]
    found = rank(recipe, names)
    scores = [row.scores["logme"] for row in found[:3]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    assert (found[3].name, found[3].scores) == ("./gone", {})
    assert "'./gone' does not exist" in found[3].problem
    lines = show(found).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [row.name for row in found[:3]]
    assert lines[5].startswith("./gone: ")


def test_none_that_can_be_ranked_is_a_mistake_that_names_them_all(recipe):
    with pytest.raises(UserError, match=r"none can be ranked(.|\n)*\./gone(.|\n)*num_laye"):
        rank(recipe, ["./gone", "{name: ./source, num_layers: 3}"])


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ("{name: ./source", ["no YAML"]),
        ("{nam: ./source}", ["name", "Field required"]),
        ("{name: ./source, keys: sideways}", ["keys", "in-order"]),
        ("{name: ./source, num_hidden_layers: 1}", ["backbone parameters", "layer.1"]),
        ("{name: ./source, num_hidden_layers: 3}", ["has no values", "layer.2"]),
    ],
)
def test_a_candidate_that_is_none_is_told_beside_the_others(recipe, candidate, words):
    good, bad = rank(recipe, [candidate, "./source"])
    assert good.problem is None
    assert [word for word in words if word not in bad.problem] == []


def test_all_forms_of_a_candidate(recipe, folder):
    """A name, YAML, a mapping, a ModelSource; the settings tell them apart in the table."""
    short = "{name: ./source, num_hidden_layers: 1, unused: ['bert.encoder.layer.1.*']}"
    cut = {"name": "./source", "num_hidden_layers": 1, "unused": ["bert.encoder.layer.1.*"]}
    found = rank(recipe, ["./source", short, cut, ModelSource(**cut)])
    assert {row.name for row in found} == {"./source", "./source (num_hidden_layers=1)"}
    assert len({row.scores["logme"] for row in found}) == 2


def test_the_recipes_own_model_is_its_whole_block(folder):
    block = {"name": "./source", "num_hidden_layers": 1, "unused": ["bert.encoder.layer.1.*"]}
    (found,) = rank(Recipe.load(text_recipe(folder, model=block)), ["./source"])
    assert found.name == "./source (num_hidden_layers=1)"


def no_forward(*arguments):
    raise AssertionError("the features were on the disk")


def test_the_second_time_the_features_come_from_the_disk(recipe, folder, monkeypatch):
    (first,) = rank(recipe, ["./source"])
    monkeypatch.setattr(ranking, "extract", no_forward)
    (second,) = rank(recipe, ["./source"])
    assert (first.stored, second.stored) == (False, True)
    assert second.scores == first.scores
    assert "stored" in show([second])


def changed_weights(folder, recipe):
    torch.manual_seed(9)
    source_folder(folder / "source")
    return recipe


def changed_text(folder, recipe):
    write_csv(folder / "train.csv", [("new new", "tree"), *ROWS[1:]])
    return recipe


def fewer_tokens(folder, recipe):
    return Recipe.load(recipe.path, ["task.max_length=3"])


def torn(folder, recipe):
    (path,) = (folder / "home" / "hf_sft" / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    return recipe


@pytest.mark.parametrize("change", [changed_weights, changed_text, fewer_tokens, torn])
def test_what_was_stored_for_something_else_is_not_used(recipe, folder, change):
    (before,) = rank(recipe, ["./source"])
    (after,) = rank(change(folder, recipe), ["./source"])
    assert not after.stored
    assert (after.scores == before.scores) == (change is torn)


def test_other_labels_on_the_same_rows_use_what_is_stored(recipe, folder):
    (before,) = rank(recipe, ["./source"])
    write_csv(folder / "train.csv", [(text, "ab"[i % 2]) for i, (text, _) in enumerate(ROWS)])
    write_csv(folder / "test.csv", [("red new", "a")])
    (after,) = rank(recipe, ["./source"])
    assert after.stored
    assert after.scores != before.scores


def test_image_models_are_ranked_with_their_heads(folder):
    for label, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        for i in range(6):
            tint = tuple(min(255, part + 9 * i) for part in colour)
            picture(folder / "images" / "train" / label / f"{i}.png", tint, (40, 40))
    sources = []
    for name in ("test_resnet", "test_convnext"):
        torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
        sources.append({"name": f"./{name}.pth", "architecture": name})
    path = text_recipe(
        folder,
        task={"type": "image-classification"},
        data=None,
        model={"name": "./gone"},
    )
    overrides = ["data={type: image-folder, path: images}", "data.test_fraction=0.2"]
    found = rank(Recipe.load(path, overrides, opens=["data"]), sources)
    assert [row.problem for row in found] == [None, None]
    assert {row.name for row in found} == {
        f"{s['name']} (architecture={s['architecture']})" for s in sources
    }
    for row in found:
        assert -np.log(2) <= row.scores["nce"] <= 0
        assert -np.log(2) <= row.scores["leep"] <= 0


def test_words_behind_the_candidates_may_be_overrides():
    words = ["a/b", "training.seed=1", "{name: c, x: a=b}", "task.text=[a]", "package:m/d=1"]
    assert overrides_among(words) == (["a/b", words[2], words[4]], [words[1], words[3]])


def test_the_command_prints_the_table_and_touches_nothing_else(recipe, folder, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(folder.parent / "home_elsewhere"))
    before = sorted(folder.rglob("*"))
    words = ["--models", "./source", "./gone", "data.per_class=4"]
    assert main(["rank", str(recipe.path), *words]) == 0
    shown = capsys.readouterr().out
    assert "LogME" in shown
    assert "./source " in shown
    assert "./gone: " in shown
    assert sorted(folder.rglob("*")) == before


def test_the_command_refuses_what_it_cannot_do(recipe, folder, capsys):
    path = recipe.path
    assert "./gone" in refused(capsys, "rank", path, "--models", "./gone")
    assert "penalty.lambda" in refused(capsys, "rank", path, "penalty.lambda=x", "--models", "./a")
    assert "penalty.lambda" in refused(capsys, "rank", path, "--models", "./a", "penalty.lambda=x")
    assert "not understood" in refused(capsys, "rank", path, "--models", "./a", "--fast")
    with pytest.raises(SystemExit) as end:
        main(["rank", str(path)])
    assert end.value.code == 2
