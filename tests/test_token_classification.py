"""Tags of words: schemes, alignment with tokens, metrics, and whole runs on a tiny model."""

import json
import logging

import datasets
import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import IOB2, IOBES
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from tiny_run import WORDS
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForTokenClassification,
    BertTokenizerFast,
    EvalPrediction,
    GPT2Tokenizer,
    RobertaTokenizerFast,
    pipeline,
)

from hf_sft.cli import main
from hf_sft.errors import DataError
from hf_sft.loaders import Conll, Hub
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.running import run
from hf_sft.tasks import TokenClassification
from hf_sft.tasks.tag_columns import TagColumns
from hf_sft.tasks.tag_schemes import detect, faults, in_order, repaired, spans
from hf_sft.tasks.tagging import mistakes
from hf_sft.tasks.token_classification_metrics import StreamingTags, first_answers
from hf_sft.tasks.word_windows import text_windows, word_windows

TASK = TokenClassification()
NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose words are cut: ``rose`` is one token, ``rosered`` two, of 8 at most."""
    folder = tmp_path_factory.mktemp("source")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:8], "##red", ",", "."]
    settings = {key: value for key, value in tiny.BERT.items() if key != "num_labels"}
    config = BertConfig(**{**settings, "vocab_size": len(vocabulary)})
    tiny._built(lambda: BertForPreTraining(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=8)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(source):
    return AutoTokenizer.from_pretrained(source)


def data(**splits):
    return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})


def refused(task, splits, keep=None):
    with pytest.raises(DataError) as error:
        task.check(splits, keep)
    return str(error.value)


def tagged(*tags, words=None):
    """Columns of sentences with these tags, a text each."""
    lists = [text.split() for text in tags]
    return {"tokens": words or [["w"] * len(found) for found in lists], "tags": lists}


# Schemes


@pytest.mark.parametrize(
    ("names", "scheme"),
    [("O B-a I-a", "BIO"), ("O B-a", "BIO"), ("O I-a I-b", "IO"), ("O a b", "IO"),
     ("O B-a E-a S-b", "BIOES"), ("O S-a", "BIOES"), ("O B-a L-a", "BILOU"), ("U-a O", "BILOU"),
     ("NOUN VERB", "none"), ("$ , NN-x", "none"), ("NOUN VERB O", "none"), ("N V O ! ^", "none"),
     ("N O", "IO")],
)  # fmt: skip
def test_the_scheme_is_seen_from_the_tags(names, scheme):
    assert detect(names.split()) == scheme
    assert detect(in_order(names.split(), scheme)) == scheme


@pytest.mark.parametrize("names", ["O B-a PER", "O B-a L-a S-a", "O I-a E-a U-a"])
def test_tags_of_no_one_scheme_are_refused(names):
    message = refused(TASK, data(train=tagged(names)))
    assert "data.train: the tags" in message
    assert "task.scheme: none" in message


def test_names_are_in_one_order_whatever_occurs_first():
    assert in_order(["I-b", "B-a", "O"], "BIO") == ["O", "B-a", "I-a", "B-b", "I-b"]
    assert in_order(["U-a", "O"], "BILOU") == ["O", "B-a", "I-a", "L-a", "U-a"]
    assert in_order(["b", "O", "a"], "IO") == ["O", "a", "b"]
    assert in_order(["b", "a"], "none") == ["a", "b"]


@pytest.mark.parametrize(
    ("tags", "scheme", "found", "right"),
    [("B-a I-a O B-b", "BIO", [("a", 0, 2), ("b", 3, 4)], None),
     ("I-a I-a O", "BIO", [("a", 0, 2)], "B-a I-a O"),
     ("B-a I-b I-b", "BIO", [("a", 0, 1), ("b", 1, 3)], "B-a B-b I-b"),
     ("B-a B-a", "BIO", [("a", 0, 1), ("a", 1, 2)], None),
     ("B-a E-a S-a O", "BIOES", [("a", 0, 2), ("a", 2, 3)], None),
     ("B-a O I-b", "BIOES", [("a", 0, 1), ("b", 2, 3)], "S-a O S-b"),
     ("B-a I-a L-a U-b", "BILOU", [("a", 0, 3), ("b", 3, 4)], None),
     ("B-a I-a", "BILOU", [("a", 0, 2)], "B-a L-a"),
     ("a a O b", "IO", [("a", 0, 2), ("b", 3, 4)], None),
     ("I-a I-b O", "IO", [("a", 0, 1), ("b", 1, 2)], None),
     ("B-creative-work I-creative-work", "BIO", [("creative-work", 0, 2)], None),
     ("X Y", "none", [("X", 0, 1), ("Y", 1, 2)], None)],
)  # fmt: skip
def test_entities_and_what_breaks_the_scheme(tags, scheme, found, right):
    tags = tags.split()
    assert spans(tags, scheme) == found
    assert bool(list(faults(tags, scheme))) == (right is not None)
    mended = repaired(tags, scheme)
    assert mended == (right.split() if right else tags)
    assert spans(mended, scheme) == found
    assert list(faults(mended, scheme)) == []


# Data


def test_malformed_tags_are_named_by_file_and_line(tmp_path):
    (tmp_path / "a.conll").write_text("w O\nEU I-ORG\n\nBonn B-LOC\nEU I-ORG\n")
    loaded = Conll(train="a.conll").load(locator(tmp_path))
    message = refused(TASK, loaded)
    assert "'a.conll' line 2 ('EU'): I-ORG follows O." in message
    assert "'a.conll' line 5 ('EU'): I-ORG follows B-LOC." in message
    assert "task.repair: true" in message
    mended = TokenClassification(repair=True).check(loaded)["train"]
    assert mended.column_names == ["tokens", "tags"]  # where the words stood is done with
    names = TASK.names({"train": mended})
    assert [[names[t] for t in tags] for tags in mended["tags"]] == [
        ["O", "B-ORG"], ["B-LOC", "B-ORG"]]  # fmt: skip


def test_malformed_tags_of_lists_are_named_by_row_and_word():
    message = refused(TASK, data(train=tagged("B-a O"), test=tagged("O", "O I-a B-a")))
    assert "data.test row 2, word 2 ('w'): I-a follows O." in message


def test_many_malformed_tags_are_counted():
    message = refused(TASK, data(train=tagged("B-a", *["I-a"] * 50)))
    assert "50 tags break the scheme BIO" in message
    assert len(message.splitlines()) < 10


def test_class_labels_keep_their_order_and_names_that_do_not_occur():
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=NAMES))})
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[3, 0]]}, features=features)
    checked = TASK.check(DatasetDict(train=rows))
    assert TASK.names(checked) == NAMES
    assert checked["train"]["tags"][:] == [[3, 0]]


def test_numbers_need_names():
    numbers = {"tokens": [["a", "b"]], "tags": [[3, 0]]}
    assert "row 1: 'tags' has 3, which is no tag. Numbers need names" in refused(
        TASK, data(train=numbers)
    )
    task = TokenClassification(tag_names=NAMES)
    assert task.names(task.check(data(train=numbers))) == NAMES
    assert "has 5" in refused(task, data(train={"tokens": [["a"]], "tags": [[5]]}))


@pytest.mark.parametrize(
    ("tokens", "tags", "words"),
    [([["a", "b"], ["x"]], [["O"], ["B-a"]], "row 1: has 2 words and 1 tags"),
     (["a b"], ["O O"], "'tokens' holds no lists"),
     ([["a", None]], [["O", "B-a"]], "row 1: 'tokens' has None"),
     ([["x"], ["a", "b"]], [["O"], ["O", ""]], "row 2: 'tags' has ''"),
     ([["a", "b"]], [["O", None]], "row 1: 'tags' has None"),
     ([["a"], ["x"]], [None, ["O"]], "row 1: has 1 words and 0 tags"),
     ([["a"]], [["O"]], "the single tag O"),
     ([["a"]], [["X"]], "the single tag X"),
     ([[], []], [[], []], "empty in every row")],
)  # fmt: skip
def test_rows_that_cannot_be_taken(tokens, tags, words):
    assert words in refused(TASK, data(train={"tokens": tokens, "tags": tags}))


def test_columns_that_are_not_there():
    message = refused(TASK, data(train={"tokns": [["a"]], "tags": [["O"]]}))
    assert "task.tokens names column 'tokens'" in message
    assert "Did you mean 'tokns'?" in message


def test_tags_that_train_does_not_have():
    message = refused(TASK, data(train=tagged("O B-PER"), test=tagged("B-PRE O")))
    assert "data.test: 'tags' has tags that train does not: B-PRE" in message
    assert "Did you mean" in message
    checked = TASK.check(data(train=tagged("O B-PER"), test=tagged("B-PER I-PER")))
    assert checked["test"]["tags"][:] == [[1, 2]]  # the type is known: its I may come later


def test_a_scheme_that_does_not_fit():
    task = TokenClassification(scheme="BIO")
    assert "task.scheme: BIO has no tags like S-a" in refused(task, data(train=tagged("O S-a")))


def test_rows_without_words_are_left_out_and_told(caplog):
    columns = {"tokens": [["a"], [], ["b"]], "tags": [["O"], [], ["B-x"]]}
    with caplog.at_level(logging.WARNING):
        assert len(TASK.check(data(train=columns))["train"]) == 2
    assert "1 rows without words" in caplog.text


def test_only_the_types_to_keep_are_entities():
    rows = data(train=tagged("B-a I-a O B-b S-c".replace("S-c", "B-c")))
    checked = TASK.check(rows, ["a", "c"])
    assert TASK.names(checked) == ["O", "B-a", "I-a", "B-c", "I-c"]
    assert checked["train"]["tags"][:] == [[1, 2, 0, 0, 3]]
    assert "Did you mean 'aa'?" in refused(TASK, data(train=tagged("O B-aa B-b")), ["aaa", "b"])
    assert "no entities" in refused(TASK, data(train=tagged("X Y")), ["X", "Y"])


def test_rows_keep_their_other_columns():
    rows = TASK.check(data(train={**tagged("O B-a"), "id": [7], "file": ["mine"]}))["train"]
    assert rows.column_names == ["tokens", "tags", "id", "file"]


# Alignment


def begins(tokenizer, windows):
    """(sentence, word, the token it begins with), in order."""
    columns = zip(windows.sentences, windows.columns["input_ids"], windows.words, strict=True)
    return [
        (sentence, word, tokenizer.convert_ids_to_tokens(token))
        for sentence, ids, words in columns
        for token, word in zip(ids, words, strict=True)
        if word >= 0
    ]


def test_the_first_token_of_every_word_has_its_label(tokenizer):
    rows = TASK.check(data(train=tagged("O B-x I-x", words=[["rosered", "oak", "redred"]])))
    encoded = TASK.encode(rows["train"], tokenizer, None)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == [
        "[CLS]", "rose", "##red", "oak", "red", "##red", "[SEP]"]  # fmt: skip
    assert encoded[0]["labels"] == [-100, 0, -100, 1, 2, -100, -100]
    batch = TASK.collator(tokenizer)([encoded[0], {k: v[:3] for k, v in encoded[0].items()}])
    assert set(batch) == set(tokenizer.model_input_names) | {"labels"}
    assert batch["labels"].tolist()[1] == [-100, 0, -100, -100, -100, -100, -100]


@pytest.mark.parametrize("limit", [8, 9, 12, None])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_word_begins_once_however_long_the_sentence(tokenizer, limit, side):
    words = [WORDS[i % 8] + "red" * (i % 3) for i in range(40)]
    tokenizer.truncation_side = side
    windows = word_windows(tokenizer, [words, ["oak"], words[::-1]], limit)
    tokenizer.truncation_side = "right"
    found = begins(tokenizer, windows)
    expected = [(s, w) for s, n in enumerate((40, 1, 40)) for w in range(n)]
    assert [(sentence, word) for sentence, word, _ in found] == expected
    assert [token for _, _, token in found] == [
        WORDS[i % 8] for i in [*range(40), 3, *reversed(range(40))]]  # fmt: skip
    assert all(len(ids) <= (limit or 999) for ids in windows.columns["input_ids"])
    assert all(any(w >= 0 for w in places) for places in windows.words)


def test_words_of_which_nothing_is_left_stand_as_unknown(tokenizer):
    words = ["rose", "\u200b", "", "oak", "\x07"]
    found = begins(tokenizer, word_windows(tokenizer, [words], None))
    assert [word for _, word, _ in found] == [0, 1, 2, 3, 4]
    assert [token for *_, token in found] == ["rose", "[UNK]", "[UNK]", "oak", "[UNK]"]


def test_a_word_longer_than_a_window_counts_once(tokenizer):
    windows = word_windows(tokenizer, [["rose" + "red" * 30, "oak"]], 8)
    assert [word for _, word, _ in begins(tokenizer, windows)] == [0, 1]


def byte_level(folder, kind):
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trained.train_from_iterator(["red rose rose red"] * 9, 290, special_tokens=special)
    trained.save_model(str(folder))
    return kind(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_the_first_word_is_cut_like_the_others(tmp_path):
    """GPT-2's and RoBERTa's tokens of a word depend on the space before it."""
    processor = byte_level(tmp_path, RobertaTokenizerFast)
    TASK.prepare(processor, tiny._built(lambda: BertForTokenClassification(
        BertConfig(**{**tiny.BERT, "vocab_size": 300}))))  # fmt: skip
    ids = word_windows(processor, [["rose", "rose"], ["red"]], None).columns["input_ids"]
    assert ids[0][1 : len(ids[0]) // 2] == ids[0][len(ids[0]) // 2 : -1]
    processor.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert word_windows(again, [["rose", "rose"]], None).columns["input_ids"] == ids[:1]


def test_words_of_a_text_are_the_tokenizers_own(tokenizer):
    text = "rosered, oak. redred"
    windows, places = text_windows(tokenizer, [text, "", "elm"], 8)
    assert [text[a:b] for a, b in places[0]] == ["rosered", ",", "oak", ".", "redred"]
    assert [word for s, word, _ in begins(tokenizer, windows) if s == 0] == [0, 1, 2, 3, 4]
    assert places[1:] == [[], [(0, 3)]]


def test_the_space_before_a_word_is_no_part_of_it(tmp_path):
    """GPT-2 counts it to the token."""
    processor = byte_level(tmp_path, GPT2Tokenizer)
    text = "rose red, rose"
    _, (places,) = text_windows(processor, [text], None)
    assert [text[a:b] for a, b in places] == ["rose", "red", ",", "rose"]


def test_long_sentences_are_told(tokenizer, caplog):
    rows = TASK.check(data(train=tagged("O B-a", "O " * 20, words=[["oak"] * 2, ["oak"] * 20])))
    with caplog.at_level(logging.WARNING):
        encoded = TASK.encode(rows["train"], tokenizer, None)
    assert f"{len(encoded) - 2} windows more than the 2 sentences" in caplog.text
    assert sum(label != -100 for row in encoded["labels"] for label in row) == 22


# Metrics


def sentences_of(count, names, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(len(names), (n,), generator=generator).tolist() for n in sizes]


def measured(names, scheme, truth, answers, batch=3, rows=None):
    metric = StreamingTags(names, scheme, rows, "tags")
    longest = max(map(len, truth)) + 1
    for start in range(0, len(truth), batch):
        part = slice(start, start + batch)
        labels = [[-100, *tags, *[-100] * (longest - len(tags))] for tags in truth[part]]
        said = [[0, *tags, *[1] * (longest - len(tags))] for tags in answers[part]]
        result = metric(
            EvalPrediction(torch.tensor(said), torch.tensor(labels)),
            compute_result=start + batch >= len(truth),
        )
    return result, metric.tables


def named(names, sentences):
    return [[names[tag] for tag in tags] for tags in sentences]


@pytest.mark.parametrize("batch", [1, 3, 50])
@pytest.mark.parametrize(
    ("scheme", "reader"), [("BIO", IOB2), ("BIOES", IOBES)], ids=["BIO", "BIOES"]
)
def test_the_numbers_are_seqevals(scheme, reader, batch):
    names = in_order(["B-a", "B-b", "S-c"][: 2 if scheme == "BIO" else 3], scheme)
    truth, noise = (sentences_of(50, names, seed) for seed in (0, 0))
    truth = [[names.index(t) for t in repaired(tags, scheme)] for tags in named(names, truth)]
    answers = [a if i % 3 else b for i, (a, b) in enumerate(zip(truth, noise, strict=True))]
    result, tables = measured(names, scheme, truth, answers, batch)
    text = named(names, truth), named(names, answers)
    expected = classification_report(*text, mode="strict", scheme=reader, output_dict=True)
    for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert result[key] == pytest.approx(expected["micro avg"][name])
    assert result["macro_f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    assert result["lenient_f1"] == pytest.approx(f1_score(*text))
    flat = [sum(sentences, []) for sentences in (truth, answers)]
    assert result["accuracy"] == pytest.approx(accuracy_score(*flat))
    for row in tables["per_class"]:
        assert row["f1"] == pytest.approx(expected[row["label"]]["f1-score"])
        assert row["count"] == expected[row["label"]]["support"]
    assert set(result) == set(TASK.metric_names)


def test_the_strict_score_takes_no_entity_that_breaks_the_scheme():
    truth, answers = [[3, 4, 0]], [[4, 4, 0]]  # B-PER I-PER O against I-PER I-PER O
    result, _ = measured(NAMES, "BIO", truth, answers)
    assert result["f1"] == 0
    assert result["lenient_f1"] == 1


def test_parts_of_speech_count_word_by_word():
    names = ["ADJ", "NOUN", "VERB", "X"]
    truth, answers = sentences_of(40, names[:3], 1), sentences_of(40, names[:3], 1)
    answers = [[(t + (i % 4 == 0)) % 3 for t in tags] for i, tags in enumerate(answers)]
    result, tables = measured(names, "none", truth, answers)
    flat = [sum(sentences, []) for sentences in (truth, answers)]
    *_, f1, support = precision_recall_fscore_support(*flat, labels=range(4), zero_division=0)
    assert result["accuracy"] == result["f1"] == pytest.approx(accuracy_score(*flat))
    assert result["macro_f1"] == pytest.approx(f1[:3].mean())
    assert [row["label"] for row in tables["per_class"]] == names
    assert [row["f1"] for row in tables["per_class"]] == pytest.approx(f1.tolist())
    assert [row["count"] for row in tables["per_class"]] == support.tolist()


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_windows_are_put_together_before_entities_are_counted(cut):
    truth = [[3, 4, 4, 0, 1], [0], [1, 2, 0], [3, 4]]
    answers = [[3, 4, 4, 0, 0], [0], [1, 2, 2], [3, 4]]
    rows = Dataset.from_dict({"tags": truth})

    def windows(sentences):
        return [tags[i : i + cut] for tags in sentences for i in range(0, len(tags), cut)]

    whole, _ = measured(NAMES, "BIO", truth, answers, rows=rows)
    parts, _ = measured(NAMES, "BIO", windows(truth), windows(answers), batch=2, rows=rows)
    assert parts == whole
    assert whole["recall"] == pytest.approx(2 / 4)


def test_rows_in_another_order_are_not_put_together(caplog):
    truth = [[3, 4], [0], [1, 2, 0]]
    rows = Dataset.from_dict({"tags": truth})
    mixed = [truth[2], truth[0], truth[1]]
    result, _ = measured(NAMES, "BIO", mixed, mixed, batch=2, rows=rows)
    assert result["f1"] == result["accuracy"] == 1
    assert "window by window" not in caplog.text
    parts = [truth[2][:1], truth[0], truth[2][1:], truth[1]]
    result, _ = measured(NAMES, "BIO", parts, parts, batch=2, rows=rows)
    assert result["accuracy"] == 1
    assert "window by window" in caplog.text


def test_a_second_evaluation_starts_anew():
    metric = StreamingTags(NAMES, "BIO", None, "tags")
    batch = EvalPrediction(torch.tensor([[3, 0]]), torch.tensor([[3, 1]]))
    assert metric(batch, compute_result=True) == metric(batch, compute_result=True)


def test_outputs_that_are_not_finite_are_told():
    logits = torch.tensor([[[0.0, float("nan")], [1.0, 0.0]]])
    answers = first_answers(logits)
    metric = StreamingTags(["O", "a"], "IO", None, "tags")
    with pytest.raises(DataError, match="diverged"):
        metric(EvalPrediction(answers, torch.tensor([[0, 0]])), compute_result=True)


def test_mistakes_are_what_was_missed_and_what_was_said_in_its_place():
    words = ["Empire", "State", "is", "in", "New", "York"]
    truth = ["B-LOC", "I-LOC", "O", "O", "B-LOC", "I-LOC"]
    assert mistakes(words, truth, truth, "BIO") is None
    assert mistakes(words, truth, ["B-LOC", "I-LOC", "O", "O", "B-LOC", "O"], "BIO") == {
        "sentence": "Empire State is in New York",
        "missed": "New York (LOC)",
        "said wrongly": "New (LOC)",
    }
    assert mistakes(["a", "b"], ["X", "Y"], ["X", "X"], "none") == {
        "sentence": "a b", "missed": "b (Y)", "said wrongly": "b (X)"}  # fmt: skip


# Runs


SENTENCES = [
    f"{colour} {flower} {size} {tree}".split()
    for colour in ("red", "dry") for flower in ("rose", "tulip")
    for size in ("old", "tall") for tree in ("oak", "elm")
]  # fmt: skip
FLOWERS = {"rose": "B-FLOWER", "tulip": "B-FLOWER", "oak": "B-TREE", "elm": "B-TREE"}


def conll(path, sentences):
    blocks = ("\n".join(f"{w}\t{FLOWERS.get(w, 'O')}" for w in words) for words in sentences)
    path.write_text("\n\n".join(blocks) + "\n", "utf-8")


def recipe(folder, source, **blocks):
    conll(folder / "train.conll", SENTENCES)
    conll(folder / "test.conll", [*SENTENCES[::3], SENTENCES[0] * 4])
    training = {"output_dir": str(folder / "out"), "num_train_epochs": 3, "learning_rate": 0.02,
                "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip
    whole = {
        "task": {"type": "token-classification"},
        "data": {"type": "conll", "train": "train.conll", "test": "test.conll"},
        "model": {"name": str(source)},
        "training": training,
        **blocks,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole), "utf-8")
    return Recipe.load(folder / "recipe.yaml")


METHODS = {
    "l2-sp": {"penalty": {"type": "l2-sp", "lambda": 0.01}},
    "lp-ft": {"freeze": {"type": "lp-ft", "probe": 0.5}},
    "train-last": {"freeze": {"type": "train-last", "count": 1}},
    "similarity": {"penalty": {"type": "similarity"}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_reports(tmp_path, source, method):
    report = run(recipe(tmp_path, source, **METHODS[method])).data
    assert report["metrics"]["test"].keys() >= {*TASK.metric_names, "loss"}
    assert report["metrics"]["test"]["accuracy"] > 0.5
    assert report["labels"] == ["O", "B-FLOWER", "I-FLOWER", "B-TREE", "I-TREE"]
    counts = {row["label"]: row["count"] for row in report["tables"]["test"]["per_class"]}
    assert counts == {"FLOWER": 10, "TREE": 10}  # 6 short sentences, and 4 in windows
    assert report["freeze"]["verified_unchanged"]
    assert "spearman" in report["retention"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "FLOWER" in page
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "AutoModelForTokenClassification" in card


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("finished")
    report = run(recipe(folder, source)).data
    return folder, report


def predicted(folder, given, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert main(["predict", str(folder / "out"), str(given), "--output", str(out)]) == 0
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def test_evaluate_gives_the_numbers_of_the_run(finished, capsys):
    folder, report = finished
    assert main(["evaluate", str(folder / "out")]) == 0
    told = capsys.readouterr().out.splitlines()
    row = next(line for line in told if line.startswith("test")).split()
    expected = [*TASK.metric_names, "loss"]
    assert row[1:] == [f"{report['metrics']['test'][key]:.4f}" for key in expected]


def test_predictions_of_texts_are_those_of_the_pipeline(finished, tmp_path):
    folder, _ = finished
    texts = ["red rose, tall oak.", "dry", "tulipred elmred", "old  elm rose"]
    (tmp_path / "in.txt").write_text("\n".join([*texts, "", " "]), "utf-8")
    found = predicted(folder, tmp_path / "in.txt", tmp_path)
    tagger = pipeline(
        "token-classification", model=str(folder / "out" / "model"), aggregation_strategy="first"
    )
    assert [record["text"] for record in found] == texts
    assert sum(len(record["entities"]) for record in found) >= 3
    for record, theirs in zip(found, tagger(texts), strict=True):
        ours = [(e["type"], e["start"], e["end"]) for e in record["entities"]]
        assert ours == [(e["entity_group"], e["start"], e["end"]) for e in theirs]
        scores = [e["score"] for e in record["entities"]]
        assert scores == pytest.approx([float(e["score"]) for e in theirs], abs=1e-5)
        assert all(record["text"][e["start"] : e["end"]] == e["text"] for e in record["entities"])


def test_words_are_tagged_one_by_one_also_in_long_sentences(finished, tmp_path):
    folder, _ = finished
    words = [["red", "rosered", "oak"], SENTENCES[0] * 9, ["\u200b"]]
    rows = "\n".join(json.dumps({"id": i, "tokens": w, "tags": []}) for i, w in enumerate(words))
    (tmp_path / "in.jsonl").write_text(rows, "utf-8")
    found = predicted(folder, tmp_path / "in.jsonl", tmp_path)
    assert [record["id"] for record in found] == [0, 1, 2]
    for record, given in zip(found, words, strict=True):
        assert record["text"] == " ".join(given)
        assert len(record["tags"]) == len(given)
        for entity in record["entities"]:
            assert record["text"][entity["start"] : entity["end"]] == entity["text"]
            assert (
                entity["text"].split()
                == given[record["text"][: entity["start"]].count(" ") :][
                    : len(entity["text"].split())
                ]
            )
    assert spans(found[1]["tags"], "BIO")[-1][2] > 30  # the end of the long one was read, too


def test_a_table_may_have_words_parted_by_spaces(finished, tmp_path, capsys):
    folder, _ = finished
    (tmp_path / "in.csv").write_text("tokens,id\nred rose,1\nold oak,2\n", "utf-8")
    assert main(["predict", str(folder / "out"), str(tmp_path / "in.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tokens,id,text,tags,entities"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("a.txt", "\n \n", "no texts"), ("a.jsonl", '{"tokens": []}', "a list of words is wanted"),
     ("a.jsonl", '{"tokens": ["a", null]}', "a list of words is wanted"),
     ("a.jsonl", '{"tokns": ["a"]}', "Did you mean 'tokns'"),
     ("a.csv", "text,id\n,1\n", "no row has a value in text")],
)  # fmt: skip
def test_inputs_that_cannot_be_tagged(tmp_path, name, content, words):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=words):
        TASK.read_inputs(tmp_path / name)


def test_a_run_that_stopped_goes_on_to_the_same_weights(tmp_path, source):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
        blocks = METHODS["l2-sp"]
        made = recipe(folder, source, **blocks)
        raw = yaml.safe_load((folder / "recipe.yaml").read_text())
        raw["training"] |= settings
        (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), "utf-8")
        made = Recipe.load(folder / "recipe.yaml")
        run(made)
        if folder.name == "parts":
            for name in ("report.json", "report.html", "README.md"):
                (folder / "out" / name).unlink()
            last = folder / "out" / "checkpoints" / "checkpoint-4"
            last.rename(tmp_path / "gone")
            run(made)
    models = [
        AutoModelForTokenClassification.from_pretrained(folder / "out" / "model")
        for folder in folders
    ]
    assert tiny.different(*(tiny.weights(model) for model in models)) == []


def test_a_source_with_tags_of_its_own_is_remembered(finished, tmp_path):
    """LwF holds what the source says at every word; its head is asked again afterwards."""
    folder, _ = finished
    settled = recipe(
        tmp_path, folder / "out" / "model", penalty={"type": "lwf"},
        task={"type": "token-classification", "scheme": "none"},
    )  # fmt: skip
    report = run(settled).data
    assert report["labels"] == ["B-FLOWER", "B-TREE", "O"]
    assert report["retention"]["by"] == "original head"
    assert 0 <= report["retention"]["top1_agreement"] <= 1
    assert report["penalty"]["methods"][0]["type"] == "lwf"


def test_parts_of_speech_run(tmp_path, source):
    rows = [{"tokens": words, "tags": [f"P{len(w)}" for w in words]} for words in SENTENCES]
    (tmp_path / "pos.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    settled = recipe(
        tmp_path, source, data={"type": "table", "train": "pos.jsonl", "test_fraction": 0.3}
    )
    report = run(settled).data
    metrics = report["metrics"]["test"]
    assert metrics["accuracy"] == metrics["f1"]
    assert report["labels"] == ["P3", "P4", "P5"]
    (tmp_path / "in.txt").write_text("red rose", "utf-8")
    record = predicted(tmp_path, tmp_path / "in.txt", tmp_path)[0]
    assert [word["text"] for word in record["words"]] == ["red", "rose"]


def test_the_schema_of_conll2003_on_the_hub(tmp_path, source):
    """tokens, pos_tags and ner_tags, a list of ClassLabel: as the shipped recipe takes it."""
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    features = Features({"id": Value("string"), "tokens": List(Value("string")),
                         "ner_tags": List(ClassLabel(names=names))})  # fmt: skip
    columns = {"id": ["0", "1"] * 4, "tokens": [["red", "oak", "elm"], ["rose"]] * 4,
               "ner_tags": [[0, 5, 6], [1]] * 4}  # fmt: skip
    folder = tmp_path / "conll2003"
    for split in ("train", "validation", "test"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = Dataset.from_dict(columns, features=features)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    loaded = Hub(path="conll2003").load(locator(tmp_path))
    task = TokenClassification(tags="ner_tags")
    assert task.names(task.check(loaded)) == names
    report = run(recipe(tmp_path, source, task={"type": "token-classification", "tags": "ner_tags"},
                        data={"type": "hub", "path": "conll2003"})).data  # fmt: skip
    assert report["labels"] == names
    assert set(report["metrics"]) == {"train", "validation", "test"}


def test_the_loss_is_the_same_for_every_batch_size(tmp_path, source):
    found = []
    for size in (1, 3, 8):
        args = {"per_device_eval_batch_size": size, "max_steps": 1, "use_cpu": True,
                "disable_tqdm": True, "output_dir": str(tmp_path / str(size))}  # fmt: skip
        report = run(recipe(tmp_path, source, training=args))
        found.append(report.data["metrics"]["test"]["loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("odd", ["X-per", "PER"])
def test_the_first_tag_of_no_scheme_is_pointed_at(odd):
    rows = {"tokens": [["a", "b"], ["c", "d"]], "tags": [["O", "B-PER"], ["B-PER", odd]]}
    data = DatasetDict(train=Dataset.from_dict(rows))
    with pytest.raises(DataError, match=rf"The first: '{odd}' at row 2, word 2 \('d'\)"):
        TagColumns("tokens", "tags").encoded(data, False, None)
