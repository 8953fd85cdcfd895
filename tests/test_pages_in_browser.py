"""The pages in headless Chromium, on a phone and a desktop, light and dark: all can be read."""

import pytest
from browser import CHROMIUM, WIDTHS, look
from PIL import Image
from test_report_page import sample
from tiny_run import text_recipe

from hf_sft import running
from hf_sft.comparing import compare_page, results
from hf_sft.comparing.cells import cells
from hf_sft.comparing.paired import difference, spread
from hf_sft.recipe import Recipe
from hf_sft.reporting import report_page
from hf_sft.searching import search_page
from hf_sft.tasks.pictures import picture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

EVERY = ["What was trained", "What trained when", "While training", "Result", "Cost", "Recipe",
         "How far each layer group moved from the source", "What is left of the source's function",
         "Environment"]  # fmt: skip
SECTIONS = {
    "text": [*EVERY, "Confusion matrix, test", "Each class, test", "Most confident mistakes, test"],
    "boxes": [*EVERY, "Classes, test", "Most mistakes, test", "Precision and recall, test"],
    "answers": [*EVERY, "Worst answers in their texts, test", "Most confused classes, test"],
    "compared": ["By the size of the training data", "Arms", "Recipe", "Failed"],
    "searched": ["Trials", "What matters", "Slices", "The best recipe"],
}
BAD = f"""<meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<body style="color: #999"><p>faint</p><pre>{400 * "x"}</pre><script>1</script>"""
LONG = "a label of many words that stands in the head of a table"


def boxes():
    """The report of a detector: pictures, a chart, scores by class."""
    image = picture(Image.new("RGB", (640, 200), (200, 30, 30)), "7.png: 0 of 2 found, 1 too many")
    line = {"cat": [(0.0, 1.0), (0.5, 0.8)], "dog": [(0.0, 0.5), (1.0, 0.1)]}
    chart = {"caption": "by class", "lines": line, "x": "recall", "y": "precision"}
    rows = [{"class": "cat", "AP": 0.2, "AP50": 0.4, "AP75": 0.1, "AR100": 0.5, "objects": 3}]
    return sample(
        task="object-detection",
        tables={"test": {"classes": rows}},
        pictures={"test": {"most_mistakes": 3 * [image], "precision_and_recall": [chart]}},
    )


def answers():
    """The report of many classes and of answers in texts, every word of them long."""
    labels = [f"{LONG} {number}" for number in range(report_page.MOST_CLASSES + 1)]
    report = sample(labels, metrics={name: dict.fromkeys(("loss", LONG), 0.5)
                                     for name in ("train", "validation", "test")})  # fmt: skip
    row = {"question": LONG, "wanted": "", "before": 9 * LONG, "answer": LONG, "after": "", "f1": 0}
    report.data["tables"]["test"]["worst_answers"] = [row]
    return report


def compared(place):
    """A comparison as if its runs, but one, had ended; all default arms, seeds and two sizes."""
    block = {"seeds": 2, "sizes": {"data.per_class": [4, 8]}}
    recipe = Recipe.load(text_recipe(place, compare=block))
    data = results.collect(recipe, cells(recipe, ()), {}, [])
    for number, run in enumerate(data["runs"]):
        run |= {"state": "finished", "target": number % 9 / 9, "retention": number % 5 / 5}
    for row in data["summary"]:
        for key in results.MEASURED:
            pair = {0: 0.5, 1: 0.7}
            row[key] = vars(spread([0.5, 0.7]))
            row[f"{key}_difference"] = vars(difference(pair, {0: 0.4, 1: 0.7}))
    data["runs"][0] |= {"state": "failed", "problem": f"{9 * LONG}", "seconds": None}
    data["retention_by"] = "top1_agreement"
    return data


def searched():
    """A search of a range and of choices, with every state of a trial."""
    over = {"training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True, "step": None},
            "freeze": [None, {"type": "train-last"}]}  # fmt: skip
    states = ["finished", "finished", "pruned", "failed", "finished"]
    rows = [
        {"number": number, "state": state, "seen": [], "seconds": 1.0,
         "params": {"training.learning_rate": 10 ** -(number % 3 + 1.5),
                    "freeze": ["freeze=null", "freeze={type: train-last}"][number % 2]},
         "target": 0.5 + number / 10 if state == "finished" else None,
         "retention": 0.5 if state == "finished" else None,
         "problem": LONG if state == "failed" else None}
        for number, state in enumerate(states)
    ]  # fmt: skip
    return {"schema": 1, "title": "tiny", "task": "text-classification", "metric": "accuracy",
            "greater_is_better": True, "retention_at_least": 0.4, "over": over, "asked": 6,
            "best": 4, "importances": {"training.learning_rate": 0.7, "freeze": 0.3},
            "trials": rows, "recipe": {"task": {"type": "text-classification"}}}  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the browser saw of all pages, and what it said."""
    place = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        training = {"num_train_epochs": 1, "logging_steps": 1, "eval_strategy": "epoch"}
        running.run(Recipe.load(text_recipe(place, training=training)))
        pages = {
            "text": (place / "out/report.html").read_text("utf-8"),
            "boxes": report_page.render(boxes()),
            "answers": report_page.render(answers()),
            "compared": compare_page.render(compared(place)),
            "searched": search_page.render(searched()),
            "bad": BAD,
        }
    return look(pages, place)


def good(seen):
    return [view for view in seen[0] if view["name"] != "bad"]


def test_every_page_was_seen_in_both_widths_and_both_schemes(seen):
    views = {(v["name"], v["width"], v["scheme"]) for v in good(seen)}
    assert len(views) == len(SECTIONS) * len(WIDTHS) * 2
    assert all(view["dark"] == (view["scheme"] == "dark") for view in good(seen))
    for view in good(seen):
        light = sum(map(int, view["page"].removeprefix("rgb(").removesuffix(")").split(",")))
        assert (light < 3 * 128) == view["dark"], view["name"]


def test_nothing_reaches_beyond_the_screen_and_all_can_be_read(seen):
    for view in good(seen):
        found = {key: view[key] for key in ("overflow", "faint", "broken", "requests")}
        where = view["name"], view["width"], view["scheme"]
        assert found == {"overflow": 0, "faint": [], "broken": 0, "requests": []}, where


def test_every_section_is_there(seen):
    for view in good(seen):
        missing = [name for name in SECTIONS[view["name"]] if name not in view["headings"]]
        assert missing == [], (view["name"], view["headings"])


def test_the_browser_says_nothing_but_of_the_bad_page_which_is_seen_as_such(seen):
    found, console = seen
    bad = [view for view in found if view["name"] == "bad"]
    assert all(view["overflow"] > 0 and len(view["faint"]) == 2 for view in bad)
    assert len(console) == len(bad) == 2 * len(WIDTHS)  # its script, each time it is shown
