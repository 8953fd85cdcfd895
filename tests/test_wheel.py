"""The wheel holds all that an installed package needs, and its commands work away from here."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
TRACKED = ("hf_sft", "recipes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it from a checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def wanted():
    """Every file of the package, and the recipes inside it."""
    for top in TRACKED:
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                yield name if top == "hf_sft" else f"hf_sft/{name}"


def test_the_wheel_holds_the_package_its_templates_and_recipes(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == set(wanted())
    assert "hf_sft/templates/report.html.j2" in names
    assert "hf_sft/recipes/quickstart.yaml" in names


def test_an_unpacked_wheel_lists_copies_and_names_its_command(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
        (entry,) = [n for n in files.namelist() if n.endswith("entry_points.txt")]
        assert "hf-sft = hf_sft.cli:main" in files.read(entry).decode()
    (tmp_path / "elsewhere").mkdir()

    def hf_sft(*words):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-m", "hf_sft", *words]
        return subprocess.run(
            command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
        )

    listed = hf_sft("list")
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= {"quickstart"}
    copied = hf_sft("copy", "quickstart", "mine.yaml")
    assert copied.returncode == 0, copied.stderr
    mine = tmp_path / "elsewhere" / "mine.yaml"
    assert mine.read_text("utf-8") == (ROOT / "recipes" / "quickstart.yaml").read_text("utf-8")
