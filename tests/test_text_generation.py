"""text-generation: what is learned of a row, exact perplexity, and whole runs."""

import csv
import json
import math
import shutil
from pathlib import Path

import datasets
import pytest
import sacrebleu
import tiny_language
import torch
import yaml
from datasets import Dataset, DatasetDict
from tiny_language import CHATS, PAIRS, TEMPLATE, TEXTS, recipe, tokenizer, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_sft import running
from hf_sft.cli import main
from hf_sft.component import choices
from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.recipe import Recipe
from hf_sft.tasks import Task, TextGeneration
from hf_sft.tasks.generation_scores import answered
from hf_sft.tasks.language_metrics import StreamingLanguage, safe_exp, token_sums

datasets.disable_progress_bars()
RECIPES = Path(__file__).parent.parent / "recipes"
PAIR = {"prompt": "prompt", "completion": "completion"}


def encoded(rows, template=TEMPLATE, **settings):
    task, processor = TextGeneration(**settings), tokenizer(template)
    task.prepare(processor, tiny_language.llama())
    return task.encode(Dataset.from_list(rows), processor, None), processor


def taught(row, processor):
    """The text of the labelled tokens, and the text of all."""
    ids = [token for token in row["labels"] if token != -100]
    return processor.decode(ids), processor.decode(row["input_ids"])


# ---- what is learned ----


def test_the_loss_is_on_the_completion_and_the_end():
    rows, processor = encoded(PAIRS[:1], **PAIR)
    assert taught(rows[0], processor) == (" ea.<end>", "ae? ea.<end>")


def test_of_a_plain_text_everything_but_the_first_token_is_learned():
    rows, processor = encoded(TEXTS[:1], text="text")
    assert taught(rows[0], processor) == ("e? ea.<end>", "ae? ea.<end>")


def chat(*contents, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


@pytest.mark.parametrize("system", [None, "b c"])
def test_of_a_conversation_only_the_assistants_turns_are_learned(system):
    rows, processor = encoded([chat("a", "b", "c d", "e", system=system)], messages="messages")
    learned, whole = taught(rows[0], processor)
    assert learned == "b<end>e<end>"
    assert whole.endswith("<turn>user\nc d<end>\n<turn>assistant\ne<end>")
    assert ("system" in whole) == (system is not None)


def test_an_end_is_added_where_the_template_has_none_and_only_after_an_answer():
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    rows, processor = encoded([chat("a", "b"), chat("a", "b", "c")], plain, messages="messages")
    assert taught(rows[0], processor) == ("b<end>", "user: a\nassistant: b<end>")
    assert taught(rows[1], processor) == ("b", "user: a\nassistant: b\nuser: c\n")


def test_an_opening_turn_of_the_assistant_is_not_learned():
    turns = [{"role": "assistant", "content": "a"}, *chat("b", "c")["messages"]]
    rows, processor = encoded([{"messages": turns}], messages="messages")
    assert taught(rows[0], processor)[0] == "c<end>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    last = "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}:{% endif %}"
    rows = [chat("a", "b"), chat("a", "b", "c", "d")]
    with pytest.raises(DataError, match=r"data row 2.*turn 2.*task\.chat_template"):
        encoded(rows, last + "{{ m.content }}{% endfor %}", messages="messages")


def test_a_template_that_refuses_a_role_names_the_row():
    strict = "{% for m in messages %}{{ raise_exception('no tools') }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"data row 1: the chat template.*user, assistant.*no tools"
    ):
        encoded([chat("a", "b")], strict, messages="messages")


def test_cut_and_lost_examples_are_told_and_none_without_a_label_is_left(caplog):
    rows = [{"prompt": "a" * 9, "completion": "b"}, {"prompt": "a", "completion": "b" * 20},
            {"prompt": "a", "completion": "b"}]  # fmt: skip
    found, processor = encoded(rows, **PAIR, max_length=8)
    assert [taught(row, processor) for row in found] == [
        ("b" * 7, "a" + "b" * 7),  # its end is cut off, so that none is learned there
        ("b<end>", "ab<end>"),
    ]
    assert "2 of 3 examples are cut at 8 tokens (the longest has 22); 1 have nothing" in caplog.text
    with pytest.raises(DataError, match="no example has a token left"):
        encoded(rows[:1], **PAIR, max_length=8)


