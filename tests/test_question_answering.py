"""question-answering: windows, spans, scores, and whole runs on tiny models."""

import gc
import itertools
import json
import random
import tracemalloc
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import yaml
from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from hf_sft import LayerGroups, saved
from hf_sft.cli import main
from hf_sft.errors import DataError
from hf_sft.recipe import Recipe
from hf_sft.running import run
from hf_sft.tasks import QuestionAnswering
from hf_sft.tasks.question_answering_metrics import best_threshold, normalise, scores
from hf_sft.tasks.question_answering_windows import Candidates, Collector, Cutter, best_spans
from hf_sft.training.trainer import TransferTrainer

disable_progress_bars()
WORDS = ["red", "rose", "oak", "elm", "pine", "old", "tall", "new", "dry", "where", "what"]
LENGTH = 24
SEPARATOR = 3  # the number of [SEP] below


def source(folder, kind=BertForPreTraining, **settings):
    """A BERT with windows of 24 tokens and a tokenizer of words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    sizes = {**tiny.BERT, "vocab_size": len(vocabulary), "max_position_embeddings": LENGTH}
    kind(BertConfig(**sizes | settings)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(source(tmp_path_factory.mktemp("bert")))


def example(number, words=12, answered=True):
    """A random text; the question's word stands in it once, and the word after is the answer."""
    draw = random.Random(number)
    text = [draw.choice(WORDS[1:6]) for _ in range(words)]
    at = draw.randrange(words - 1)
    text[at] = draw.choice(WORDS[6:9])
    start = len(" ".join(text[: at + 1])) + 1
    answers = {"text": [text[at + 1]], "answer_start": [start]}
    return {
        "id": f"q{number}",
        "title": f"text {number // 2}",
        "context": " ".join(text),
        "question": f"where {text[at]}",
        "answers": answers if answered else {"text": [], "answer_start": []},
    }


def examples(count, first=0, **settings):
    return [example(number, **settings) for number in range(first, first + count)]


# ---- windows ----


@pytest.mark.parametrize(("limit", "stride"), [(16, 4), (24, 0), (12, 5)])
def test_windows_show_all_of_the_context_and_overlap(tokenizer, limit, stride):
    context = " ".join(random.Random(0).choices(WORDS, k=40))
    windows = list(Cutter(tokenizer, limit, stride)(["where is red"], [context]))
    assert len(windows) > 2
    shown = [[span for span in window.spans if span is not None] for window in windows]
    words = [context[start:end] for start, end in dict.fromkeys(sum(shown, []))]
    assert words == context.split()
    for left, right in itertools.pairwise(shown):
        assert len(set(left) & set(right)) == stride
    for window in windows:
        assert len(window.inputs["input_ids"]) <= limit
        assert window.inputs["input_ids"][window.null] == tokenizer.cls_token_id


def test_a_long_question_takes_half_of_a_window_at_most(tokenizer):
    windows = list(Cutter(tokenizer, 16, 5)(["red " * 50, "oak"], ["elm " * 20, "pine"]))
    assert {window.row for window in windows} == {0, 1}
    assert all(len(window.inputs["input_ids"]) <= 16 for window in windows)
    shown = [sum(span is not None for span in window.spans) for window in windows]
    assert shown[0] >= 8


def test_positions_are_those_of_the_answer_or_of_no_answer(tokenizer):
    for row in examples(30, words=30):
        answer = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        place = (answer[0], answer[0] + len(answer[1]))
        windows = list(Cutter(tokenizer, 16, 4)([row["question"]], [row["context"]]))
        whole = 0
        for window in windows:
            first, last = window.positions(place)
            if place in window.spans:
                found = row["context"][window.spans[first][0] : window.spans[last][1]]
                assert found == answer[1]
                whole += 1
            else:
                assert first == last == window.null
            assert window.positions(None) == (window.null, window.null)
        assert whole >= 1


def test_an_answer_that_a_window_cuts_is_not_in_it(tokenizer):
    windows = list(Cutter(tokenizer, 10, 2)(["red"], ["oak elm pine old tall new dry oak elm"]))
    place = (len("oak elm pine "), len("oak elm pine old tall new dry oak"))
    assert all(window.positions(place) == (window.null, window.null) for window in windows[:1])


