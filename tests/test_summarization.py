"""summarization: documents and their summaries, scored by ROUGE; tokenizers of many languages."""

import json
from pathlib import Path

import pytest
import tiny_writing
import torch
from datasets import Dataset, DatasetDict
from rouge_score.rouge_scorer import RougeScorer
from transformers import (
    EvalPrediction,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    TrainerCallback,
)
from transformers.trainer import DEFAULT_CALLBACKS

from hf_sft import Recipe, run
from hf_sft.cli import main
from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.tasks import Summarization, Translation
from hf_sft.tasks.scripts import words
from hf_sft.tasks.summarization_metrics import StreamingSummarization, sentences

RECIPES = Path(__file__).parent.parent / "recipes"
TEXTS = [
    ("A storm hit the coast. Thousands fled.", "The storm hits the coast. Thousands are fleeing."),
    ("Nothing here matches at all.", "Eine Zeile auf Deutsch?"),
    ("Running runners ran. They won!", "They won! The runner runs."),
]


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("sizes", [[3], [1, 2]], ids=str)
def test_batch_by_batch_is_rouges_mean(stem, sizes):
    rows = Dataset.from_dict({"document": ["d"] * 3, "summary": [r for _, r in TEXTS]})
    metric = StreamingSummarization(Letters(), rows, ("document", "summary"), stem)
    first = 0
    for number, size in enumerate(sizes):
        ids = torch.arange(first, first + size)[:, None]
        first += size
        found = metric(EvalPrediction(ids, ids), compute_result=number == len(sizes) - 1)
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=stem)
    scores = [scorer.score(sentences(r), sentences(h)) for h, r in TEXTS]
    for kind in kinds:
        mean = sum(score[kind].fmeasure for score in scores) / len(scores)
        assert found[kind.lower()] == pytest.approx(100 * mean)
    stemmer = "Porter stemmer" if stem else "no stemmer"
    assert stemmer in metric.tables["signature"][0]["signature"]


LANGUAGES = {
    "hi": ("बूढ़ा कुत्ता दौड़ता है", "बूढ़ा कुत्ता सोता है", 75),
    "ru": ("Старая собака бежит", "старая собака спит", 66.7),
    "zh": ("老狗跑。", "老狗睡。", 66.7),
    "th": ("หมา", "หมู", 40),
    "ar": ("الكلب يجري", "الكلب ينام", 50),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_scripts_without_a_to_z_are_no_zeros(language):
    hypothesis, reference, rouge1 = LANGUAGES[language]
    rows = Dataset.from_dict({"document": ["d"], "summary": [reference]})
    metric = StreamingSummarization(Letters(), rows, ("document", "summary"))
    metric.add([hypothesis], [reference])
    assert metric.scores()["rouge1"] == pytest.approx(rouge1, abs=0.1)
    said = metric.signatures()[0]["signature"]
    assert "every script" in said
    assert "no stemmer" in said
    worse, same = metric.add(["", reference], [reference, reference])
    assert (worse, same) == (0, pytest.approx(100))
    usual = StreamingSummarization(Letters(), rows, ("document", "summary"), True, "rouge")
    usual.add([hypothesis], [reference])
    assert usual.scores()["rouge1"] == 0
    assert "100% of the letters are others" in usual.signatures()[0]["signature"]


def test_german_is_scored_as_published_and_what_is_lost_is_told():
    rows = Dataset.from_dict({"document": ["d"], "summary": ["für die Tür"]})
    metric = StreamingSummarization(Letters(), rows, ("document", "summary"))
    assert not metric.unicode
    assert "22% of the letters are others" in metric.signatures()[0]["signature"]
    assert words("Für die Tür!") == ["für", "die", "tür"]


class Letters:
    """A tokenizer that knows the hypotheses by their numbers."""

    pad_token_id = 0

    def batch_decode(self, ids, skip_special_tokens):
        return [TEXTS[int(row[0])][0] for row in ids]


def test_the_sum_over_sentences_differs_from_the_whole():
    """The same sentences in another order: Lsum finds them, L does not."""
    metric = Summarization().metrics([])
    metric.add(["The cat sat. The dog ran."], ["The dog ran. The cat sat."])
    assert metric.scores()["rougelsum"] == 100
    assert metric.scores()["rougel"] < 60


def test_sentences_end_where_a_mark_and_a_space_stand():
    assert sentences("One. Two!  Three? 3.5 is four") == "One.\nTwo!\nThree?\n3.5 is four"


def documents(folder):
    """A data set as EdinburghNLP/xsum spells it."""
    folder.mkdir()
    for split, lines in (("train", tiny_writing.LINES), ("validation", tiny_writing.LINES[::6]),
                         ("test", tiny_writing.LINES[::4])):  # fmt: skip
        rows = [
            {"document": f"{en} {en}\n{en}", "summary": en, "id": str(i)}
            for i, (en, _) in enumerate(lines)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, "utf-8")
    return folder


def summarized(folder, *overrides, tied=True):
    """The report of the XSum recipe on a tiny BART and data of its schema."""
    source = tiny_writing.source_folder(folder / "source", "bart", tied=tied)
    recipe = Recipe.load(
        RECIPES / "summarization" / "xsum_bart_l2sp.yaml",
        [f"data={{type: hub, path: {documents(folder / 'data')}}}", f"model.name={source}",
         f"training.output_dir={folder / 'out'}", "training.use_cpu=true",
         "training.disable_tqdm=true", "training.save_strategy=no", "training.warmup_steps=0",
         "task.generation={num_beams: 2, max_new_tokens: 6}", *overrides],
    )  # fmt: skip
    return run(recipe).data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xsum")
    return folder, summarized(folder)


def test_train_last_and_lp_ft_on_summaries(tmp_path):
    (tmp_path / "last").mkdir()
    last = summarized(tmp_path / "last", "freeze={type: train-last, count: 1}")
    assert last["freeze"]["verified_unchanged"]
    assert sum(bool(group["drift"]) for group in last["groups"]) == 1
    (tmp_path / "probed").mkdir()
    probed = summarized(tmp_path / "probed", "freeze={type: lp-ft, probe: 0.5}", tied=False)
    assert list(probed["transitions"][0]["trains"]) == ["head"]
    assert all(group["drift"] > 0 for group in probed["groups"])


def test_the_xsum_recipe_trains_on_a_folder_of_its_schema(finished):
    folder, report = finished
    assert report["splits"] == {"train": 36, "validation": 6, "test": 9}
    assert set(report["metrics"]["test"]) == {"rouge1", "rouge2", "rougel", "rougelsum", "loss"}
    assert all(0 <= value <= 100 for value in report["metrics"]["test"].values())
    scores = [row["rougel"] for row in report["tables"]["test"]["worst_examples"]]
    assert len(scores) == 9
    assert scores == sorted(scores)
    assert report["retention"]["by"] == "original head"


def test_summaries_are_predicted_from_a_table(finished, capsys):
    folder, report = finished
    capsys.readouterr()
    assert main(["evaluate", str(folder / "out")]) == 0
    assert f"{report['metrics']['test']['loss']:.4f}" in capsys.readouterr().out
    (folder / "in.csv").write_text('id,document\n7,"one red house is big"\n', "utf-8")
    assert main(["predict", str(folder / "out"), str(folder / "in.csv")]) == 0
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header == "id,document,summary_text"
    assert row.startswith("7,one red house is big,")


class Stopping(TrainerCallback):
    """What a crash after the first checkpoint looks like."""

    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_an_unfinished_run_goes_on(tmp_path, monkeypatch):
    path = tiny_writing.recipe(tmp_path, training={"num_train_epochs": 2})
    whole = run(Recipe.load(path)).data
    stopped = Recipe.load(path, [f"training.output_dir={tmp_path / 'stopped'}"])
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [*DEFAULT_CALLBACKS, Stopping])
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    first = next((tmp_path / "stopped" / "checkpoints").glob("checkpoint-*/model.safetensors"))
    written = first.stat().st_mtime_ns
    assert run(stopped).data["metrics"]["test"] == whole["metrics"]["test"]
    assert first.stat().st_mtime_ns == written


