"""translation: pairs of texts through an encoder-decoder that writes, scored as sacreBLEU does."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny_writing
import torch
from datasets import Dataset, DatasetDict, Features, Translation, Value
from sacrebleu.metrics import BLEU, CHRF
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, EvalPrediction

from hf_sft import LayerGroups, Recipe, run
from hf_sft.cli import main
from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.tasks import Translation as Task
from hf_sft.tasks.seq2seq_generation import used
from hf_sft.tasks.translation import usual
from hf_sft.tasks.translation_metrics import StreamingTranslation

RECIPES = Path(__file__).parent.parent / "recipes"
SENTENCES = [
    ("The cat sat on the old mat today .", "The cat sits on the mat today."),
    ("Ein Haus steht am See.", "Ein grosses Haus steht am See."),
    ("", "Nothing was written here at all."),
    ("a b c d e f", "a b c d e f"),
    ("Völlig anders geraten", "Wasser ist nass, sagt man."),
]


class Words:
    """A tokenizer of whole texts: id -> text."""

    pad_token_id = 0

    def __init__(self, texts):
        self.texts = ["", *texts]

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(self.texts[i] for i in row if i) for row in ids]


def streamed(pairs, sizes, words="13a"):
    """The metric over batches of these sizes; padding by -100 and by the pad token."""
    rows = Dataset.from_dict({"source": ["s"] * len(pairs), "target": [r for _, r in pairs]})
    metric = StreamingTranslation(Words([h for h, _ in pairs]), rows, ("source", "target"), words)
    first, found = 0, {}
    for number, size in enumerate(sizes):
        ids = torch.tensor([[i + 1, 0, -100] for i in range(first, first + size)])
        first += size
        batch = EvalPrediction(predictions=ids, label_ids=torch.zeros(size, 2))
        found = metric(batch, compute_result=number == len(sizes) - 1)
    return found, metric


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("words", ["13a", "char"])
def test_batch_by_batch_is_the_corpus_score(sizes, words):
    found, _ = streamed(SENTENCES, sizes, words)
    hypotheses, references = zip(*SENTENCES, strict=True)
    expected = {
        "chrf": CHRF().corpus_score(hypotheses, [references]).score,
        "bleu": BLEU(tokenize=words).corpus_score(hypotheses, [references]).score,
    }
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[25], [5] * 5, [1] * 25], ids=len)
def test_memory_does_not_grow_and_the_signature_and_worst_texts_are_kept(sizes):
    _, metric = streamed(SENTENCES * 5, sizes)
    worst = sorted(SENTENCES, key=lambda pair: CHRF().sentence_score(pair[0], [pair[1]]).score)
    kept = metric.tables["worst_examples"]
    assert [row["hypothesis"] for row in kept] == [worst[0][0]] * 5 + [worst[1][0]] * 5
    assert kept[0]["chrf"] == pytest.approx(CHRF().sentence_score(worst[0][0], [worst[0][1]]).score)
    said = {row["metric"]: row["signature"] for row in metric.tables["signature"]}
    assert "tok:13a" in said["bleu"]
    assert "nc:6" in said["chrf"]
    metric.add(["a"], ["a"])
    assert sorted(len(sums) for sums in metric.counts.values()) == [10, 18]


def test_what_a_last_batch_repeats_does_not_count():
    """Many processes: the last batch is filled up with the first rows."""
    rows = Dataset.from_dict({"source": ["s"] * 2, "target": ["a b c d", "e f g h"]})
    metric = StreamingTranslation(
        Words(["a b c d", "e f g h", "never seen"]), rows, ("source", "target")
    )
    batch = EvalPrediction(torch.tensor([[1], [2], [3]]), torch.zeros(3, 1))
    assert metric(batch, compute_result=True) == {
        "chrf": pytest.approx(100),
        "bleu": pytest.approx(100),
    }
    again = EvalPrediction(torch.tensor([[3], [3]]), torch.zeros(2, 1))
    assert metric(again, compute_result=True)["chrf"] < 20  # the next evaluation starts anew


@pytest.mark.parametrize(
    ("settings", "tokenizer"),
    [({}, "13a"), ({"target_lang": "zh_CN"}, "zh"), ({"target": "translation.zh"}, "zh"),
     ({"target_lang": "zh", "tokenize": "char"}, "char"), ({"target_lang": "jpn_Jpan"}, "char"),
     ({"target_lang": "ko"}, "char"), ({"target_lang": "th"}, "char"),
     ({"target_lang": "de_DE"}, "13a")], ids=str,
)  # fmt: skip
def test_chinese_is_split_into_its_signs(settings, tokenizer):
    metric = Task(**settings).metrics([])
    metric.add(["a"], ["a"])
    assert f"tok:{tokenizer}" in metric.signatures()[1]["signature"]


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [(["一只老狗", "GPU 很快"], "zh"), (["老いた犬は走る"], "char"), (["늙은 개"], "char"),
     (["หมาแก่"], "char"), (["старая собака", "alter Hund"], "13a"), ([], "13a")],
    ids=["chinese", "japanese", "korean", "thai", "russian", "nothing"],
)  # fmt: skip
def test_without_a_code_the_letters_tell(texts, tokenizer):
    assert usual("target", texts) == tokenizer
    assert usual("en", ["一只老狗"]) == "zh"  # a column of that name says less than its letters


MECAB = "sacrebleu.tokenizers.tokenizer_{}_mecab.MeCab"  # None where it is not installed


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_tokenizer_that_is_not_installed_is_told_with_its_package(
    tmp_path, monkeypatch, capsys, language
):
    monkeypatch.setattr(MECAB.format(language), None)
    path = tiny_writing.recipe(tmp_path, task={"tokenize": f"{language}-mecab"})
    assert main(["check", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"task.tokenize: {language}-mecab needs MeCab" in said
    assert f"pip install 'sacrebleu[{language}]'; or set tokenize: char" in said
    assert not (tmp_path / "out").exists()


def test_flores_names_what_it_takes(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    rows = DatasetDict(train=Dataset.from_dict({"source": ["a"], "target": ["b"]}))
    with pytest.raises(DataError, match=r"flores200 needs sentencepiece.*pip install sent"):
        Task(tokenize="flores200").check(rows)
    assert Task().check(rows)["train"].num_rows == 1


# ---- data ----


def test_two_languages_of_the_hubs_translation_column():
    features = Features({"translation": Translation(languages=["de", "en"])})
    rows = Dataset.from_dict({"translation": [{"de": "rot", "en": "red"}]}, features=features)
    data = DatasetDict(train=rows)
    for task in (
        Task(source_lang="en", target_lang="de"),
        Task(source_lang="en_XX", target_lang="de_DE"),
        Task(source="translation.en", target="translation.de"),
    ):
        checked = task.check(data)["train"]
        assert (checked[0][task.source], checked[0][task.target]) == ("red", "rot")
    with pytest.raises(DataError, match=r"has de, en.*task\.source_lang"):
        Task(source_lang="en", target_lang="fr").check(data)


def test_a_dict_written_as_text_is_read_and_a_broken_row_is_named():
    """pandas and datasets write so to csv."""
    rows = ['{"de": "rot", "en": "it\'s red"}', "{'de': 'alt', 'en': 'old'}"]
    task = Task(source="translation.en", target="translation.de")
    data = DatasetDict(train=Dataset.from_dict({"translation": rows}))
    assert task.check(data)["train"]["translation.en"][:] == ["it's red", "old"]
    data["test"] = Dataset.from_dict({"translation": [rows[0], "{'de': 'alt'"]})
    with pytest.raises(DataError, match=r"data\.test row 2: 'translation' is .*first row"):
        task.check(data)
    plain = Dataset.from_dict({"source": ["old"], "translation": ["alt"]})
    checked = Task(target="translation").check(DatasetDict(train=plain))["train"]
    assert checked["translation"][:] == ["alt"]
    lacking = Dataset.from_dict({"translation": [rows[0], "{'de': 'alt'}"]})
    with pytest.raises(DataError, match=r"row 2: 'translation\.en' is empty"):
        task.check(DatasetDict(train=lacking))


@pytest.mark.parametrize(
    ("rows", "words"),
    [({"source": ["a"], "tgt": ["b"]}, "'target'"),
     ({"source": ["a", "b"], "target": ["c", None]}, "data.train row 2: 'target' is empty")],
    ids=["missing", "empty"],
)  # fmt: skip
def test_bad_pairs_are_named(rows, words):
    with pytest.raises(DataError, match=words):
        Task().check(DatasetDict(train=Dataset.from_dict(rows)))


def test_numbers_are_texts_and_classes_cannot_be_kept():
    rows = Dataset.from_dict({"source": [7], "target": [8]})
    assert Task().check(DatasetDict(train=rows))["train"].features["source"] == Value("string")
    with pytest.raises(DataError, match="keep_labels"):
        Task().check(DatasetDict(train=rows), keep=["a", "b"])


# ---- encoding ----


@pytest.mark.parametrize("kind", ["t5", "marian", "bart"])
def test_the_batch_gives_the_loss_the_model_itself_would_make_of_the_labels(kind):
    words = tiny_writing.tokenizer()
    model = tiny_writing.model(kind, len(words)).eval()
    task = Task(prefix="translate: ", max_source_length=4, max_target_length=3)
    task.prepare(words, model)
    rows = Dataset.from_dict(
        {"source": ["one", "two red house is"], "target": ["eins", "zwei rot haus"]}
    )
    encoded = task.encode(rows, words, model.config)
    ids = words.convert_tokens_to_ids(["translate:", "two", "red", "</s>", "zwei", "rot"])
    assert encoded[1]["input_ids"] == ids[:4]  # cut, its end kept
    assert encoded[1]["labels"] == [*ids[4:], ids[3]]
    batch = task.collator(words)([encoded[0], encoded[1]])
    assert batch["labels"][0].tolist()[-1] == -100
    own = {k: v for k, v in batch.items() if k != "decoder_input_ids"}
    assert torch.equal(model(**batch).loss, model(**own).loss)
    made = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    counts = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][counts], made[counts])


def test_no_text_is_longer_than_the_models_positions():
    words = tiny_writing.tokenizer()
    model = tiny_writing.model("marian", len(words))
    room = model.config.max_position_embeddings
    Task().prepare(words, model)
    assert model.generation_config.max_length == room
    with pytest.raises(SourceError, match=f"writes {room} tokens at most"):
        Task(generation={"max_new_tokens": room}).prepare(words, model)


@pytest.mark.parametrize(
    ("block", "target", "stated", "expected"),
    [({"max_new_tokens": 9}, 5, {}, 10), ({}, 5, {}, 6), ({}, None, {}, 129),
     ({}, None, {"max_length": 40}, 129), ({"max_length": 12}, None, {"max_new_tokens": 7}, 12),
     ({"num_beams": 2}, None, {"max_new_tokens": 7}, 129)], ids=str,
)  # fmt: skip
def test_how_long_a_text_may_get(block, target, stated, expected):
    """With the start token; never the 20 tokens of transformers' default."""
    words = tiny_writing.tokenizer()
    model = tiny_writing.model("t5", len(words))
    for key, value in stated.items():
        setattr(model.generation_config, key, value)
    Task(generation=block, max_target_length=target).prepare(words, model)
    config = model.generation_config
    assert (config.max_length, config.max_new_tokens) == (expected, None)
    assert config.num_beams == block.get("num_beams", 1)