def test_an_answer_of_several_pieces_and_odd_spaces(tokenizer):
    context = "  oaks \t red\nroses  elm"
    (window,) = Cutter(tokenizer, 24, 4)(["what"], [context])
    start = context.index("oaks")
    first, last = window.positions((start, start + 4))
    assert (last - first, context[window.spans[first][0] : window.spans[last][1]]) == (1, "oaks")


# ---- spans ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_spans_are_those_of_brute_force(seed):
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 3, 11, generator=draw)
    context = torch.rand(3, 11, generator=draw) > 0.3
    for row, found in enumerate(best_spans(start, end, context, 5, 4)):
        every = [
            (i, j, float(start[row, i] + end[row, j]))
            for i in range(11)
            for j in range(i, min(11, i + 4))
            if context[row, i] and context[row, j]
        ]
        expected = sorted(every, key=lambda span: -span[2])[:5]
        assert [span[:2] for span in found] == [span[:2] for span in expected]
        assert np.allclose([s for *_, s in found], [s for *_, s in expected])


def test_a_span_of_two_windows_counts_once_with_its_larger_score(tokenizer):
    windows = list(Cutter(tokenizer, 12, 5)(["red"], ["oak elm pine old tall new dry oak elm"]))
    length = max(len(window.spans) for window in windows)
    start = end = torch.zeros(len(windows), length)
    collector = Collector(500, 3)
    assert list(collector.add(windows, start, end + torch.arange(len(windows))[:, None])) == []
    (found,) = collector.close()
    assert found.null == 0  # the smallest over the windows
    assert max(found.spans.values()) == len(windows) - 1
    assert len(found.spans) == 9 + 8 + 7  # of one, two and three words


# ---- scores ----


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [("The  Cat's, a hat!", None, ["cats", "hat"]), ("An apple — two", "en", ["apple", "—", "two"]),
     ("Der alte „Baum“", "de", ["alte", "baum"]), ("der Baum", None, ["der", "baum"]),
     ("在 2016年，NFL 的", "zh", ["在", "2016", "年", "nfl", "的"]),
     ("1990–2000", "de", ["19902000"]),
     ("カタ 字", "ja", ["カ", "タ", "字"]), ("los Árboles", "es", ["árboles"]),
     ("पेड़।", "hi", ["पेड़"]), ("the", None, []), ("zh 字", "zh-TW", ["zh", "字"])],
)  # fmt: skip
def test_answers_are_compared_by_their_words(text, language, words):
    assert normalise(text, language) == words


@pytest.mark.parametrize(
    ("answer", "wanted", "language", "expected"),
    [("the old oak", ["Old oak."], None, (1, 1)),
     ("old oak", ["oak", "tall elm"], None, (0, 2 / 3)),
     ("oak oak", ["oak"], None, (0, 2 / 3)), ("elm", ["oak"], None, (0, 0)),
     ("oak", [], None, (0, 0)), ("", [], None, (1, 1)), ("the", [], None, (1, 1)),
     ("", ["oak"], None, (0, 0)), ("北京市", ["北京"], "zh", (0, 0.8)),
     ("北京市", ["北京"], "en", (0, 0)),
     ("a", ["the", "oak"], None, (0, 0)), ("ein Baum", ["der Baum"], "de", (1, 1))],
)  # fmt: skip
def test_exact_match_and_f1(answer, wanted, language, expected):
    assert scores(answer, wanted, language) == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_threshold_is_better_than_the_best(seed):
    draw = np.random.default_rng(seed)
    differences = draw.integers(-3, 4, 40).astype(float)  # with ties
    nulls = draw.integers(0, 2, 40).astype(float)
    spans = np.where(nulls == 1, 0.0, draw.random(40))

    def score(threshold):
        return float(np.where(differences > threshold, nulls, spans).mean())

    best = best_threshold(differences, spans, nulls)
    assert best["score"] == pytest.approx(score(best["threshold"]))
    assert best["score"] == pytest.approx(max(score(t / 2) for t in range(-9, 9)))


# ---- the streaming metric ----


