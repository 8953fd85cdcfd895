"""What a causal language model writes after a prompt."""

import logging
from typing import Any

import torch

from hf_sft.errors import SourceError
from hf_sft.tasks.language_collator import padded
from hf_sft.tasks.seq2seq_generation import leave

log = logging.getLogger(__name__)


def settle_answers(model: Any, tokenizer: Any, max_new_tokens: int) -> None:
    """The saved model answers as `continued` does: greedily, up to an end token or the length.

    A pipeline would sample where the model's generation_config does not say otherwise. How the
    source sampled, searched or penalised repetition is told and left.

    Raises:
        SourceError: the model has no room for a prompt before so many tokens.
    """
    limit = tokenizer.model_max_length
    if max_new_tokens >= limit:
        raise SourceError(
            f"task.max_new_tokens: {max_new_tokens} leave no room for a prompt: the model takes "
            f"{limit} tokens, prompt and answer together. Set it below {limit}."
        )
    config = model.generation_config
    if said := leave(config, {}):
        log.warning("Answers are written greedily; the source's own settings are not taken over "
                    "(%s). Give them to generate() where the model is used.", said)  # fmt: skip
    config.do_sample, config.max_new_tokens = False, max_new_tokens
    ends = [] if config.eos_token_id is None else config.eos_token_id
    ends = [*ends] if isinstance(ends, list) else [ends]
    ends = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.pad_token_id = tokenizer.pad_token_id


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
