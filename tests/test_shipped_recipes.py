"""Every shipped recipe, up to where its data and its source would be opened."""

from pathlib import Path

import pytest
import transformers.training_args

from hf_sft import recipe as recipes
from hf_sft.recipe import Recipe
from hf_sft.training_arguments import training_arguments

FOLDER = Path(__file__).parent.parent / "recipes"
NAMES = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*.yaml")
    if path.parent.name != "accelerate"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_starts_on_a_machine_without_a_gpu(name, tmp_path, monkeypatch):
    """As it is written: `bf16: true` would ask for `use_cpu` there."""
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(recipes, "_check_files", lambda *_: None)  # needs no data and no package
    recipe = Recipe.load(FOLDER / name, [f"training.output_dir={tmp_path / 'out'}"])
    assert not training_arguments(recipe).bf16
