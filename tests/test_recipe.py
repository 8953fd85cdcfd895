import pytest
import yaml
from tiny_run import text_recipe

from hf_sft import Recipe
from hf_sft.errors import RecipeError
from hf_sft.recipe_text import apply_override, dump, read


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "source").mkdir()
    return text_recipe(tmp_path)


def parsed(tmp_path, text):
    path = tmp_path / "any.yaml"
    path.write_text(text, "utf-8")
    return read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("2.0e-5", 2e-5), ("1E3", 1000.0), ("-.5", -0.5), (".inf", float("inf")),
     ("3", 3), ("-3", -3), ("007", "007"), ("1_000", "1_000"), ("12:30", "12:30"),
     ("2024-01-01", "2024-01-01"), ("no", "no"), ("yes", "yes"), ("off", "off"), ("on", "on"),
     ("true", True), ("False", False), ("null", None), ("~", None), ("'1e-5'", "1e-5"),
     ("e5", "e5"), ("[1e-5, no]", [1e-5, "no"])],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    found = parsed(tmp_path, f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["1e5", "no", "true", "3", "0.5", "null", "007", "a: b", "ß", ""])
def test_what_is_recorded_reads_back_as_the_same(tmp_path, word):
    raw = {"a": word, "b": [word, 1e-5, True, None, 3], word or "c": {"d": word}}
    assert parsed(tmp_path, dump(raw)) == raw


def test_a_key_may_occur_once(tmp_path):
    with pytest.raises(RecipeError, match=r"any\.yaml.*line 3.*'lr'.*twice"):
        parsed(tmp_path, "training:\n  lr: 1\n  lr: 2\n")


