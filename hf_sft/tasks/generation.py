"""What a causal language model writes after a prompt."""

from typing import Any

import torch

from hf_sft.tasks.language_collator import padded


@torch.no_grad()
def continued(
    prompts: list[list[int]], model: Any, tokenizer: Any, max_new_tokens: int
) -> list[str]:
    """The texts that follow each prompt's tokens, greedily, without special tokens.

    Prompts are padded on the left, so that each text goes on from the end of its prompt.
    """
    start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else
             tokenizer.eos_token_id]  # fmt: skip
    prompts = [ids or start for ids in prompts]  # there is something to go on from
    given = padded(prompts, tokenizer.pad_token_id, left=True).to(model.device)
    mask = padded([[1] * len(ids) for ids in prompts], 0, left=True).to(model.device)
    trained = model.training
    found = model.eval().generate(
        input_ids=given,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
    )
    model.train(trained)
    return tokenizer.batch_decode(found[:, given.shape[1] :], skip_special_tokens=True)
