"""multiple-choice: one score for each ending, accuracy, and whole runs on tiny models."""

import csv
import json
import random
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, disable_progress_bars
from tiny_run import source_folder
from transformers import AutoModelForMultipleChoice, AutoTokenizer, BertForMultipleChoice

from hf_sft import LayerGroups
from hf_sft.cli import main
from hf_sft.embeddings import embed
from hf_sft.errors import DataError
from hf_sft.recipe import Recipe
from hf_sft.running import run
from hf_sft.tasks import MultipleChoice
from hf_sft.training.trainer import TransferTrainer

disable_progress_bars()
FLOWERS, TREES = ["rose", "tulip"], ["oak", "elm", "pine"]
ENDINGS = [f"ending{i}" for i in range(4)]


def example(number):
    """The flower among trees is the right ending."""
    draw = random.Random(number)
    endings, right = [draw.choice(TREES) for _ in ENDINGS], draw.randrange(4)
    endings[right] = draw.choice(FLOWERS)
    row = {"sent1": "old red", "sent2": "new", **dict(zip(ENDINGS, endings, strict=True))}
    return {**row, "label": right}


def examples(count, first=0):
    return [example(number) for number in range(first, first + count)]


def checked(rows, **settings):
    data = DatasetDict(train=Dataset.from_list(rows))
    return MultipleChoice(**settings).check(data)["train"]


def refused(rows, **settings):
    with pytest.raises(DataError) as error:
        checked(rows, **settings)
    return str(error.value)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(source_folder(tmp_path_factory.mktemp("bert")))


def test_every_ending_is_a_sequence_with_its_context(tokenizer):
    task, rows = MultipleChoice(), checked(examples(3))
    encoded = task.encode(rows, tokenizer, None)
    for row, given in zip(encoded, rows, strict=True):
        for ids, ending in zip(row["input_ids"], ENDINGS, strict=True):
            assert ids == tokenizer("old red", f"new {given[ending]}")["input_ids"]
    batch = task.collator(tokenizer)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4, 7)
    assert batch["labels"].tolist() == rows["label"][:2]
    assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_endings_of_other_lengths_are_padded_and_cut(tokenizer):
    rows = [{"sent1": "red", "sent2": "", "a": "oak " * 30, "b": "elm", "label": 1}]
    task = MultipleChoice(endings=["a", "b"], max_length=6)
    encoded = task.encode(checked(rows, endings=["a", "b"]), tokenizer, None)
    assert [len(ids) for ids in encoded[0]["input_ids"]] == [6, 5]
    batch = task.collator(tokenizer)([encoded[0]])
    assert batch["attention_mask"].sum(-1).tolist() == [[6, 5]]


def test_without_a_question_the_ending_is_the_answer(tokenizer):
    task = MultipleChoice(question=None, endings=["a", "b"])
    rows = Dataset.from_list([{"sent1": "red", "a": "oak", "b": "elm"}])
    encoded = task.encode(rows, tokenizer, None)
    assert encoded[0]["input_ids"][1] == tokenizer("red", "elm")["input_ids"]
    assert "labels" not in encoded.column_names


@pytest.mark.parametrize("value", [-1, 4, "x", None, 1.5])
def test_a_label_that_is_no_ending(value):
    rows = [{**example(0), "label": value}]
    message = refused(rows)
    assert f"data.train row 1: 'label' is {value!r}, not the number of an ending, 0 to 3" in message


SPELLED = {
    "letters": lambda row: "ABCD"[row["label"]],
    "small letters": lambda row: "abcd"[row["label"]],
    "words of digits": lambda row: str(row["label"]),
    "from one": lambda row: row["label"] + 1,
    "words from one": lambda row: str(row["label"] + 1),
    "texts": lambda row: row[ENDINGS[row["label"]]],
}


@pytest.mark.parametrize("form", SPELLED)
def test_answers_are_numbers_however_they_are_spelled(form):
    rows = examples(20)
    assert {row["label"] for row in rows} == {0, 1, 2, 3}
    found = checked([{**row, "label": SPELLED[form](row)} for row in rows])
    assert found["label"][:] == [row["label"] for row in rows]


def test_letters_of_the_hub_are_places():
    rows = Dataset.from_list([{**row, "label": 3 - row["label"]} for row in examples(20)])
    data = DatasetDict(train=rows.cast_column("label", ClassLabel(names=list("DCBA"))))
    found = MultipleChoice().check(data)["train"]["label"][:]
    assert found == [row["label"] for row in examples(20)]


def as_lists(row):
    """The endings in one column of lists, as RACE has them, and below a name, as ARC."""
    endings = [row[name] for name in ENDINGS]
    row = {"sent1": row["sent1"], "sent2": row["sent2"], "label": "ABCD"[row["label"]]}
    return {**row, "options": endings, "choices": {"text": endings, "label": list("ABCD")}}


