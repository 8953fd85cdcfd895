import subprocess
import sys
from abc import abstractmethod
from typing import Literal

import pytest
from pydantic import ValidationError

from hf_sft import component
from hf_sft.component import Component
from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.penalties import L2SP, Penalty


class Base(Component):
    """A family of its own, so that the tests see all of its members."""

    @abstractmethod
    def use(self): ...


class Small(Base):
    type: Literal["small"] = "small"
    size: int = 1
    on: bool = False

    def use(self): ...


class Smaller(Small):
    type: Literal["smaller"] = "smaller"


def test_every_named_class_below_the_base_is_a_choice():
    assert component.choices(Base) == {"small": Small, "smaller": Smaller}
    assert component.find(Base, "smaller") is Smaller


def test_a_class_of_the_users_own_is_imported():
    assert component.find(Base, f"{__name__}:Small") is Small
    assert component.find(Penalty, "hf_sft.penalties.l2_sp:L2SP") is L2SP


@pytest.mark.parametrize("name", [None, 3, [], {}, ["small"], "", "smal", "Small"])
def test_an_unknown_type_lists_the_choices(name):
    with pytest.raises(RecipeError, match=r"small, smaller.*package\.module:Class"):
        component.find(Base, name)


@pytest.mark.parametrize(
    "name", ["no_such_module:X", "os:NoSuchClass", "os:", ":X", ".:X", "..a:X", "os:path", "a b:c"]
)
def test_what_cannot_be_imported_is_quoted(name):
    with pytest.raises(RecipeError) as error:
        component.find(Base, name)
    assert repr(name) in str(error.value)


def test_a_module_with_a_syntax_error(tmp_path, monkeypatch):
    (tmp_path / "broken_plug_in.py").write_text("def (:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="broken_plug_in"):
        component.find(Base, "broken_plug_in:X")


def test_a_component_is_frozen_and_describes_itself():
    small = Small(size=2)
    with pytest.raises(ValidationError):
        small.size = 3
    assert small.describe() == {"type": "small", "size": 2, "on": False}
    assert Small(**small.describe()) == small


def test_a_truth_value_is_no_number():
    with pytest.raises(ValidationError, match="truth value"):
        Small(size=True)
    assert Small(on=True).on is True


def test_nearest_and_listing():
    assert nearest("lerning_rate", ["learning_rate", "seed"]) == " Did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate"]) == ""
    assert listing(range(4), 2) == "0, 1, … (2 more)"
    assert listing([]) == ""


def test_public_functions_are_no_modules_whatever_was_imported_before():
    """A module of a public name would take its place once something imports it."""
    script = (
        "import hf_sft, pkgutil, importlib\n"
        "for found in pkgutil.walk_packages(hf_sft.__path__, 'hf_sft.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "import types\n"
        "bad = [n for n in hf_sft.__all__ if isinstance(getattr(hf_sft, n), types.ModuleType)]\n"
        "assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
