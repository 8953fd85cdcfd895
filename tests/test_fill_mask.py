"""fill-mask: what is hidden, numbers that repeat, blocks, and whole runs."""

import csv
import itertools
import json
import math
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from tiny_run import ROWS, source_folder, text_recipe, write_csv
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, pipeline

from hf_sft.cli import main
from hf_sft.errors import DataError, SourceError
from hf_sft.models import ModelSource, load_model
from hf_sft.resources import locator
from hf_sft.tasks import FillMask

datasets.disable_progress_bars()
TEXTS = [text for text, _ in ROWS]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    return source_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def processor(source):
    tokenizer = AutoTokenizer.from_pretrained(source)
    FillMask().prepare(tokenizer, BertForMaskedLM.from_pretrained(source))
    return tokenizer


def rows(*texts):
    return Dataset.from_dict({"text": list(texts)})


def words(ids, processor):
    return processor.convert_ids_to_tokens(ids)


# ---- rows ----


def test_every_text_is_an_example_and_a_long_one_is_cut_and_told(processor, caplog):
    found = FillMask().encode(rows("red rose", "", "oak " * 9), processor, None)
    assert [words(ids, processor) for ids in found["input_ids"]] == [
        ["[CLS]", "red", "rose", "[SEP]"],
        ["[CLS]", *["oak"] * 6, "[SEP]"],
    ]  # the empty one has nothing to hide
    assert "1 of 3 texts are cut at 8 tokens (the longest has 11)" in caplog.text


def test_grouped_texts_lose_no_word(processor):
    texts = ["red rose old", "oak", "elm pine tall new dry"]
    found = FillMask(group=True).encode(rows(*texts), processor, None)
    blocks = [words(ids, processor) for ids in found["input_ids"]]
    assert all(block[0] == "[CLS]" and block[-1] == "[SEP]" for block in blocks)
    assert [len(block) for block in blocks] == [8, 7]
    inside = [word for block in blocks for word in block[1:-1]]
    wanted = "red rose old [SEP] oak [SEP] elm pine tall new dry"
    assert " ".join(inside) == wanted


def test_texts_without_a_word_are_refused(processor):
    with pytest.raises(DataError, match="has a word that could be hidden"):
        FillMask().encode(rows("", " "), processor, None)


# ---- masking ----


def test_masks_of_training_change_and_those_of_evaluation_do_not(processor):
    task = FillMask(mask_probability=0.5)
    encoded = task.encode(rows(*TEXTS), processor, None)
    collate, few = task.collator(processor), list(encoded)
    first, again = collate(few), collate(few)
    assert torch.equal(first["labels"], again["labels"])
    assert torch.equal(first["input_ids"][3:5, :4], collate(few[3:5])["input_ids"])  # the row's own
    for seed, epoch in ((0, 1), (1, 0)):
        collate.draws.begin(seed, epoch)
        assert not torch.equal(first["labels"], collate(few)["labels"])
    still = task.held_still(encoded, processor)
    assert still["input_ids"][:] == task.held_still(encoded, processor)["input_ids"][:]
    other = FillMask(mask_probability=0.5, mask_seed=1).held_still(encoded, processor)
    assert still["labels"][:] != other["labels"][:]
    turned = task.held_still(encoded.select(range(len(encoded))[::-1]), processor)
    assert turned["labels"][::-1] == still["labels"][:]  # the draw is the row's own
    batch = collate(list(still)[:3])
    assert batch["labels"].tolist() == still["labels"][:3]
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_hidden_tokens_have_their_label_and_no_row_is_without(processor, probability):
    task = FillMask(mask_probability=probability)
    encoded = task.encode(rows(*TEXTS, "red"), processor, None)
    batch = task.collator(processor)(list(encoded))
    hidden = batch["labels"] != -100
    assert hidden.any(1).all()
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], encoded, strict=True):
        whole = torch.tensor(row["input_ids"] + [0] * (len(ids) - len(row["input_ids"])))
        known = labels != -100
        assert torch.equal(labels[known], whole[known])
        assert torch.equal(ids[~known], whole[~known])
        assert not set(whole[known].tolist()) & set(processor.all_special_ids)


def test_the_share_of_hidden_tokens_is_what_was_asked_for(processor):
    task = FillMask(mask_probability=0.4, max_length=8)
    texts = ["red rose old oak elm pine"] * 400
    batch = task.collator(processor)(list(task.encode(rows(*texts), processor, None)))
    hidden = batch["labels"] != -100
    assert float(hidden.sum()) / (400 * 6) == pytest.approx(0.4, abs=0.05)
    mask = batch["input_ids"][hidden] == processor.mask_token_id
    assert float(mask.float().mean()) == pytest.approx(0.8, abs=0.06)