@pytest.mark.parametrize(
    ("block", "words"),
    [({"num_beam": 4}, "num_beams"), ({"num_beams": 0}, "num_beams"),
     ({"num_return_sequences": 2}, "one text")], ids=str,
)  # fmt: skip
def test_generation_keys_are_checked_in_the_recipe(tmp_path, block, words):
    path = tiny_writing.recipe(tmp_path, task={"generation": block})
    with pytest.raises(RecipeError, match=words):
        Recipe.load(path)


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
def test_rows_in_another_order_are_refused(turned):
    """Else every text would be scored against the reference of another one."""
    words = tiny_writing.tokenizer()
    model = tiny_writing.model("t5", len(words))
    task = Task(prefix="translate: ", max_source_length=4)
    task.prepare(words, model)
    rows = Dataset.from_dict({"source": ["one", "two red house is"], "target": ["eins", "zwei"]})
    encoded = task.encode(rows, words, model.config)
    batch = task.collator(words)(list(encoded)[:: -1 if turned else 1])
    made = EvalPrediction(batch["labels"], batch["labels"], inputs=batch)
    with pytest.raises(DataError, match="another order") if turned else nullcontext():
        task.metrics([], words, rows)(made, True)


# ---- whole runs ----


def finished(folder, *overrides, **changes):
    report = run(Recipe.load(tiny_writing.recipe(folder, **changes), list(overrides)))
    return report.data


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    torch.manual_seed(0)
    return folder, finished(folder, training={"num_train_epochs": 12, "save_strategy": "no"})


