"""Mutated data of every loader, mutated recipes and overrides: data, or one message; never more.

The slow set runs 10,000 cases. A failure names its seed: `case(name, seed)` shows it again.
"""

import json
import os
import random
import signal
import uuid
from contextlib import contextmanager
from pathlib import Path

import datasets.arrow_dataset
import pytest
import yaml
from fuzz_seeds import SEEDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated import HOSTILE, any_value, changed, mutated

from hf_sft.adapter import Adapter
from hf_sft.averages import Average
from hf_sft.component import choices, find
from hf_sft.errors import UserError
from hf_sft.freezing import FreezePolicy
from hf_sft.loaders import Loader
from hf_sft.loaders.splits import split
from hf_sft.models import ModelSource
from hf_sft.penalties import Penalty
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import BLOCKS, apply_override, dump, read
from hf_sft.resources import locator
from hf_sft.tasks import Task
from hf_sft.training_keys import KEYS

SECONDS = 20  # of the processor, that a case may take
TIMES = {"hub": 10, "metadata": 10}  # cases; load_dataset prepares each anew
TIMES |= dict.fromkeys(("parquet", "image-folder", "mask-folder", "coco", "voc", "yolo"), 100)
MANY = 300  # of each other seed, which takes milliseconds
RECIPES = [
    path.read_text("utf-8")
    for path in sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
    if path.parent.name != "accelerate"
]
BASES = {"task": Task, "data": Loader, "retention": Loader, "penalty": Penalty,
         "freeze": FreezePolicy, "adapter": Adapter, "averaging": Average}  # fmt: skip


class Hangs(BaseException):
    """More than SECONDS of one case."""


@contextmanager
def limited():
    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Fingerprints without hashing what nobody will look up; caches that go with the test."""
    monkeypatch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda _: uuid.uuid4().hex)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder, files):
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def there(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def loaded(folder, name):
    """What ``check`` does with data."""
    task, block, _ = SEEDS[name]
    task = find(Task, task["type"]).model_validate(task)
    loader = find(Loader, block["type"]).model_validate(block)
    data = task.check(loader.load(locator(folder)), loader.keep_labels)
    task.names(split(data, loader, task.stratum, False))


def case(folder, name, seed):
    """One file of a seed mutated, read; whether it was data."""
    rng, files = random.Random(f"{name}{seed}"), SEEDS[name][2]
    file = rng.choice(list(files))
    written(folder, {file: mutated(files[file], file, rng)})
    before = there(folder.parent)
    try:
        with limited():
            loaded(folder, name)
        good = True
    except UserError as error:
        good = False
        assert str(error).encode().strip(), (name, seed)  # noqa: PT017 (either may be)
    except BaseException as error:
        raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        written(folder, {file: files[file]})
    assert there(folder.parent) == before, (name, seed)
    return good


@pytest.mark.parametrize("name", SEEDS)
def test_the_seed_itself_is_data(tmp_path, name):
    written(tmp_path, SEEDS[name][2])
    loaded(tmp_path, name)


@pytest.mark.parametrize("name", [name for name in SEEDS if TIMES.get(name) != 10])
def test_some_mutated_data_are_rows_or_a_message(tmp_path, name):
    written(tmp_path / "in" / "side", SEEDS[name][2])
    for seed in range(6):
        case(tmp_path / "in" / "side", name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_many_mutated_data_are_rows_or_a_message(tmp_path, name):
    folder = tmp_path / "in" / "side"
    written(folder, SEEDS[name][2])
    good = [case(folder, name, seed) for seed in range(TIMES.get(name, MANY))]
    assert not all(good)


def override(rng):
    """A key of some block, or something else, with a value that may be anything."""
    block = rng.choice(BLOCKS)
    keys = ["patience", "role", "multiplier", "decay", "0"]
    if block in BASES:
        cls = rng.choice(list(choices(BASES[block]).values()))
        keys = [field.alias or name for name, field in cls.model_fields.items()]
    elif block in ("training", "model"):
        keys = KEYS if block == "training" else list(ModelSource.model_fields)
    key = rng.choice(keys)
    name = f"{block}.{key}" if rng.random() < 0.9 else rng.choice([block, "", ".", *HOSTILE])
    try:
        text = " ".join(yaml.dump(any_value(rng), default_flow_style=True).split("\n"))
    except (ValueError, RecursionError):
        text = rng.choice(HOSTILE)
    return f"{name}={text}"


def recipe_case(path, seed):
    """A shipped recipe mutated as text or as values, or with overrides; whether it is good."""
    rng = random.Random(f"recipe{seed}")
    text, how, given = rng.choice(RECIPES), rng.random(), []
    path.write_text(text, "utf-8")
    if how < 0.35:
        path.write_bytes(mutated(text.encode(), "r.yaml", rng))
    elif how < 0.7:
        raw = read(path)
        for _ in range(rng.randint(1, 3)):
            raw = changed(raw, rng)
        path.write_text(json.dumps(raw), "utf-8")  # which is YAML, as deep as you like
    else:
        given = [override(rng) for _ in range(rng.randint(1, 3))]
    try:
        with limited():
            recipe = Recipe.load(path, given)
            assert recipe.output_dir is not None
            assert isinstance(recipe.selects, bool)
        return True
    except UserError as error:
        assert str(error).encode().strip(), seed  # noqa: PT017 (either may be)
        return False
    except BaseException as error:
        raise AssertionError(f"recipe, seed {seed}, {given}: {error!r}") from error


def test_some_mutated_recipes_are_good_or_a_message(tmp_path):
    for seed in range(100):
        recipe_case(tmp_path / "r.yaml", seed)
    assert os.listdir(tmp_path) == ["r.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_mutated_recipes_are_good_or_a_message(tmp_path, part):
    good = [recipe_case(tmp_path / "r.yaml", 10_000 * part + seed) for seed in range(1400)]
    assert any(good)
    assert not all(good)
    assert os.listdir(tmp_path) == ["r.yaml"]


WORDS = st.text(max_size=20) | st.sampled_from(HOSTILE)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
OFTEN = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@OFTEN
@given(st.dictionaries(st.sampled_from(BLOCKS), VALUES))
def test_any_values_in_the_blocks_are_a_message(tmp_path, blocks):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.dump(blocks, allow_unicode=True), "utf-8", "surrogatepass")
    with limited(), pytest.raises(UserError):
        Recipe.load(path)


@OFTEN
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_are_no_recipe(tmp_path, raw):
    (tmp_path / "r.yaml").write_bytes(raw)
    with limited(), pytest.raises(UserError):
        Recipe.load(tmp_path / "r.yaml")


@OFTEN
@given(st.text(max_size=60) | st.tuples(WORDS, WORDS).map("=".join))
def test_any_override_sets_something_or_is_a_message(text):
    raw = {"task": {"type": "x"}, "penalty": [{"type": "y"}], "training": None}
    try:
        with limited():
            apply_override(raw, text)
        dump(raw)
    except UserError as error:
        assert str(error)  # noqa: PT017 (either may be)