# ---- what surprised the model ----


def scored(processor, texts, logits, size, **settings):
    """(Result, tables of the report) of batches of ``size`` rows; ``logits(labels)`` of each."""
    task = FillMask(**settings)
    data = rows(*texts)
    encoded = list(task.held_still(task.encode(data, processor, None), processor))
    metric, collate, result = task.metrics([]), task.collator(processor), {}
    for begin in range(0, len(encoded), size):
        labels = collate(encoded[begin : begin + size])["labels"]
        batch = SimpleNamespace(predictions=task.summary(logits(labels), labels))
        result = metric(batch, begin + size >= len(encoded))
    return result, task.examples(metric, None, processor, data), encoded


def never(word, processor, sure=2.0):
    """Logits that know every word but one, in whose place they say ``oak``."""
    number, oak = processor.convert_tokens_to_ids([word, "oak"])

    def logits(labels):
        said = torch.where(labels == number, oak, labels.clamp(min=0))
        return sure * torch.nn.functional.one_hot(said, len(processor)).float()

    return logits


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("group", [False, True])
def test_words_that_were_not_found_are_shown_in_their_texts(processor, size, group):
    orders = itertools.islice(itertools.permutations(["old", "tall", "rose", "red", "new"]), 20)
    texts = ["", "elm pine dry", *(" ".join(order) for order in orders)]
    given = scored(processor, texts, never("rose", processor), size,
                   mask_probability=0.5, group=group)  # fmt: skip
    _, tables, encoded = given
    found = tables["most_surprising_words"]
    number, mask = processor.convert_tokens_to_ids(["rose", "[MASK]"])
    hidden = [
        row
        for row in encoded
        if (mask, number) in zip(row["input_ids"], row["labels"], strict=True)
    ]
    assert 0 < len(found) == min(12, len(hidden))
    share = math.exp(2) / (math.exp(2) + len(processor) - 1)
    for told in found:
        assert (told["wanted"], told["guess"]) == ("rose", "oak")
        assert told["probability_of_the_guess"] == pytest.approx(share)
        assert told["of_the_wanted"] == pytest.approx(share / math.exp(2))
        assert told["text"]["marked"] == "[MASK]"
        assert "[SEP]" not in told["text"]["before"] + told["text"]["after"] or group
    if not group:
        whole = "{before}{marked}{after}".format(**found[0]["text"])
        assert whole == processor.decode(hidden[0]["input_ids"][1:-1])


def test_the_most_surprising_word_is_the_least_likely_one(processor):
    texts = ["old rose", "tall elm", "red pine"]

    def logits(labels):
        """``oak``, surer from text to text."""
        first = processor.convert_tokens_to_ids(["rose", "elm", "pine", "old", "tall", "red"])
        oak = torch.zeros(*labels.shape, len(processor))
        oak[..., processor.convert_tokens_to_ids("oak")] = 1.0
        return (
            oak
            * torch.tensor([[1.0 + first.index(int(row.max())) % 3] for row in labels])[..., None]
        )

    result, tables, encoded = scored(processor, texts, logits, 2, mask_probability=0.1)
    found = tables["most_surprising_words"]
    shares = [told["of_the_wanted"] for told in found]
    assert shares == sorted(shares)
    assert len(found) == sum(processor.mask_token_id in row["input_ids"] for row in encoded) > 1
    assert result["token_accuracy"] == 0


def test_a_model_that_finds_every_word_surprises_nobody(processor):
    result, tables, _ = scored(processor, TEXTS, never("nothing", processor, 9.0), 4)
    assert result["token_accuracy"] == 1
    assert tables == {}


# ---- bad data ----


def test_bad_rows_and_settings_are_told(processor, source):
    with pytest.raises(DataError, match=r"data.train row 2: 'text' is empty"):
        FillMask().check(DatasetDict(train=Dataset.from_dict({"text": ["a", None]})))
    with pytest.raises(DataError, match="Did you mean 'txet'"):
        FillMask().check(DatasetDict(train=Dataset.from_dict({"txet": ["a"]})))
    with pytest.raises(DataError, match="no classes"):
        FillMask().check(DatasetDict(train=rows("a")), ["x"])
    processor.mask_token = None
    with pytest.raises(SourceError, match="no mask token"):
        FillMask().prepare(processor, BertForMaskedLM.from_pretrained(source))


# ---- whole runs ----