# ---- languages ----

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b"]


def tokenizer(kind):
    if kind is NllbTokenizer:
        return kind(vocab={word: i for i, word in enumerate(WORDS)}, merges=[])
    return kind(vocab=[(word, 0.0) for word in WORDS])


def model(words):
    sizes = {**tiny_writing.SIZES, "pad_token_id": words.pad_token_id, "eos_token_id": 2}
    config = MBartConfig(vocab_size=len(words), decoder_start_token_id=2, **sizes)
    return MBartForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("kind", "codes", "forced"),
    [(NllbTokenizer, ("eng_Latn", "deu_Latn"), True), (MBart50Tokenizer, ("en_XX", "de_DE"), True),
     (MBartTokenizer, ("en_XX", "de_DE"), False)], ids=["nllb", "mbart50", "mbart"],
)  # fmt: skip
def test_a_text_is_written_in_the_language_asked_for(kind, codes, forced):
    words = tokenizer(kind)
    source = model(words)
    task = Translation(source_lang=codes[0], target_lang=codes[1], generation={"max_new_tokens": 4})
    task.prepare(words, source)
    rows = Dataset.from_dict({"source": ["a b"], "target": ["b a"]})
    encoded = task.encode(rows, words, source.config)
    english, german = words.convert_tokens_to_ids(list(codes))
    assert english in encoded[0]["input_ids"]
    assert german in encoded[0]["labels"]
    batch = task.collator(words)([encoded[0]])
    made = source.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert batch["decoder_input_ids"].tolist() == made.tolist()
    written = source.generate(**{k: batch[k] for k in ("input_ids", "attention_mask")})[0].tolist()
    assert written[1 if forced else 0] == german
    assert (source.generation_config.forced_bos_token_id == german) is forced


@pytest.mark.parametrize(
    ("codes", "words"),
    [({}, r"task\.source_lang.*many languages"), ({"source_lang": "en_XX"}, r"task\.target_lang"),
     ({"source_lang": "en_XX", "target_lang": "de_D"}, "Did you mean 'de_DE'")], ids=str,
)  # fmt: skip
def test_a_tokenizer_of_many_languages_must_be_told(codes, words):
    known = tokenizer(MBart50Tokenizer)
    with pytest.raises(SourceError, match=words):
        Summarization(**codes).prepare(known, model(known))


def test_a_model_that_does_not_say_how_its_decoder_starts():
    words = tiny_writing.tokenizer()
    source = tiny_writing.model("t5", len(words))
    source.config.decoder_start_token_id = None
    with pytest.raises(SourceError, match="decoder_start_token_id"):
        Summarization().prepare(words, source)


def test_lengths_and_beams_belong_to_the_task(tmp_path):
    path = tiny_writing.recipe(tmp_path, training={"generation_num_beams": 4})
    with pytest.raises(RecipeError, match=r"task\.generation\.num_beams"):
        Recipe.load(path)


def test_a_missing_summary_is_named():
    rows = Dataset.from_dict({"document": ["a"], "summary": [None]})
    with pytest.raises(DataError, match="data.train row 1: 'summary' is empty"):
        Summarization().check(DatasetDict(train=rows))
