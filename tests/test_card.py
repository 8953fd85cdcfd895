"""The model card: metadata the Hub accepts, nothing private, hostile text as text."""

import io
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from loopback_hub import read_card
from markdown_it import MarkdownIt
from test_report_page import HOME, HOSTILE, group, sample

from hf_sft import models, source_licence
from hf_sft.reporting import card, card_metadata, drift_picture


def facts(text):
    data, refused = read_card(text)
    assert not refused
    return data


def plain_html(text):
    """The body as a Markdown reader shows it."""
    body = ModelCard(text).text
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(body)


def test_the_metadata_is_what_the_hub_reads(tmp_path):
    text = card.render(sample(), repo_id="user/animals")
    (tmp_path / "README.md").write_text(text, "utf-8")
    data = metadata_load(tmp_path / "README.md")
    assert card_metadata.problems(text) == []
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["tags"] == ["hf_sft", "transfer-learning", "l2-sp", "train-last"]
    assert (data["base_model"], data["base_model_relation"]) == ("user/source", "finetune")
    assert data["license"] == "apache-2.0"
    assert data["metrics"] == ["accuracy", "f1"]
    assert "datasets" not in data
    results = {result.metric_type: result for result in ModelCard(text).data.eval_results}
    assert results["accuracy"].metric_value == 0.8765
    assert results["f1"].metric_args == {"average": "macro"}
    assert {(r.dataset_name, r.dataset_split) for r in results.values()} == {("animals", "test")}


def test_a_source_that_is_not_on_the_hub_is_no_base_model():
    report = sample()
    report.data["source"] |= {"hub_id": None, "license": None, "revision": None}
    data = facts(card.render(report))
    assert not {"base_model", "base_model_relation", "license"} & set(data)