# ---- metrics ----


def test_the_perplexity_is_exact_over_tokens_whatever_the_batches():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, 7, generator=generator) * 3
    labels = torch.randint(7, (6, 5), generator=generator)
    labels[0, 2:] = labels[3] = -100
    labels[:, 0] = -100
    known = labels[:, 1:] != -100
    nll = -logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    expected = float(nll[known].double().mean())
    for size in (1, 4, 6):
        metric = StreamingLanguage()
        for at in range(0, 6, size):
            part = slice(at, at + size)
            sums = token_sums(logits[part], labels[part], shifts=True)
            assert sums.shape == (min(size, 6 - at), 3)
            batch = type("Batch", (), {"predictions": sums, "label_ids": labels[part]})
            found = metric(batch, compute_result=at + size >= 6)
        assert found["loss"] == pytest.approx(expected, rel=1e-6)
        assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    best = logits[:, :-1].argmax(-1) == labels[:, 1:]
    assert found["token_accuracy"] == pytest.approx(float(best[known].float().mean()))


def test_a_model_that_diverged_is_told_and_a_huge_loss_is_no_error():
    sums = torch.tensor([[float("nan"), 1, 0]])
    with pytest.raises(DataError, match="diverged"):
        StreamingLanguage()(type("Batch", (), {"predictions": sums}), compute_result=True)
    assert safe_exp(1e4) == math.inf


# ---- bad settings and bad data ----


@pytest.mark.parametrize(
    "settings",
    [{}, {"prompt": "a"}, {"messages": "a", "text": "b"}, {"text": "a", "completion": "b"},
     {**PAIR, "messages": "m"}],
)  # fmt: skip
def test_the_columns_of_exactly_one_form_are_wanted(tmp_path, settings):
    path = recipe(tmp_path)
    blocks = yaml.safe_load(path.read_text("utf-8"))
    blocks["task"] = {"type": "text-generation", **settings}
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    with pytest.raises(RecipeError, match="prompt and completion, or messages, or text"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{"prompt": "a", "complete": "b"}], PAIR, "Did you mean 'complete'"),
        ([{"prompt": "a", "completion": None}] * 9, PAIR, "row 1: 'completion' is empty"),
        ([{"messages": []}, CHATS[0]], {"messages": "messages"}, "row 1: 'messages' is '[]'"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {"messages": "messages"},
         "no turn of the assistant"),
        ([{"messages": [{"role": "user", "content": None}]}], {"messages": "messages"}, "turn 1"),
        ([{"messages": "hello"}], {"messages": "messages"}, "a list of {role, content} is wanted"),
    ],
)  # fmt: skip
def test_bad_rows_are_told(rows, settings, words):
    with pytest.raises(DataError) as error:
        TextGeneration(**settings).check(DatasetDict(train=Dataset.from_list(rows)))
    assert words in str(error.value)


def test_turns_of_sharegpt_are_those_of_the_roles():
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    rows = [chat("ae?", "ea.", "b f?", "fb.", system="be"), chat("cc?", "cc.")]
    shared = [{"talk": [{"from": names[t["role"]], "value": t["content"]} for t in r["messages"]]}
              for r in rows]  # fmt: skip
    found = TextGeneration(messages="talk").check(DatasetDict(train=Dataset.from_list(shared)))
    assert found["train"]["talk"][:] == [row["messages"] for row in rows]
    bad = [{"talk": [{"from": "human", "value": "a"}]}]
    with pytest.raises(DataError, match="no turn of the assistant"):
        TextGeneration(messages="talk").check(DatasetDict(train=Dataset.from_list(bad)))


ALPACA = [{"prompt": "be", "input": "ae", "completion": "ea"},
          {"prompt": "be", "input": "", "completion": "eb"},
          {"prompt": "be", "input": None, "completion": "eb"}]  # fmt: skip