@pytest.mark.parametrize("column", ["options", "choices.text"])
def test_endings_in_one_column_are_those_in_several(tmp_path, capsys, tokenizer, column):
    rows = [as_lists(row) for row in examples(40)]
    task, usual = MultipleChoice(endings=column), MultipleChoice()
    encoded = task.encode(checked(rows, endings=column), tokenizer, None)
    assert encoded.to_dict() == usual.encode(checked(examples(40)), tokenizer, None).to_dict()

    path = recipe(tmp_path, task={"endings": column})
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows[:: 1 if name == "train" else 4])
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    raw = yaml.safe_load(path.read_text("utf-8"))
    raw["data"] = {"type": "table", "train": "train.jsonl", "test": "test.jsonl"}
    path.write_text(yaml.safe_dump(raw), "utf-8")
    assert main(["run", str(path)]) == 0
    out = tmp_path / "answers.jsonl"
    command = ["predict", str(tmp_path / "out"), str(tmp_path / "test.jsonl")]
    assert main([*command, "--output", str(out)]) == 0
    first = json.loads(out.read_text("utf-8").splitlines()[0])
    assert first["answer"] == rows[0]["options"][first["choice"]]


def test_lists_of_unequal_length_are_named():
    rows = [as_lists(row) for row in examples(3)]
    rows[1]["options"] = rows[1]["options"][:3]
    assert "data.train row 2: 'options' has 3 texts, the first row 4" in refused(
        rows, endings="options"
    )
    assert "holds no lists" in refused(examples(2), endings="ending0")


def test_bad_columns_and_texts_are_named():
    rows = examples(2)
    assert "task.endings[1] names column 'ending9'" in refused(rows, endings=["ending0", "ending9"])
    assert "task.question names column 'snet2'" in refused(rows, question="snet2")
    assert "row 1: 'ending2' is None" in refused([{**rows[0], "ending2": None}])
    data = DatasetDict(train=Dataset.from_list(rows))
    with pytest.raises(DataError, match="keep_labels"):
        MultipleChoice().check(data, ["0", "1"])


def test_a_label_of_the_hub_is_a_number():
    rows = Dataset.from_list(examples(4)).cast_column("label", ClassLabel(names=list("0123")))
    found = MultipleChoice().check(DatasetDict(train=rows))["train"]
    assert found["label"][:] == [row["label"] for row in examples(4)]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_accuracy_is_counted_over_all_batches(size):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 4
    metric = MultipleChoice().metrics([])
    for begin in range(0, 50, size):
        made = SimpleNamespace(
            predictions=logits[begin : begin + size], label_ids=labels[begin : begin + size]
        )
        result = metric(made, begin + size >= 50)
    chosen = logits.argmax(-1)
    assert result == {"accuracy": pytest.approx(float((chosen == labels).float().mean()))}
    rows = metric.tables["endings"]
    assert [row["chosen"] for row in rows] == torch.bincount(chosen, minlength=4).tolist()
    assert [row["right"] for row in rows] == torch.bincount(labels, minlength=4).tolist()


def test_the_rows_a_model_was_most_wrong_about_are_shown():
    task, rows = MultipleChoice(), checked(examples(3))
    metric, right = task.metrics([]), rows["label"][:]
    logits = torch.zeros(3, 4)
    others = [(label + 1) % 4 for label in right]
    logits[0, others[0]], logits[1, right[1]], logits[2, others[2]] = 2.0, 9.0, 5.0
    metric(SimpleNamespace(predictions=logits, label_ids=torch.tensor(right)), True)
    (found,) = task.examples(metric, None, None, rows).values()
    assert [row["probability"] for row in found] == [0.98, 0.71]  # the right one is none of them
    assert found[0]["sent1"] == rows[2]["sent1"]
    assert found[0]["wanted"] == rows[2][ENDINGS[right[2]]]
    assert found[0]["chosen"] == rows[2][ENDINGS[others[2]]]


def test_a_model_that_has_diverged_is_told():
    made = SimpleNamespace(predictions=torch.full((1, 4), torch.nan), label_ids=torch.tensor([0]))
    with pytest.raises(DataError, match="diverged"):
        MultipleChoice().metrics([])(made, True)


