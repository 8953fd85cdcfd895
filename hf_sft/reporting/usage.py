"""The lines of Python that load a published model, as its card shows them."""

from typing import Any

from pydantic import ValidationError

from hf_sft.component import find
from hf_sft.errors import UserError
from hf_sft.tasks import Task

CODE = {"mean_pooled.py": "hf_sft's code: an encoder, the mean of its tokens, a linear layer"}
OTHER_CODE = "the source's own code"
EXAMPLES = {  # task with a pipeline -> a call of it
    "image-classification": 'predict("photo.jpg")',
    "object-detection": 'predict("photo.jpg")',
    "image-segmentation": 'predict("photo.jpg")',
    "text-classification": 'predict("a text")',
    "token-classification": 'predict("a text")',
    "fill-mask": 'predict(f"a text with a {predict.tokenizer.mask_token}")',
    "text-generation": 'predict("a text that goes on", max_new_tokens=50)',
}


def usage(data: dict[str, Any], repo_id: str | None) -> str:
    """Code that loads the model: from the Hub, or from the folder that this card lies in.

    Where transformers has no pipeline for the task, the parts are loaded one by one.
    """
    from transformers.pipelines import get_supported_tasks  # takes a second

    task, place = data["task"], repo_id or "model"
    named, processor = classes(task, data["recipe"].get("task"))
    auto = data.get("auto_class") or named  # some tasks choose it by the model
    has_pipeline = task in get_supported_tasks()
    code = (data.get("model") or {}).get("code")
    trust = ", trust_remote_code=True" if code else ""
    lines = [f"from transformers import {auto}, {'pipeline' if has_pipeline else processor}", ""]
    lines += [f"# {code}, beside the weights, is {CODE.get(code, OTHER_CODE)}."] if code else []
    if has_pipeline:
        lines += [f'predict = pipeline("{task}", model="{place}"{trust})']
        lines += [EXAMPLES[task], ""] if task in EXAMPLES else []
    lines += [f'model = {auto}.from_pretrained("{place}"{trust})']
    if not has_pipeline:
        word = "tokenizer" if processor == "AutoTokenizer" else "processor"
        lines += [f'{word} = {processor}.from_pretrained("{place}")', ""]
        lines += ["# transformers has no pipeline for this task; in the folder of the run:"]
        lines += ["#   hf-sft predict . INPUT --output predictions.csv"]
    if is_timm(data):
        address = f"hf-hub:{repo_id}" if repo_id else f"local-dir:{place}"
        lines += ["", "import timm", f'model = timm.create_model("{address}", pretrained=True)']
    return "\n".join(lines)


def classes(task: str, settings: dict[str, Any] | None = None) -> tuple[str, str]:
    """Auto class of the model and of its processor, as the task names them.

    ``settings``: the recipe's ``task`` block; some tasks have models of several classes.
    """
    found = None
    try:
        found = find(Task, task)
        found = found.model_validate(settings) if settings else found
    except (UserError, ValidationError):  # a report of a plug-in or a version that is not here
        pass
    guess = "AutoModelFor" + task.title().replace("-", "")
    names = getattr(found, "auto_class", guess), getattr(found, "auto_processor", "AutoProcessor")
    return names if all(isinstance(name, str) for name in names) else (guess, "AutoProcessor")


def is_timm(data: dict[str, Any]) -> bool:
    """Whether timm can load the model as well."""
    asked = data["recipe"].get("model") or {}  # a bare weight file names timm's architecture
    whole = asked.get("backbone_of") is None  # else a detector or segmenter of transformers
    return data.get("model") == {"library": "timm"} or (whole and bool(asked.get("architecture")))