def test_a_licence_the_hub_does_not_list_is_other():
    report = sample()
    report.data["source"]["license"] = "My Licence v2"
    data = facts(card.render(report))
    assert (data["license"], data["license_name"]) == ("other", "my-licence-v2")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("MIT", {"license": "mit"}),
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("openrail++", {"license": "openrail++"}),
        ("***", {"license": "other"}),
        ("", {}),
        (None, {}),
    ],
)
def test_a_licence_is_told_in_the_words_of_the_hub(word, found):
    assert card_metadata.licence(word) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n# A source\n", "mit"),
        ("---\nlicense: [mit]\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("# A source\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_licence_is_read_from_the_card_of_the_sources_folder(text, found, tmp_path):
    (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert source_licence.source_licence(tmp_path) == found
    assert source_licence.source_licence(tmp_path / "nothing") is None


def test_a_card_that_nests_without_end_names_no_licence(tmp_path):
    (tmp_path / "README.md").write_text(f"---\nlicense: {'[' * 3000}\n---\n", "utf-8")
    assert source_licence.source_licence(tmp_path) is None


def test_a_sources_card_counts_before_timms_configuration(tmp_path):
    """timm writes the licence of the weights that an architecture is known for into any folder."""
    model = SimpleNamespace(config=SimpleNamespace(pretrained_cfg={"license": "apache-2.0"}))
    source = models.ModelSource(name=str(tmp_path))
    assert models._origin(source, tmp_path, model).license == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n", "utf-8")
    assert models._origin(source, tmp_path, model).license == "bsd-3-clause"


def test_merged_adapters_are_a_fine_tuned_model_that_says_so():
    text = card.render(sample(adapter={"type": "lora", "r": 8, "trainable_share": 0.01}))
    assert facts(text)["base_model_relation"] == "finetune"
    assert "lora" in facts(text)["tags"]
    assert "r = 8" in plain_html(text)


def test_a_task_without_a_pipeline_tag_on_the_hub_is_a_tag():
    for task, tagged in (("masked-image-modeling", True), ("mine.tasks:Mine", False)):
        data = facts(card.render(sample(task=task)))
        assert "pipeline_tag" not in data
        assert (task in data["tags"]) == tagged


def test_the_metadata_are_known_before_training():
    report = sample()
    known = ("task", "labels", "seed", "source", "model", "data", "recipe", "freeze", "penalty")
    early = {key: report.data[key] for key in known}
    early["metrics"] = {"test": dict.fromkeys(report.data["metrics"]["test"], 0.0)}
    text = card.expected(early, "user/animals")
    assert card_metadata.problems(text) == []
    then, now = facts(text), facts(card.render(report, repo_id="user/animals"))
    for data in (then, now):
        for metric in data["model-index"][0]["results"][0]["metrics"]:
            metric.pop("value")
    assert then == now


def test_the_picture_of_the_drift_lies_beside_the_card():
    from PIL import Image

    text, groups = card.render(sample()), sample().data["groups"]
    assert f"]({drift_picture.NAME})" in text
    drawn = drift_picture.draw(groups)
    assert Image.open(io.BytesIO(drawn)).format == "PNG"
    assert drawn == drift_picture.draw(groups)
    assert drawn != drift_picture.draw([group("stem", 0, 0.0), group("block 0", 9, 0.9)])
    assert [name for name, *_ in drift_picture.shown(groups)] == ["stem", "block 0"]


@pytest.mark.parametrize("label", [*HOSTILE, "$x$", "\x1b[31m", "長い名前" * 50])
def test_a_hostile_name_is_drawn(label):
    assert drift_picture.draw([group(label, 5, 0.1)] * 200)


def test_a_source_that_did_not_move_is_told_in_words():
    groups = [group("stem", 0, 0.0), group("block 0", 0, 0.0), group("head", 30, None, 30)]
    assert drift_picture.draw(groups) == b""
    text = card.render(sample(groups=groups))
    assert drift_picture.NAME not in text
    assert "Nothing that came from the source moved." in text
    assert "Nothing that came" not in card.render(sample())


def test_nothing_of_the_source_means_no_picture():
    groups = [group("head", 30, None, 30), group("stem", 3, float("inf"))]
    assert drift_picture.draw(groups) == b""
    text = card.render(sample(groups=groups[:1]))
    assert drift_picture.NAME not in text
    assert "Nothing that came" not in text


def test_data_on_the_hub_is_named_with_its_subset():
    report = sample()
    report.data["recipe"]["data"] = {"type": "hub", "path": "user/films", "name": "small"}
    report.data["data"] = {"hub_id": "user/films"}
    data = facts(card.render(report))
    assert data["datasets"] == ["user/films"]
    where = data["model-index"][0]["results"][0]["dataset"]
    assert where == {"name": "user/films", "type": "user/films", "config": "small", "split": "test"}


@pytest.mark.parametrize("path", [f"{HOME}/films", "./films", "~/films"])
def test_a_local_folder_is_no_data_set_of_the_hub(path):
    report = sample()
    report.data["recipe"]["data"] = {"type": "hub", "path": path}
    assert "datasets" not in facts(card.render(report))


def test_the_caller_can_name_the_data():
    assert facts(card.render(sample(), dataset="user/films"))["datasets"] == ["user/films"]
    assert "datasets" not in facts(card.render(sample(), dataset="My own films"))


def test_a_timm_model_says_how_timm_loads_it():
    report = sample()
    report.data["recipe"]["model"]["architecture"] = "resnet10t"
    text = card.render(report, repo_id="user/animals")
    assert facts(text)["library_name"] == "timm"
    assert {"timm", "transformers"} <= set(facts(text)["tags"])
    report.data["recipe"]["model"]["backbone_of"] = {"model_type": "rt_detr"}
    assert facts(card.render(report))["library_name"] == "transformers"  # what is around it
    assert 'timm.create_model("hf-hub:user/animals", pretrained=True)' in text
    assert "timm" not in facts(card.render(sample()))["tags"]


@pytest.mark.parametrize(
    ("task", "auto", "has_pipeline"),
    [("text-classification", "AutoModelForSequenceClassification", True),
     ("question-answering", "AutoModelForQuestionAnswering", False),
     ("multiple-choice", "AutoModelForMultipleChoice", False)],
)  # fmt: skip
def test_the_code_of_the_card_runs_with_this_transformers(task, auto, has_pipeline):
    """transformers 5 has dropped the pipelines of some tasks."""
    text = card.usage({**sample().data, "task": task}, "user/words")
    first, _, *calls = text.splitlines()
    names = {}
    exec(first, names)
    assert auto in names
    assert f'model = {auto}.from_pretrained("user/words")' in calls
    assert ("pipeline(" in text) == has_pipeline
    assert ('tokenizer = AutoTokenizer.from_pretrained("user/words")' in calls) != has_pipeline
    assert ("hf-sft predict" in text) != has_pipeline


def test_a_task_that_is_not_installed_has_code_too():
    text = card.usage({**sample().data, "task": "gone_away.tasks:Mine"}, None)
    assert "from_pretrained" in text


def test_metrics_without_a_number_are_left_out():
    report = sample(metrics={"test": {"accuracy": 0.5, "macro_f1": float("nan"), "other": None}})
    results = facts(card.render(report))["model-index"][0]["results"][0]["metrics"]
    assert [metric["type"] for metric in results] == ["accuracy"]
    assert "model-index" not in facts(card.render(sample(metrics={"train": {"loss": 1.0}})))


def test_a_plug_in_from_outside_is_no_tag():
    methods = [{"type": "my_pkg.mod:Mine", "strength": 2.0}]
    text = card.render(sample(penalty={"methods": methods, "value": 0.0}))
    assert facts(text)["tags"] == ["hf_sft", "transfer-learning", "train-last"]
    assert "strength = 2" in plain_html(text)


def test_the_body_tells_the_transfer_story():
    html = plain_html(card.render(sample(), repo_id="user/animals"))
    for said in ("λ = 0.015", "head = 0.005", "7 frozen tensors bit-equal to the source (verified)",
                 "train-last (count = 1)", "3.21 %", "0.8765", "top1_agreement 0.7500",
                 "AutoModelForImageClassification.from_pretrained(&quot;user/animals&quot;)",
                 "1802.01483", "learning_rate: 0.001"):  # fmt: skip
        assert said in html
    assert "Kumar" not in html


def test_every_paper_of_the_report_is_cited():
    papers = ["@article{one,\n}", "@article{two,\n}"]
    text = card.render(sample(citations=papers))
    assert "@article{one,\n}\n\n@article{two,\n}\n```" in text
    assert "## Citation" not in card.render(sample(citations=[]))


def test_a_run_without_a_penalty_has_a_card():
    html = plain_html(card.render(sample(penalty={"methods": [], "value": 0.0}, citations=[])))
    assert "no pull to the source" in html
    assert "1802.01483" not in html


def test_a_source_that_was_not_measured_is_told():
    kept = {"split": "test", "examples": 0, "by": "not measured"}
    assert "It was not measured." in card.render(sample(retention=kept))


def test_no_local_path_and_no_token_is_published():
    report = sample()
    report.data["source"] |= {"name": f"{HOME}/model", "hub_id": None}
    report.data["recipe"]["model"]["name"] = f"{HOME}/model"
    text = card.render(report)
    assert "somebody" not in text
    assert "hf_x" not in text
    assert "output_dir" not in text
    assert "path: animals" in text


@pytest.mark.parametrize("label", [*HOSTILE, "``` end", "www.evil.example", "<b>x</b> *y* _z_ $q$"])
def test_hostile_names_stay_text(label):
    calm = plain_html(card.render(sample()))
    freeze = {**sample().data["freeze"], "verified_unchanged": False, "changed": [label]}
    report = sample([label, "dog", "owl"], freeze=freeze, groups=[group(label, 100, 0.1)])
    report.data["recipe"]["data"]["keep_labels"] = [label]
    report.data["source"]["name"] = label
    html = plain_html(card.render(report))
    for tag in ("<script", "<a ", "<b>", "<em>", "<strong>"):
        assert tag not in html
    assert [part.partition('"')[0] for part in html.split('<img src="')[1:]] == ["drift.png"]
    for tag in ("<h1", "<h2", "<table", "<pre", "<code", "<img"):
        assert html.count(tag) == calm.count(tag)
    rows = [line for line in card.render(report).splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} <= {4, 6, 7}
    recipe = html.split('language-yaml">')[1].split("</code>")[0]
    assert "output_dir" not in recipe
    assert "train-last" in recipe


def test_a_changed_tensor_is_loud():
    freeze = {**sample().data["freeze"], "verified_unchanged": False, "changed": ["a.weight"]}
    text = card.render(sample(freeze=freeze))
    assert "> [!WARNING]\n> WARNING: 1 tensors CHANGED although they were frozen: a.weight" in text
    assert "bit-equal" not in text


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ({"license": None}, "license has no value"),
        ({"tags": ["a", None]}, "tags.1 has no value"),
        ({"base_model": "/home/me/model"}, "base_model holds a local path"),
        ({"datasets": ["../films"]}, "datasets.0 holds a local path"),
        ({"datasets": ["my films"]}, "datasets: 'my films' is no id on the Hub"),
        ({"base_model": "a/b/c"}, "base_model: 'a/b/c' is no id on the Hub"),
        ({"base_model": ["user/ok", "user/not ok"]}, "base_model: 'user/not ok' is no id"),
        ({"x": {"y": float("nan")}}, "x.y has no value"),
        (["a"], "no mapping"),
    ],
)
def test_problems_of_the_metadata_are_named(block, found):
    text = f"---\n{yaml.safe_dump(block)}---\n\n# A model\n"
    assert found in " ".join(card_metadata.problems(text))


@pytest.mark.parametrize("text", ["# A model\n", "", "---\na: [\n---\n", "text\n---\na: 1\n---\n"])
def test_a_card_without_readable_metadata_has_a_problem(text):
    assert len(card_metadata.problems(text)) == 1


def test_a_code_block_cannot_be_closed_from_inside():
    inside = "a: 1\n```\n# not a heading\n````"
    html = MarkdownIt("commonmark").render(card.fenced(inside, "yaml"))
    assert html.count("<pre>") == 1
    assert "<h1>" not in html