def recipe(folder, source, task=(), **blocks):
    (folder / "train.txt").write_text("\n".join(TEXTS * 2), "utf-8")
    (folder / "test.txt").write_text("\n".join(TEXTS[::3]), "utf-8")
    training = {"output_dir": str(folder / "out"), "num_train_epochs": 2, "use_cpu": True,
                "learning_rate": 0.01, "disable_tqdm": True}  # fmt: skip
    whole = {
        "task": {"type": "fill-mask", **dict(task)},
        "data": {"type": "text-files", "train": "train.txt", "test": "test.txt"},
        "model": {"name": str(source)},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        **blocks,
        "training": training | blocks.get("training", {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


def report(folder):
    return json.loads((folder / "out" / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("run")
    assert main(["run", str(recipe(folder, source, {"top_k": 3}))]) == 0
    return folder


def test_a_run_keeps_the_sources_head_and_its_numbers_repeat(run, capsys):
    found = report(run)
    scores = found["metrics"]["test"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert found["retention"]["by"] == "original head"
    assert found["source"]["left_over"]
    assert all(group["drift"] is not None for group in found["groups"])  # nothing is new
    told = found["tables"]["test"]["most_surprising_words"]
    assert all(one["of_the_wanted"] < one["probability_of_the_guess"] for one in told)
    assert "<mark>[MASK]</mark>" in (run / "out" / "report.html").read_text("utf-8")
    for _ in range(2):
        assert main(["evaluate", str(run / "out")]) == 0
        assert f"{scores['perplexity']:.4f}" in capsys.readouterr().out


def test_a_source_without_that_head_gets_one_tied_to_its_words(tmp_path, source):
    BertModel.from_pretrained(source).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "bare")
    fresh = load_model(ModelSource(name=str(tmp_path / "bare")), FillMask(), [], locator(tmp_path))
    names = dict(fresh.model.named_parameters())
    assert fresh.fresh
    assert fresh.fresh <= set(names)
    assert all(name.startswith("cls.predictions.") for name in fresh.fresh)
    assert main(["run", str(recipe(tmp_path, tmp_path / "bare"))]) == 0
    assert report(tmp_path)["retention"]["by"] == "pairwise similarity"


def test_predict_says_what_the_pipeline_says(run, tmp_path, capsys):
    write_csv(tmp_path / "in.csv", [["red [MASK]", 1], ["[MASK] [MASK] oak", 2]], ["text", "id"])
    capsys.readouterr()
    assert main(["predict", str(run / "out"), str(tmp_path / "in.csv")]) == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["id"], row["mask"]) for row in found] == [("1", "1"), ("2", "1"), ("2", "2")]
    pipe = pipeline("fill-mask", str(run / "out" / "model"), top_k=3)
    answers = [pipe("red [MASK]"), *pipe("[MASK] [MASK] oak")]
    for row, answer in zip(found, answers, strict=True):
        assert row["word"] == answer[0]["token_str"]
        assert float(row["probability"]) == pytest.approx(answer[0]["score"], abs=1e-5)
        assert [one["word"] for one in json.loads(row["words"])] == [a["token_str"] for a in answer]


@pytest.mark.parametrize("text", ["red rose", "red " * 9 + "[MASK]", ""])
def test_a_text_without_a_mask_is_refused(run, tmp_path, capsys, text):
    (tmp_path / "in.txt").write_text(f"red [MASK]\n{text}\n" if text else "")
    out = tmp_path / "out.csv"
    assert main(["predict", str(run / "out"), str(tmp_path / "in.txt"), "--output", str(out)]) == 2
    assert ("row 2 has no [MASK]" if text else "no texts") in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "blocks",
    [{"freeze": {"type": "train-last", "count": 1}}, {"freeze": {"type": "lp-ft"}},
     {"task": {"group": True}}],
    ids=["train-last", "lp-ft", "grouped"],
)  # fmt: skip
def test_methods_work_on_a_masked_language_model(tmp_path, source, blocks):
    assert main(["run", str(recipe(tmp_path, source, blocks.pop("task", ()), **blocks))]) == 0
    found = report(tmp_path)
    assert found["freeze"]["verified_unchanged"]
    assert math.isfinite(found["metrics"]["test"]["perplexity"])


@pytest.mark.parametrize("anchored", [False, True])
def test_adapt_first_then_fine_tune_anchored_to_either(run, source, tmp_path, anchored):
    """The adapted model has no pooler any more; the original, where it is the anchor, has one."""
    model = {"name": str(run / "out" / "model"), "fresh": ["bert.pooler.*"]}
    model |= {"anchor": str(source)} if anchored else {}
    assert main(["run", str(text_recipe(tmp_path, model=model))]) == 0
    found = report(tmp_path)
    assert found["source"]["anchor"] == (source.name if anchored else None)
    assert all(group["drift"] for group in found["groups"] if group["name"] != "head")