def test_an_anchor_can_be_merged(tmp_path):
    raw = parsed(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert raw["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["", "[1]", "word", "a: [", "a: !!python/object:os.system {}",
                                  "a: {[1]: 2}", "a: b: c"])  # fmt: skip
def test_what_is_no_mapping_is_told_with_the_file(tmp_path, text):
    with pytest.raises(RecipeError, match=r"any\.yaml"):
        parsed(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "any.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"any\.yaml"):
        read(tmp_path / "any.yaml")
    with pytest.raises(RecipeError, match=r"gone\.yaml.*hf-sft list"):
        read(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("override", "value"),
    [("a.b=1e-3", {"a": {"b": 1e-3}, "l": [{"x": 1}, {"x": 2}]}),
     ("a={c: 2}", {"a": {"c": 2}, "l": [{"x": 1}, {"x": 2}]}),
     ("a.b.c=no", None),
     ("l.1.x=[1, 2]", {"a": {"b": 1}, "l": [{"x": 1}, {"x": [1, 2]}]}),
     ("l.0=null", {"a": {"b": 1}, "l": [None, {"x": 2}]}),
     ("n.m.k=a=b", {"a": {"b": 1}, "l": [{"x": 1}, {"x": 2}], "n": {"m": {"k": "a=b"}}}),
     ("a.b=", {"a": {"b": None}, "l": [{"x": 1}, {"x": 2}]})],
)  # fmt: skip
def test_overrides(override, value):
    raw = {"a": {"b": 1}, "l": [{"x": 1}, {"x": 2}]}
    if value is None:
        with pytest.raises(RecipeError, match="'c'.*leads into 1"):
            apply_override(raw, override)
    else:
        apply_override(raw, override)
        assert raw == value


@pytest.mark.parametrize("override", ["a", "=1", ".=1", "a..b=1", "l.2=1", "l.-1=1", "l.x=1", "a=[",
                                      "l.=1", "a={b: 1, b: 2}"])  # fmt: skip
def test_nonsense_overrides_are_quoted(override):
    with pytest.raises(RecipeError) as error:
        apply_override({"a": {"b": 1}, "l": [1, 2]}, override)
    assert repr(override) in str(error.value)


def test_a_good_recipe(recipe):
    found = Recipe.load(recipe, ["penalty.lambda=0.5", "training.save_strategy=no"])
    assert found.penalty[0].lambda_ == 0.5
    assert found.training["save_strategy"] == "no"
    assert found.name == "recipe"
    assert found.selects is False
    assert Recipe.load(recipe, ["early_stopping.patience=2"]).selects


def test_a_block_is_replaced_and_a_list_indexed(recipe):
    found = Recipe.load(recipe, ["penalty=[{type: l2-sp}, {type: l2-sp}]", "penalty.1.lambda=3"])
    assert [p.lambda_ for p in found.penalty][1] == 3
    assert Recipe.load(recipe, ["penalty=null"]).penalty == ()
    assert Recipe.load(recipe, ["freeze={type: train-last, count: 1}"]).freeze.count == 1


def problems(recipe, *overrides):
    with pytest.raises(RecipeError) as error:
        Recipe.load(recipe, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("override", "words"),
    [("traning={}", ["traning", "Did you mean 'training'"]),
     ("task.type=text-clasification", ["task.type", "Did you mean 'text-classification'"]),
     ("task={text: [a]}", ["task", "type", "text-classification"]),
     ("task=word", ["task", "'word'"]),
     ("task=null", ["task", "needed"]),
     ("task.type=[a]", ["task.type", "['a']"]),
     ("task.txt=a", ["task.txt", "Did you mean 'text'"]),
     ("task.text=a", ["task.text", "'a'"]),
     ("data.per_clas=2", ["data.per_clas", "2", "Did you mean 'per_class'"]),
     ("data.per_class=0", ["data.per_class", "greater", "0"]),
     ("data.per_class=true", ["data.per_class", "True"]),
     ("data.test_fraction=1.5", ["data.test_fraction", "1.5"]),
     ("data.split_seed=-1", ["data.split_seed", "-1"]),
     ("data.train=trian.csv", ["data.train", "trian.csv", "does not exist", "'train.csv'"]),
     ("data.train=5", ["data.train", "5"]),
     ("model=x", ["model", "'x'"]),
     ("model=null", ["model", "needed"]),
     ("model.name=./sorce", ["model.name", "./sorce", "Did you mean 'source'"]),
     ("model.name=package:no_such_thing/x", ["model.name", "no_such_thing", "not installed"]),
     ("model.name=package:yaml/x.pth", ["model.name", "'x.pth'", "cyaml.py"]),
     ("model.name=package:yaml/../..", ["model.name", "leaves the folder"]),
     ("model.keys=in-ordr", ["model.keys", "Did you mean 'in-order'"]),
     ("model.sha256=abc", ["model.sha256", "64 hexadecimal digits", "'abc'"]),
     ("penalty.lamda=1", ["penalty.lamda", "Did you mean 'lambda'"]),
     ("penalty.lambda=much", ["penalty.lambda", "'much'"]),
     ("penalty=[{type: l2-sp, lambda: -1}]", ["penalty.0.lambda", "-1"]),
     ("freeze={type: train-lst}", ["freeze.type", "Did you mean 'train-last'"]),
     ("early_stopping={}", ["early_stopping.patience", "needed"]),
     ("early_stopping.patience=0", ["early_stopping.patience", "0"]),
     ("training=5", ["training", "5"]),
     ("training.learning_rat=1", ["training.learning_rat", "Did you mean 'learning_rate'"]),
     ("training.learning_rate=fast", ["training.learning_rate", "'fast'"]),
     ("training.learning_rate=true", ["training.learning_rate", "True"]),
     ("training.learning_rate=-1", ["training.learning_rate", "at least 0"]),
     ("training.learning_rate=.inf", ["training.learning_rate", "inf"]),
     ("training.learning_rate=.nan", ["training.learning_rate", "nan"]),
     ("training.seed=5000000000", ["training.seed", "4294967295"]),
     ("training.max_steps=0", ["training.max_steps", "at least 1", "-1", "found 0"]),
     ("training.max_steps=-2", ["training.max_steps", "at least 1", "-1", "found -2"]),
     ("training.num_train_epochs=0", ["training.num_train_epochs", "above 0", "found 0"]),
     ("training.num_train_epochs=-.inf", ["training.num_train_epochs", "above 0"]),
     ("training.save_steps=0", ["training.save_steps", "above 0", "save_strategy: 'no'"]),
     ("training.logging_steps=0.0", ["training.logging_steps", "above 0", "logging_strategy"]),
     ("training.eval_steps=-5", ["training.eval_steps", "above 0", "eval_strategy: 'no'"]),
     ("training.eval_accumulation_steps=0", ["training.eval_accumulation_steps", "at least 1"]),
     ("training.dataloader_prefetch_factor=0", ["dataloader_prefetch_factor", "at least 1"]),
     ("training.lr_scheduler_type=cosin", ["training.lr_scheduler_type", "Did you mean 'cosine'"]),
     ("training.eval_strategy=epochs", ["training.eval_strategy", "Did you mean 'epoch'"]),
     ("training.optim=adam", ["training.optim", "adamw_torch"]),
     ("training.metric_for_best_model=acuracy", ["metric_for_best_model", "'accuracy'", "loss"]),
     ("training.bf16=3.5", ["training.bf16", "3.5"])],
)  # fmt: skip
def test_one_problem_one_line_with_place_and_value(recipe, override, words):
    lines = problems(recipe, override)
    assert len(lines) == 1
    assert lines[0].startswith("override: ")
    assert [word for word in words if word not in lines[0]] == []


def test_a_problem_says_whether_the_file_or_an_override_has_it(recipe):
    recipe.write_text(recipe.read_text("utf-8").replace("type: l2-sp", "type: l2sp"), "utf-8")
    found = problems(recipe, "data.per_class=0")
    assert sorted(line.partition(": ")[0] for line in found) == ["override", "recipe.yaml"]


@pytest.mark.parametrize("value", ["max_steps=-1", "max_steps=1", "num_train_epochs=0.5",
                                   "save_steps=0.1", "logging_steps=1", "eval_steps=0.25",
                                   "eval_steps=null"])  # fmt: skip
def test_the_least_that_trainer_understands_is_taken(recipe, value):
    key = value.partition("=")[0]
    assert key in Recipe.load(recipe, [f"training.{value}"]).training


def test_a_type_changed_alone_is_told_with_how_to_change_the_block(recipe):
    remedy = "to change the whole block: 'penalty={type: similarity}'"
    (line,) = problems(recipe, "penalty.type=similarity")
    assert line.startswith("recipe.yaml: penalty.lambda: no such key")
    assert "Choices of type 'similarity': weight" in line
    assert remedy in line
    both = problems(recipe, "penalty.type=similarity", "penalty.lambda=1")
    assert len(both) == 1
    assert remedy not in both[0]  # it would not help against the other override
    assert Recipe.load(recipe, ["penalty={type: similarity}"]).penalty[0].type == "similarity"


def test_a_type_in_place_of_its_block_is_told_with_the_block(recipe):
    (line,) = problems(recipe, "penalty=l2-sp")
    assert line.endswith("found 'l2-sp'. Write {type: l2-sp}.")


def test_broken_yaml_is_told_where_it_is(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"in any\.yaml, line 2, column 5"):
        parsed(tmp_path, "a: 1\nb: c: d\n")
    with pytest.raises(RecipeError, match="in the value, line 1"):
        apply_override({}, "a=b: c: d")


def test_all_problems_at_once(recipe):
    lines = problems(
        recipe,
        "traning={}",
        "nonsense",
        "data.per_clas=1",
        "data.train=gone.csv",
        "data.test=lost.csv",
        "model.name=./missing",
        "penalty.lambda=x",
        "training.learning_rate=x",
        "training.optim=x",
    )
    text = "\n".join(lines)
    places = ["traning", "nonsense", "per_clas", "gone.csv", "lost.csv", "missing",
              "penalty.lambda", "learning_rate", "optim"]  # fmt: skip
    assert [place for place in places if place not in text] == []
    assert len(lines) == len(places)


def test_relative_data_starts_at_the_recipe_then_below_the_data_folder(
    recipe, tmp_path, monkeypatch
):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "far.csv").write_text("text,label\na,b\n")
    monkeypatch.delenv("HF_SFT_DATA", raising=False)
    assert "set HF_SFT_DATA" in problems(recipe, "data.train=far.csv")[0]
    monkeypatch.setenv("HF_SFT_DATA", str(other))
    found = Recipe.load(recipe, ["data.train=far.csv"])
    assert found.locate("far.csv") == other / "far.csv"
    assert found.locate("train.csv") == tmp_path / "train.csv"  # the recipe's own folder first


def test_a_key_that_is_no_word(recipe):
    raw = yaml.safe_load(recipe.read_text())
    raw["data"][3] = 4
    recipe.write_text(yaml.safe_dump(raw))
    assert "data" in problems(recipe)[0]


def test_a_token_in_a_recipe_is_refused_and_not_repeated(recipe):
    with pytest.raises(RecipeError, match="training.hub_token") as refused:
        Recipe.load(recipe, ["training.hub_token=hf_secret"])
    assert "hf_secret" not in str(refused.value)