def test_an_input_stands_below_its_prompt_where_there_is_one():
    rows, processor = encoded(ALPACA, **PAIR, input="input")
    assert [taught(row, processor)[1] for row in rows] == [
        "be\n\naeea<end>", "beeb<end>", "beeb<end>"]  # fmt: skip
    task = TextGeneration(**PAIR, input="input")
    assert len(task.check(DatasetDict(train=Dataset.from_list(ALPACA)))["train"]) == 3
    with pytest.raises(ValueError, match="name the prompt's column"):
        TextGeneration(text="text", input="input")


def test_a_run_on_prompts_with_inputs_predicts_with_and_without(tmp_path):
    path = recipe(tmp_path, task={"input": "input", "max_new_tokens": 2, "generate": 1})
    write_jsonl(tmp_path / "train.jsonl", ALPACA)
    write_jsonl(tmp_path / "test.jsonl", ALPACA)
    assert main(["run", str(path)]) == 0
    (tmp_path / "in.txt").write_text("be", "utf-8")
    for name, rows in (("in.txt", 1), ("test.jsonl", 3)):
        out = tmp_path / "out.jsonl"
        command = ["predict", str(tmp_path / "out"), str(tmp_path / name), "--output", str(out)]
        assert main(command) == 0
        assert len(out.read_text("utf-8").splitlines()) == rows


def test_there_are_no_labels_to_keep():
    with pytest.raises(DataError, match="no classes"):
        TextGeneration(**PAIR).check(DatasetDict(train=Dataset.from_list(PAIRS)), ["a"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"messages": "messages"}, "no chat template"), (PAIR, "no end-of-text token"),
     ({**PAIR, "packing": True}, "Set task.max_length")],
)  # fmt: skip
def test_what_a_tokenizer_lacks_is_told(settings, words):
    processor, model = tokenizer(None), tiny_language.llama()
    processor.eos_token = None if "end" in words else "<end>"
    processor.pad_token = "<unk>"
    if "max_length" in words:
        model.config = type("Unlimited", (), {"vocab_size": 99, "pad_token_id": 0})
    with pytest.raises(SourceError, match=words):
        TextGeneration(**settings).prepare(processor, model)


@pytest.mark.parametrize("said", ["", " \n"])
def test_an_empty_answer_is_refused_by_row(said):
    data = DatasetDict(train=Dataset.from_list([PAIRS[0], {"prompt": "a", "completion": said}]))
    with pytest.raises(DataError, match="data.train row 2: 'completion' is empty"):
        TextGeneration(**PAIR).check(data)
    data = DatasetDict(train=Dataset.from_list([chat("a", "b"), chat("a", "b", "c", said)]))
    with pytest.raises(DataError, match=r"row 2: 'messages' has an empty answer \(turn 4\)"):
        TextGeneration(messages="messages").check(data)


# ---- whole runs ----


