"""R3F: answers stay the same under noise on the input embeddings."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_sft.penalties.answers import counted, kind_of, logits_of, symmetric, without_labels
from hf_sft.penalties.function_prior import FunctionPrior

CONTINUOUS = ("pixel_values", "input_values", "input_features", "inputs_embeds")


class R3F(FunctionPrior):
    """weight · mean [KL(f(x) ‖ f(x + z)) + KL(f(x + z) ‖ f(x))], z uniform on (−ε, ε) or N(0, ε²).

    Aghajanyan et al. 2021, "Better fine-tuning by reducing representational collapse" (ICLR, arXiv
    2008.03156). z is added to what the input embedding gives at every look-up (an encoder-decoder's
    decoder included), and to pixels or audio as they are. Numbers (regression) are compared by
    their mean squared difference, which the released code lacks. Noise comes from torch's own
    generator: resuming draws what the run that never stopped draws.
    The gradient flows through both branches, the embeddings of the noisy one included; the released
    code detaches those. Each branch draws its own dropout masks, as in the released code, so that
    with dropout its noise is held down as well. Batch statistics move by the first branch only.
    No source is needed: what is held is smoothness, not θ⁰.
    Defaults: ε = 1e-5, uniform, weight 1 (the paper's; for RTE its recipe has 0.7). Published gains
    are over RoBERTa's and BART's own tables; none that we have checked against equally tuned arms.
    Cost per step: one more forward pass and its backward pass. Memory: its activations.

    Keys:
        eps: ε.
        noise: uniform on (−ε, ε), or normal with deviation ε.
    """

    formula: ClassVar[str] = "weight·mean [KL(f(x) ‖ f(x+z)) + KL(f(x+z) ‖ f(x))]"
    citation: ClassVar[str] = """@inproceedings{aghajanyan2021better,
  title     = {Better Fine-Tuning by Reducing Representational Collapse},
  author    = {Aghajanyan, Armen and Shrivastava, Akshat and Gupta, Anchit and Goyal, Naman and
               Zettlemoyer, Luke and Gupta, Sonal},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}, note = {arXiv:2008.03156}
}"""
    needs: ClassVar[frozenset[str]] = frozenset({"outputs"})
    source: ClassVar[bool] = False

    type: Literal["r3f"] = "r3f"
    eps: float = Field(1e-5, gt=0, allow_inf_nan=False)
    noise: Literal["uniform", "normal"] = "uniform"

    def loss(self, model: nn.Module, source: Any, inputs: Mapping[str, Any], seen: Any) -> Tensor:
        with seen.paused(), untracked(model), self.noisy(model):
            given = without_labels(inputs, model)
            moved = {k: self.blur(v) if k in CONTINUOUS else v for k, v in given.items()}
            noisy = logits_of(model(**moved))
        clean, weights = counted(logits_of(seen.outputs), inputs, model)
        noisy, _ = counted(noisy, inputs, model)
        return (weights * symmetric(clean, noisy, kind_of(model, clean))).sum()

    def blur(self, x: Tensor) -> Tensor:
        """x + z."""
        z = torch.empty_like(x.detach(), dtype=torch.float32)
        z = z.uniform_(-self.eps, self.eps) if self.noise == "uniform" else z.normal_(0, self.eps)
        return x + z.to(x.dtype)

    @contextmanager
    def noisy(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, what a table of token embeddings gives is x + z."""
        inner = getattr(model, "get_input_embeddings", lambda: None)
        try:
            table = inner()
        except (NotImplementedError, AttributeError):  # images: timm, ResNet
            table = None
        with ExitStack() as hooks:
            for module in model.modules() if isinstance(table, nn.Embedding) else ():
                # T5 has one module per stack, of one weight, and calls neither the shared one.
                if isinstance(module, nn.Embedding) and module.weight is table.weight:
                    hook = module.register_forward_hook(lambda module, given, x: self.blur(x))
                    hooks.callback(hook.remove)
            yield


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch norm in training mode leaves its running statistics as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [module.track_running_stats for module in norms]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, tracked in zip(norms, before, strict=True):
            module.track_running_stats = tracked