def test_a_run_learns_and_its_report_has_scores_signature_and_texts(learnt):
    folder, report = learnt
    scores = report["metrics"]["test"]
    assert scores["chrf"] > 60  # an untrained one: below 15
    assert set(scores) == {"chrf", "bleu", "loss"}
    tables = report["tables"]["test"]
    assert [row["metric"] for row in tables["signature"]] == ["chrf", "bleu"]
    scores = [row["chrf"] for row in tables["worst_examples"]]
    assert scores == sorted(scores)
    told = tables["worst_examples"][0]
    assert (told["source"], told["reference"]) in tiny_writing.LINES
    assert told["source"] in (folder / "out" / "report.html").read_text("utf-8")
    assert report["retention"]["answers"] == 36  # three words and the end, of nine rows
    assert report["retention"]["kl"] > 0
    assert report["labels"] == []


def test_evaluate_and_predict_agree_with_generate(learnt, capsys):
    folder, report = learnt
    capsys.readouterr()
    assert main(["evaluate", str(folder / "out")]) == 0
    assert f"{report['metrics']['test']['chrf']:.4f}" in capsys.readouterr().out
    (folder / "in.txt").write_text("one red house\n\ntwo old tree\n", "utf-8")
    output = folder / "out.jsonl"
    assert (
        main(["predict", str(folder / "out"), str(folder / "in.txt"), "--output", str(output)]) == 0
    )
    records = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "out" / "model").eval()
    words = AutoTokenizer.from_pretrained(folder / "out" / "model")
    for record, given in zip(records, ["one red house", "two old tree"], strict=True):
        ids = model.generate(**words(given, return_tensors="pt"))
        text = words.decode(ids[0], skip_special_tokens=True)
        assert record == {"source": given, "translation_text": text}