def split(rows, task, tokenizer):
    checked = task.check(DatasetDict(train=Dataset.from_list(rows)))["train"]
    return checked, task.encode(checked, tokenizer, None)


def measured(task, tokenizer, rows, size, logits=None):
    """(Result, tables) of batches of ``size`` windows; by default the logits know the answers."""
    rows, encoded = split(rows, task, tokenizer)
    metric = task.metrics([], tokenizer, rows)
    result = {}
    for begin in range(0, len(encoded), size):
        batch = task.collator(tokenizer)(list(encoded.select(
            range(begin, min(len(encoded), begin + size)))))  # fmt: skip
        labels = batch["start_positions"], batch["end_positions"]
        found = [
            torch.nn.functional.one_hot(place, batch["input_ids"].shape[1]).float() * 9
            for place in labels
        ]
        if logits is not None:
            found = logits(begin, batch)
        made = SimpleNamespace(predictions=tuple(found), label_ids=labels)
        result = metric(made, begin + size >= len(encoded))
    return result, metric.tables


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_model_that_knows_the_answers_scores_one(tokenizer, size):
    task = QuestionAnswering(max_length=16)
    result, tables = measured(task, tokenizer, examples(20, words=30), size)
    assert result == {"exact_match": 1.0, "f1": 1.0}
    assert tables == {"worst_answers": []}


def halves(begin, batch):
    """Logits that know the answers of even windows, and say the first word after a question."""
    places = [label.clone() for label in (batch["start_positions"], batch["end_positions"])]
    scores = torch.full((2, *batch["input_ids"].shape), -9.0)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        known = (begin + row) % 2 == 0
        for kind, place in enumerate(places):
            at = int(place[row]) if known else ids.index(SEPARATOR) + 1
            scores[kind, row, at] = float(begin + row)  # surer from row to row
    return scores


@pytest.mark.parametrize("size", [1, 7])
def test_the_worst_answers_are_shown_the_surest_first(tokenizer, size):
    rows = [row for row in examples(60) if not row["context"].startswith(row["answers"]["text"][0])]
    _, tables = measured(QuestionAnswering(), tokenizer, rows, size, halves)
    shown, wrong = tables["worst_answers"], rows[1::2][::-1]
    assert len(shown) == 10 < len(wrong)
    for told, row in zip(shown, wrong, strict=False):
        assert (told["question"], told["f1"]) == (row["question"], 0.0)
        assert told["wanted"] == row["answers"]["text"][0]
        assert (told["before"], told["answer"]) == ("", row["context"].split()[0])
        assert told["answer"] + told["after"].removesuffix(" …") in row["context"]


def test_an_answer_that_is_partly_right_stands_after_one_that_is_wrong(tokenizer):
    rows = examples(3)

    def partly(begin, batch):
        """One word too many for row 0, all right for row 1, another word for row 2."""
        scores = torch.zeros(2, *batch["input_ids"].shape)
        for row, place in enumerate(batch["start_positions"].tolist()):
            first, last = ((place - 1, place), (place, place), (place - 1, place - 1))[row]
            scores[0, row, first] = scores[1, row, last] = 9.0 - row
        return scores

    _, tables = measured(QuestionAnswering(), tokenizer, rows, 3, partly)
    shown = tables["worst_answers"]
    assert [told["question"] for told in shown] == [rows[2]["question"], rows[0]["question"]]
    assert [round(told["f1"], 2) for told in shown] == [0.0, 0.67]


def chance(begin, batch):
    """Logits that depend on the window alone, not on the batch it is in."""
    length = batch["input_ids"].shape[1]
    each = [
        torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(begin + row))[:, :length]
        for row in range(len(batch["input_ids"]))
    ]
    return torch.stack(each, dim=1)


def test_the_batch_size_changes_nothing(tokenizer):
    task = QuestionAnswering(max_length=16, no_answer=True)
    rows = [{**row, "language": ["en", "de"][n % 2]} for n, row in enumerate(examples(30))]
    found = [measured(task, tokenizer, rows, size, chance) for size in (1, 5, 100)]
    assert found[0] == found[1] == found[2]
    result, tables = found[0]
    assert 0 < result["f1"] < 1
    assert [row["language"] for row in tables["languages"]] == ["en", "de"]
    mean = sum(row["f1"] * row["count"] for row in tables["languages"]) / 30
    assert mean == pytest.approx(result["f1"])