def table(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def recipe(folder, **changes):
    if not (folder / "source").exists():
        source_folder(folder / "source")
    table(folder / "train.csv", examples(32))
    table(folder / "test.csv", examples(12, 100))
    training = {"num_train_epochs": 2, "learning_rate": 0.01, "use_cpu": True, "disable_tqdm": True}
    blocks = {
        "task": {"type": "multiple-choice"},
        "data": {"type": "table", "train": "train.csv", "test": "test.csv"},
        "model": {"name": "./source"},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        "training": {"output_dir": str(folder / "out"), "save_strategy": "no", **training},
    }
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path


POLICIES = {"none": None, "lp-ft": {"type": "lp-ft"}, "last": {"type": "train-last", "count": 1}}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_with_every_policy(tmp_path, policy):
    report = run(Recipe.load(recipe(tmp_path, freeze=POLICIES[policy]))).data
    assert set(report["metrics"]["test"]) == {"loss", "accuracy"}
    assert report["freeze"]["verified_unchanged"]
    assert report["retention"]["by"] == "pairwise similarity"
    assert [group["name"] for group in report["groups"]][-1] == "head"
    assert "chosen" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_it_learns(tmp_path):
    training = {"num_train_epochs": 12, "per_device_train_batch_size": 4}
    report = run(Recipe.load(recipe(tmp_path, training=training))).data
    assert report["metrics"]["test"]["accuracy"] > 0.7  # chance is 0.25


def test_evaluate_and_predict_agree_with_the_run(tmp_path, capsys):
    report = run(Recipe.load(recipe(tmp_path))).data
    accuracy = report["metrics"]["test"]["accuracy"]
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert f"{accuracy:.4f}" in capsys.readouterr().out
    place, target = str(tmp_path / "test.csv"), tmp_path / "p.jsonl"
    assert main(["predict", str(tmp_path / "out"), place, "--output", str(target)]) == 0
    said = [json.loads(line) for line in target.open(encoding="utf-8")]
    right = [row["label"] for row in examples(12, 100)]
    hits = sum(row["choice"] == label for row, label in zip(said, right, strict=True))
    assert hits / 12 == accuracy
    model = AutoModelForMultipleChoice.from_pretrained(tmp_path / "out" / "model").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    for row in said[:3]:
        assert row["answer"] == row[ENDINGS[row["choice"]]]
        texts = [f"{row['sent2']} {row[ending]}" for ending in ENDINGS]
        pairs = words([row["sent1"]] * 4, texts, return_tensors="pt", padding=True)
        logits = model(**{k: v[None] for k, v in pairs.items()}).logits[0].detach()
        assert row["probabilities"]["ending2"] == pytest.approx(
            float(logits.softmax(-1)[2]), abs=1e-5
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [("sent1,sent2\na,b\n", "ending0"), ("", "empty"), (",".join(["sent1", "sent2", *ENDINGS]) +
      "\n", "no rows"), (",".join(["sent1", "sent2", *ENDINGS]) + "\na,b,c,d,e,\n", "row 1")],
)  # fmt: skip
def test_inputs_that_cannot_be_predicted(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        MultipleChoice().read_inputs(tmp_path / "x.csv")


def test_a_folder_with_the_schema_of_the_hub(tmp_path):
    """allenai/swag: more columns, and a test split whose labels are -1."""
    extra = {"video-id": "v", "fold-ind": "1", "startphrase": "old red new", "gold-source": "gold"}
    (tmp_path / "hub").mkdir()
    for name, hidden in (("train", False), ("validation", False), ("test", True)):
        rows = [{**extra, **row, **({"label": -1} if hidden else {})} for row in examples(8)]
        table(tmp_path / "hub" / f"{name}.csv", rows)
    path = recipe(tmp_path)
    blocks = yaml.safe_load(path.read_text("utf-8"))
    blocks["data"] = {"type": "hub", "path": "hub"}
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    with pytest.raises(DataError, match=r"data\.splits"):
        run(Recipe.load(path))
    blocks["data"]["splits"] = {"train": "train", "test": "validation"}
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    assert run(Recipe.load(path)).data["splits"] == {"train": 8, "test": 8}


def test_the_step_is_the_same_for_any_accumulation(tmp_path, tokenizer):
    task = MultipleChoice()
    encoded, found = task.encode(checked(examples(8)), tokenizer, None), []
    for size in (8, 2):
        torch.manual_seed(0)
        model = BertForMultipleChoice(tiny.bert_config())
        args = tiny.arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
            optim="sgd",
        )
        collate = task.collator(tokenizer)
        TransferTrainer(model, args, train_dataset=encoded, data_collator=collate).train()
        found.append(tiny.weights(model))
    assert tiny.distance(*found) < 1e-6


def test_embeddings_of_endings_do_not_see_the_padding(tokenizer):
    task, model = MultipleChoice(), BertForMultipleChoice(tiny.bert_config()).eval()
    rows = checked([{**example(0), "ending1": "oak elm"}, example(1)])
    encoded = list(task.encode(rows, tokenizer, None))
    both, alone = ({k: v for k, v in task.collator(tokenizer)(e).items() if k != "labels"}
                   for e in (encoded, encoded[1:]))  # fmt: skip
    assert both["input_ids"].shape[2] > alone["input_ids"].shape[2]
    assert torch.allclose(embed(model, both)[4:], embed(model, alone), atol=1e-6)


def test_the_head_is_one_output():
    groups = LayerGroups.of(BertForMultipleChoice(tiny.bert_config()), fresh=["classifier.weight"])
    assert set(groups.head.parameters) >= {"classifier.weight", "classifier.bias"}
    assert len(groups.blocks) == 2