def test_a_table_is_translated_with_its_other_columns(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"id": 1, "source": "one", "target": "eins"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert Task().read_inputs(path).to_list() == [{"id": 1, "source": "one"}]
    path.write_text('{"translation": {"en": "one", "de": "eins"}}\n', "utf-8")
    found = Task(source_lang="en", target_lang="de").read_inputs(path)
    assert found["source"][:] == ["one"]
    with pytest.raises(DataError, match=r"task\.source"):
        Task(source="english").read_inputs(path)


@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_the_saved_model_is_the_trained_one(tmp_path, kind, capsys):
    """Marian's positions are not saved: they must not train (transformers forgets so)."""
    report = finished(tmp_path, kind=kind, training={"save_strategy": "no"})
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert f"{report['metrics']['test']['loss']:.4f}" in capsys.readouterr().out


def test_train_last_leaves_all_but_the_last_block_of_the_decoder(tmp_path):
    freeze = {"type": "train-last", "count": 1}
    report = finished(tmp_path, freeze=freeze, training={"save_strategy": "no"})
    assert report["freeze"]["verified_unchanged"]
    assert [group["name"] for group in report["groups"] if group["drift"]] == ["decoder.block.1"]


def test_a_head_of_its_own_is_probed_first(tmp_path):
    freeze = {"type": "lp-ft", "probe": 0.5}
    settings = {"kind": "bart", "tied": False, "freeze": freeze}
    report = finished(tmp_path, training={"save_strategy": "no"}, **settings)
    assert all(group["drift"] > 0 for group in report["groups"])
    first, second = report["transitions"]
    assert list(first["trains"]) == ["head"]
    assert len(second["trains"]) == len(report["groups"])


def test_a_head_that_is_the_word_table_cannot_be_probed(tmp_path):
    with pytest.raises(RecipeError, match=r"tied.*train-last"):
        finished(tmp_path, freeze={"type": "lp-ft"})


def test_label_smoothing_and_a_best_checkpoint_by_chrf(tmp_path):
    training = {"label_smoothing_factor": 0.1, "load_best_model_at_end": True}
    report = finished(
        tmp_path, training=training, data={"validation": {"source": "test.en", "target": "test.de"}}
    )
    assert report["checkpoints"]["best"]
    scored = [entry for entry in report["history"] if "eval_chrf" in entry]
    assert len(scored) == 1


@pytest.mark.parametrize("kind", ["t5", "marian", "bart"])
def test_shared_words_are_in_one_group_and_moved_once(kind):
    model = tiny_writing.model(kind, 30)
    groups = LayerGroups.of(model)
    assert sorted(groups.parameters) == sorted(name for name, _ in model.named_parameters())
    blocks = [group.name for group in groups.blocks]
    assert len(blocks) == 4
    assert ["encoder" in name for name in blocks] == [True, True, False, False]
    assert groups.head.parameters == ()


# ---- the shipped recipes' schemas ----


def test_the_wmt16_recipe_trains_on_a_folder_of_its_schema(tmp_path):
    folder = tmp_path / "wmt16"
    folder.mkdir()
    for split, lines in (("train", tiny_writing.LINES), ("validation", tiny_writing.LINES[::6]),
                         ("test", tiny_writing.LINES[::4])):  # fmt: skip
        rows = [{"translation": {"de": de, "en": en}} for en, de in lines]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, "utf-8")
    source = tiny_writing.source_folder(tmp_path / "source")
    recipe = Recipe.load(
        RECIPES / "translation" / "wmt16_t5_l2sp.yaml",
        [f"data={{type: hub, path: {folder}}}", f"model.name={source}", "training.use_cpu=true",
         f"training.output_dir={tmp_path / 'out'}", "training.save_strategy=no",
         "training.disable_tqdm=true", "training.warmup_steps=0",
         "task.generation={num_beams: 2, max_new_tokens: 6}"],
    )  # fmt: skip
    report = run(recipe).data
    assert report["splits"] == {"train": 36, "validation": 6, "test": 9}
    written = (tmp_path / "out" / "model" / "generation_config.json").read_text("utf-8")
    assert json.loads(written)["num_beams"] == 2