def test_questions_without_an_answer_are_told_apart(tokenizer):
    rows = examples(10) + examples(10, 10, answered=False)
    never = QuestionAnswering(no_answer=True, no_answer_threshold=1e6)
    always = QuestionAnswering(no_answer=True, no_answer_threshold=-1e6)
    for task, answered, unanswered in ((never, 1.0, 0.0), (always, 0.0, 1.0)):
        result, tables = measured(task, tokenizer, rows, 8)
        assert result["exact_match"] == 0.5
        kinds = {row["kind"]: row for row in tables["questions"]}
        assert (kinds["with an answer"]["f1"], kinds["without"]["f1"]) == (answered, unanswered)
        best = [row for row in tables["no_answer_threshold"] if row["is"] != "used"]
        assert [row["value"] for row in best] == [1.0, 1.0]
        again = QuestionAnswering(no_answer=True, no_answer_threshold=best[0]["threshold"])
        assert measured(again, tokenizer, rows, 8)[0] == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
def test_other_questions_with_the_same_places_are_refused(tokenizer, turned):
    task = QuestionAnswering()
    rows, encoded = split([example(1), {**example(1), "question": "what new"}], task, tokenizer)
    batch = task.collator(tokenizer)(list(encoded)[:: -1 if turned else 1])
    labels = batch["start_positions"], batch["end_positions"]
    assert len(set(labels[0].tolist())) == 1
    zeros = torch.zeros(batch["input_ids"].shape)
    made = SimpleNamespace(predictions=(zeros, zeros), label_ids=labels, inputs=batch)
    with pytest.raises(DataError, match="another order") if turned else nullcontext():
        task.metrics([], tokenizer, rows)(made, True)


def test_rows_in_another_order_are_refused(tokenizer):
    task = QuestionAnswering()
    rows, encoded = split(examples(6), task, tokenizer)
    batch = task.collator(tokenizer)(list(encoded)[::-1])
    labels = batch["start_positions"], batch["end_positions"]
    made = SimpleNamespace(predictions=(batch["input_ids"],) * 2, label_ids=labels)
    with pytest.raises(DataError, match="group_by_length"):
        task.metrics([], tokenizer, rows)(made, True)


def test_a_model_that_has_diverged_is_told(tokenizer):
    def broken(begin, batch):
        return torch.full((2, *batch["input_ids"].shape), torch.nan)

    with pytest.raises(DataError, match="diverged"):
        measured(QuestionAnswering(), tokenizer, examples(3), 2, broken)


def test_memory_does_not_grow_with_the_rows(tokenizer):
    """Five numbers for each question; the windows of a batch go when it has passed."""
    task, kept = QuestionAnswering(max_length=16), []
    for count in (128, 128, 384):  # the first one fills caches
        rows, encoded = split(examples(count, words=6), task, tokenizer)
        places = [torch.tensor(encoded[f"{key}_positions"][:]) for key in ("start", "end")]
        metric, zeros = task.metrics([], tokenizer, rows), torch.zeros(8, 16)
        assert len(encoded) == count
        tracemalloc.start()
        for begin in range(0, count, 8):
            labels = tuple(place[begin : begin + 8] for place in places)
            metric(SimpleNamespace(predictions=(zeros, zeros), label_ids=labels), False)
        gc.collect()
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert kept[2] - kept[1] < 256 * 400  # bytes for each question; a window takes 2,000


# ---- what is wrong with the data ----


def refused(rows, **settings):
    with pytest.raises(DataError) as error:
        QuestionAnswering(**settings).check(DatasetDict(train=Dataset.from_list(rows)))
    return str(error.value)


