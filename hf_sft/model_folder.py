"""``model/``: what ``from_pretrained``, ``pipeline`` and timm load."""

import json
from pathlib import Path
from typing import Any


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write weights, configuration and processor; timm can load a wrapped timm model as well."""
    if model.config.model_type != "timm_wrapper":
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    # timm knows its own names only; transformers puts the wrapper's prefix back when it loads.
    own = {name.removeprefix("timm_model."): t for name, t in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=own)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if config.get("model_args") is None:  # timm 1.0 cannot open a folder with a null here
        config.pop("model_args", None)
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