def report(folder):
    return json.loads((folder / "out" / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    path = recipe(folder, "chat", {"generate": 2, "max_new_tokens": 6},
                  training={"num_train_epochs": 8})  # fmt: skip
    assert main(["run", str(path)]) == 0
    return folder


def test_a_run_learns_and_reports_perplexity_examples_and_retention(run):
    found = report(run)
    scores = found["metrics"]["test"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["perplexity"] < 12  # the tokenizer has 38 words
    assert found["retention"]["by"] == "original head"
    assert found["retention"]["kl"] > 0
    assert [row["prompt"] for row in found["tables"]["test"]["generated"]] == ["ae?", "ah?"]
    assert found["tables"]["test"]["generated"][0].keys() == {"prompt", "completion", "generated"}
    page = (run / "out" / "report.html").read_text("utf-8")
    assert "ea." in page
    assert "perplexity" in page


def test_evaluate_gives_the_same_numbers(run, capsys):
    assert main(["evaluate", str(run / "out")]) == 0
    assert f"{report(run)['metrics']['test']['perplexity']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 3])
def test_predict_says_what_the_pipeline_says(run, tmp_path, size):
    prompts = ["ae?", "b f g?", "cc"]
    (tmp_path / "in.txt").write_text("\n".join(prompts), "utf-8")
    out = ["--output", str(tmp_path / "out.jsonl"), "--batch-size", str(size)]
    assert main(["predict", str(run / "out"), str(tmp_path / "in.txt"), *out]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    pipe = pipeline("text-generation", str(run / "out" / "model"))
    for prompt, line in zip(prompts, lines, strict=True):
        asked = [{"role": "user", "content": prompt}]
        answer = pipe(asked, return_full_text=False)
        assert answer[0]["generated_text"] == line["generated"]
        assert line["messages"] == asked


def test_predict_takes_a_table_and_leaves_the_own_answer_out_of_the_question(run, tmp_path, capsys):
    write_jsonl(tmp_path / "in.jsonl", [CHATS[0], {"messages": CHATS[0]["messages"][:1]}])
    capsys.readouterr()
    assert main(["predict", str(run / "out"), str(tmp_path / "in.jsonl")]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0]["generated"] == rows[1]["generated"]


@pytest.mark.parametrize("content", ['{"massages": []}\n', "", '{"messages": []}\n'])
def test_bad_prompts_are_refused(run, tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    out = tmp_path / "out.csv"
    assert (
        main(["predict", str(run / "out"), str(tmp_path / "in.jsonl"), "--output", str(out)]) == 2
    )
    assert not out.exists()


def test_the_saved_model_knows_template_and_end(run):
    assert AutoTokenizer.from_pretrained(run / "out" / "model").chat_template == TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(run / "out" / "model")
    assert model.generation_config.eos_token_id == 1


def test_a_source_that_samples_is_saved_as_one_that_does_not(tmp_path, caplog):
    """transformers would not save a temperature without sampling."""
    model, task = tiny_language.llama(), TextGeneration(**PAIR, max_new_tokens=5)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, num_beams=2)
    task.prepare(tokenizer(), model)
    assert "temperature: 0.6" in caplog.text
    model.save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (found.do_sample, found.max_new_tokens) == (False, 5)
    assert (found.temperature, found.top_p, found.num_beams) == (None, None, None)


def test_a_source_that_says_nothing_of_writing_has_nothing_to_tell(caplog):
    TextGeneration(**PAIR).prepare(tokenizer(), tiny_language.gpt2())
    assert not caplog.text


@pytest.mark.parametrize("length", [tiny_language.LENGTH, 1000])
def test_answers_that_leave_no_room_for_a_prompt_are_refused(length):
    task = TextGeneration(**PAIR, max_new_tokens=length)
    with pytest.raises(
        SourceError, match=f"{length} leave no room .* takes {tiny_language.LENGTH}"
    ):
        task.prepare(tokenizer(), tiny_language.llama())
    task = TextGeneration(**PAIR, max_new_tokens=tiny_language.LENGTH - 1, max_length=4)
    task.prepare(tokenizer(), tiny_language.llama())  # the room is the model's own


@pytest.mark.parametrize("form", ["pair", "chat", "text"])
def test_packed_and_unpacked_runs_measure_the_same(tmp_path, form):
    """At a learning rate of 0 both are the source, on the same tokens."""
    found = []
    for packing in (False, True):
        folder = tmp_path / str(packing)
        folder.mkdir()
        path = recipe(folder, form, {"packing": packing}, training={"learning_rate": 0.0})
        assert main(["run", str(path)]) == 0
        found.append(report(folder)["metrics"]["test"])
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    assert found[1]["token_accuracy"] == found[0]["token_accuracy"]


@pytest.mark.parametrize(
    "blocks",
    [{"freeze": {"type": "train-last", "count": 1}}, {"penalty": {"type": "lwf"}},
     {"freeze": {"type": "train-last", "count": 1}, "task": {"packing": True}}],
    ids=["train-last", "lwf", "train-last packed"],
)  # fmt: skip
def test_methods_work_on_a_language_model(tmp_path, blocks):
    assert main(["run", str(recipe(tmp_path, "pair", blocks.pop("task", ()), **blocks))]) == 0
    found = report(tmp_path)
    assert found["freeze"]["verified_unchanged"]
    assert found["retention"]["examples"] > 0
    if "freeze" in blocks:
        trains = [group["trainable"] > 0 for group in found["groups"] if group["parameters"]]
        assert trains == [False, False, True]


def test_lp_ft_trains_the_heads_own_parameters_first(tmp_path):
    tiny_language.source_folder(tmp_path / "source", build=tiny_language.untied)
    assert main(["run", str(recipe(tmp_path, freeze={"type": "lp-ft"}))]) == 0
    found = report(tmp_path)
    assert [group["name"] for group in found["groups"] if group["trainable"]][-1] == "head"
    assert found["retention"]["kl"] > 0


def test_a_tied_head_cannot_be_probed(tmp_path, capsys):
    assert main(["check", str(recipe(tmp_path, freeze={"type": "lp-ft"}))]) == 2
    assert "nothing trains at the first step" in capsys.readouterr().err


def test_the_schema_of_the_recipes_data_set_is_read_from_a_folder(tmp_path):
    """HuggingFaceH4/no_robots: prompt, prompt_id, messages, category."""
    shutil.copy(RECIPES / "text-generation" / "chat_smollm2_l2sp.yaml", tmp_path / "recipe.yaml")
    tiny_language.source_folder(tmp_path / "source")
    (tmp_path / "no_robots").mkdir()
    rows = [{"prompt": "a", "prompt_id": "0", **row, "category": "Open QA"} for row in CHATS]
    for split in ("train", "test"):
        write_jsonl(tmp_path / "no_robots" / f"{split}.jsonl", rows)
    local = ["data.path=no_robots", "model.name=./source", "task.generate=1", "task.max_length=64"]
    place = [f"training.output_dir={tmp_path}/out", "training.use_cpu=true"]
    assert main(["run", str(tmp_path / "recipe.yaml"), *local, *place]) == 0
    assert report(tmp_path)["tables"]["test"]["generated"]


def test_the_type_is_found():
    assert choices(Task)["text-generation"] is TextGeneration


def test_a_blend_takes_the_least_perplexity(tmp_path, capsys):
    data = {"type": "table", "train": "train.jsonl", "max_train_samples": 12}
    assert main(["run", str(recipe(tmp_path, "pair", data=data))]) == 0
    assert main(["blend", str(tmp_path / "out"), "--output", str(tmp_path / "blend")]) == 0
    made = json.loads((tmp_path / "blend" / "blend.json").read_text("utf-8"))["blend"]
    targets = {point["alpha"]: point["target"] for point in made["path"]}
    assert targets[made["alpha"]] == min(targets.values())
    assert made["alpha"] > 0


def test_answers_are_scored_as_they_come():
    rows = [({"prompt": "a", "completion": "the cat sat"}, " the cat sat "),
            ({"prompt": "b", "completion": "red roses"}, "blue roses"),
            ({"prompt": "c", "completion": ""}, "no reference")]  # fmt: skip
    kinds = ["rouge", "chrf", "bleu", "exact_match"]
    found = answered(iter(rows), kinds, tiny_language.tokenizer())
    scores = {row["metric"]: row["score"] for row in found["generation"]}
    texts, wanted = ["the cat sat", "blue roses"], ["the cat sat", "red roses"]
    assert scores["exact_match"] == 50
    assert scores["chrf"] == round(sacrebleu.corpus_chrf(texts, [wanted]).score, 2)
    assert scores["rouge1"] == 75
    assert {row["texts"] for row in found["generation"]} == {2}
    assert all(row["signature"] for row in found["generation"])
    assert [row["generated"] for row in found["generated"]] == [text for _, text in rows]
    assert "generation" not in answered(iter(rows), [], tiny_language.tokenizer())


def test_a_run_scores_its_answers(tmp_path):
    task = {"generate": 4, "scores": ["chrf", "exact_match"], "max_new_tokens": 4}
    report = running.run(Recipe.load(recipe(tmp_path, "chat", task=task)))
    found = report.data["tables"]["test"]["generation"]
    assert [row["metric"] for row in found] == ["chrf", "exact_match"]
    assert found[0]["texts"] == 4
    assert "exact_match" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_scores_need_answers():
    with pytest.raises(ValueError, match="generate"):
        TextGeneration(prompt="a", completion="b", scores=["rouge"])
    with pytest.raises(ValueError, match="scores"):
        TextGeneration(prompt="a", completion="b", generate=2, scores=["meteor"])