def test_bad_rows_are_named():
    good = example(0)
    wrong = {**good, "answers": {"text": ["oak"], "answer_start": [500]}}
    assert "data.train row 2 (id 'q0'): answer 'oak' is not at" in refused([good, wrong])
    assert "row 1 (id 'q0'): question is None" in refused([{**good, "question": None}])
    assert "answers is ['oak']" in refused([{**good, "answers": ["oak"]}])
    assert "task.context names column 'text'" in refused([good], context="text")
    unanswered = refused([good, *examples(2, 5, answered=False)])
    assert "2 questions have no answer, the first is row 2 (id 'q5')" in unanswered
    assert "task.no_answer: true" in unanswered


def test_a_stride_must_leave_room(tokenizer):
    config = BertConfig(**{**tiny.BERT, "max_position_embeddings": LENGTH, "vocab_size": 50})
    model = BertForQuestionAnswering(config)
    with pytest.raises(DataError, match="below 12"):
        QuestionAnswering(stride=12).prepare(tokenizer, model)
    QuestionAnswering(stride=11).prepare(tokenizer, model)
    list(Cutter(tokenizer, 24, 11)(["red " * 30], ["oak " * 60]))


# ---- whole runs ----


def squad(path, rows):
    """Rows as nested json, an article for each title."""
    data = []
    for title, those in itertools.groupby(rows, key=lambda row: row["title"]):
        paragraphs = []
        for row in those:
            lists = row["answers"]
            answers = [
                {"text": text, "answer_start": start}
                for text, start in zip(lists["text"], lists["answer_start"], strict=True)
            ]
            asked = {"id": row["id"], "question": row["question"], "answers": answers}
            paragraphs.append({"context": row["context"], "qas": [asked]})
        data.append({"title": title, "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}), "utf-8")
    return path


def recipe(folder, **changes):
    if not (folder / "source").exists():
        source(folder / "source")
    squad(folder / "train.en.json", examples(24))
    training = {"num_train_epochs": 2, "learning_rate": 0.01, "use_cpu": True, "disable_tqdm": True}
    blocks = {
        "task": {"type": "question-answering", "max_length": 16},
        "data": {"type": "squad", "train": ["train.en.json"], "test_fraction": 0.25},
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
    assert set(report["metrics"]["test"]) == {"loss", "exact_match", "f1"}
    assert report["tables"]["test"]["languages"][0]["count"] == report["splits"]["test"] == 6
    assert report["freeze"]["verified_unchanged"]
    assert report["retention"]["by"] == "pairwise similarity"
    head = next(group for group in report["groups"] if group["name"] == "head")
    assert head["parameters"] == 2 * 16 + 2
    assert head["relative_drift"] is None
    model = BertForQuestionAnswering.from_pretrained(tmp_path / "out" / "model")
    assert model.config.num_labels == 2


@pytest.mark.parametrize("no_answer", [False, True])
def test_evaluate_and_predict_agree_with_the_run(tmp_path, capsys, no_answer):
    rows = examples(8, 50, words=20) + examples(4, 90, answered=not no_answer)
    squad(tmp_path / "test.json", rows)
    changes = {"data": {"test": "test.json"}, "task": {"no_answer": no_answer}}
    report = run(Recipe.load(recipe(tmp_path, **changes))).data
    f1 = report["metrics"]["test"]["f1"]
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert f"{f1:.4f}" in capsys.readouterr().out
    found = {}
    for size in (1, 64):
        saved.predict(tmp_path / "out", tmp_path / "test.json", tmp_path / "p.jsonl", size)
        found[size] = [json.loads(line) for line in (tmp_path / "p.jsonl").open(encoding="utf-8")]
    assert [r["answer"] for r in found[1]] == [r["answer"] for r in found[64]]
    pairs = zip(rows, found[1], strict=True)
    each = [scores(said["answer"], row["answers"]["text"])[1] for row, said in pairs]
    assert np.mean(each) == pytest.approx(f1)
    for said in found[1]:
        assert sum(one["score"] for one in said["n_best"]) == pytest.approx(1)
        assert len(said["n_best"]) <= 21
        if said["answer"]:
            assert said["context"][said["start"] : said["end"]] == said["answer"]


def test_an_answer_has_no_spaces_around_it():
    """As SentencePiece's tokens stand for a word and the space before it."""
    found = Candidates(0, {(3, 7): 1.0, (0, 3): 0.0})
    said = QuestionAnswering().record({"context": "old oak", "question": "what"}, found)
    assert (said["answer"], said["start"], said["end"]) == ("oak", 4, 7)
    assert [one["answer"] for one in said["n_best"]] == ["oak", "old"]


def test_tables_to_predict(tmp_path, capsys):
    run(Recipe.load(recipe(tmp_path)))
    rows = [
        {"question": "where red", "context": "oak red elm", "note": "7"},
        {"question": "what", "context": "tall pine"},
    ]
    forms = {
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.json": json.dumps(rows),
        "a.csv": "question,context\nwhere red,oak red elm\nwhat,tall pine\n",
    }
    said = {}
    for name, text in forms.items():
        (tmp_path / name).write_text(text, "utf-8")
        target = tmp_path / f"{name}.out.csv"
        assert (
            main(["predict", str(tmp_path / "out"), str(tmp_path / name), "--output", str(target)])
            == 0
        )
        said[name] = [row["answer"] for row in saved_csv(target)]
    assert said["a.jsonl"] == said["a.json"] == said["a.csv"]
    capsys.readouterr()
    for name, text, words in (
        ("b.csv", "question,text\na,b\n", "'context'"),
        ("b.csv", "question,context\n ,b\n", "row 1"),
        ("b.csv", "question,context\n", "no questions"),
        ("b.txt", "what", "no table"),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        assert main(["predict", str(tmp_path / "out"), str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


def saved_csv(path):
    return Dataset.from_csv(str(path), cache_dir=str(path.parent / "cache")).to_list()


def test_a_classifier_and_an_answerer_are_sources(tmp_path):
    source(tmp_path / "source", BertForSequenceClassification, num_labels=7)
    report = run(Recipe.load(recipe(tmp_path))).data
    assert next(g for g in report["groups"] if g["name"] == "head")["relative_drift"] is None
    again = {
        "model": {"name": str(tmp_path / "out" / "model")},
        "training": {"output_dir": str(tmp_path / "two")},
    }
    report = run(Recipe.load(recipe(tmp_path, **again))).data
    head = next(g for g in report["groups"] if g["name"] == "head")
    assert head["relative_drift"] is not None  # the source's own head goes on
    assert report["retention"]["by"] == "original head"
    assert report["retention"]["answers"] == 2 * report["retention"]["examples"]  # start and end


def test_a_folder_with_the_schema_of_the_hub(tmp_path):
    for name, rows in (("train", examples(12)), ("validation", examples(6, 50, answered=False))):
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / "hub" / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{name}.jsonl").write_text(lines, "utf-8")
    data = {"data": None, "task": {"no_answer": True}}
    path = recipe(tmp_path, **data)
    blocks = yaml.safe_load(path.read_text("utf-8"))
    blocks["data"] = {
        "type": "hub",
        "path": "hub",
        "splits": {"train": "train", "test": "validation"},
    }
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    report = run(Recipe.load(path)).data
    kinds = report["tables"]["test"]["questions"]
    assert [(row["kind"], row["count"]) for row in kinds] == [("with an answer", 0), ("without", 6)]


def test_the_step_is_the_same_for_any_accumulation(tmp_path, tokenizer):
    _, encoded = split(examples(8), QuestionAnswering(), tokenizer)
    found = []
    for size in (8, 2):
        config = BertConfig(
            **{**tiny.BERT, "vocab_size": 50, "max_position_embeddings": LENGTH, "num_labels": 2},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        torch.manual_seed(0)
        model = BertForQuestionAnswering(config)
        args = tiny.arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
            optim="sgd",
            label_names=QuestionAnswering.label_names,
        )
        collate = QuestionAnswering().collator(tokenizer)
        TransferTrainer(model, args, train_dataset=encoded, data_collator=collate).train()
        found.append(tiny.weights(model))
    assert tiny.distance(*found) < 1e-6


def test_the_head_is_the_two_outputs():
    config = BertConfig(**{**tiny.BERT, "num_labels": 2})
    groups = LayerGroups.of(BertForQuestionAnswering(config), fresh=["qa_outputs.weight"])
    assert groups.head.parameters == ("qa_outputs.weight", "qa_outputs.bias")
    assert len(groups.blocks) == 2