def test_the_xquad_recipes_are_good(tmp_path, monkeypatch):
    for part in ("first", "second"):
        (tmp_path / part).mkdir()
        for name in ("train.en", "train.de", "test.en", "test.de"):
            tiny_writing.write_lines(tmp_path / part / name, ["one", "two"])
    (tmp_path / "untrained").mkdir()
    monkeypatch.setenv("HF_SFT_DATA", str(tmp_path))
    for name in ("xquad_t5tiny_source", "xquad_t5tiny_l2sp"):
        recipe = Recipe.load(RECIPES / "translation" / f"{name}.yaml")
        data = recipe.task.check(recipe.data.load(recipe.locate))
        assert data["test"].column_names == ["source", "target"]


def test_what_a_source_wrote_for_other_data_is_left_and_told(tmp_path, caplog):
    """Beams and lengths are the recipe's; tokens that start and end a text stay the source's."""
    words = tiny_writing.tokenizer()
    source = tiny_writing.model("bart", len(words))
    for key, value in {"num_beams": 4, "min_length": 56, "no_repeat_ngram_size": 3}.items():
        setattr(source.generation_config, key, value)
    with caplog.at_level("WARNING"):
        Task(generation={"no_repeat_ngram_size": 2}).prepare(words, source)
    assert "num_beams: 4, min_length: 56" in caplog.text
    assert "no_repeat_ngram_size" not in caplog.text
    assert source.generation_config.forced_eos_token_id == 1
    told = {row["key"]: row["value"] for row in used(source)}
    assert told == {"num_beams": 1, "max_length": 24, "no_repeat_ngram_size": 2}


def test_the_report_says_how_texts_were_written(tmp_path):
    path = tiny_writing.recipe(tmp_path, training={"max_steps": 1})
    tables = run(Recipe.load(path)).data["tables"]["test"]
    assert {"key": "num_beams", "value": 1} in tables["generation"]
    assert {"key": "max_length", "value": 7} in tables["generation"]
