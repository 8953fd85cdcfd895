"""A text classifier on the mean of an encoder's tokens, as sentence embeddings are made.

This file lies beside the weights of every model of this class, for ``trust_remote_code=True``. It
needs torch and transformers, opens no file and reaches no network.
"""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledConfig(PreTrainedConfig):
    """An encoder's configuration (``text_config``), and the classifier's own on top of it.

    A model type of its own: without this code transformers refuses the folder, where it would
    otherwise put a pooler of random numbers between the encoder and the classifier.
    """

    model_type = "hf_sft_mean_pooled"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (as transformers declares it)

    def __init__(self, text_config: Any = None, classifier_dropout: float = 0.1, **settings: Any):
        given = {"model_type": "bert"} if text_config is None else text_config
        self.text_config = AutoConfig.for_model(**given) if isinstance(given, dict) else given
        self.classifier_dropout = classifier_dropout
        super().__init__(**settings)

    @property
    def vocab_size(self) -> int:
        """Words of the encoder's table."""
        return self.text_config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """Tokens that the encoder reads."""
        return self.text_config.max_position_embeddings


class MeanPooledForSequenceClassification(PreTrainedModel):
    """logits = W·dropout(h̄) + b, h̄ = Σ_t m_t·h_t / Σ_t m_t over the tokens t that are no padding.

    The encoder is registered under the name that its architecture gives it (``bert``,
    ``distilbert``), so that its tensors keep their names. Loss: cross entropy, squared error or
    binary cross entropy, by ``config.problem_type``.
    """

    config_class = MeanPooledConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch's examples, whatever is counted
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # if the encoder does
    _supports_attention_backend = True

    def __init__(self, config: MeanPooledConfig):
        super().__init__(config)
        kind = MODEL_MAPPING[type(config.text_config)]
        takes = inspect.signature(kind.__init__).parameters
        unused = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
        self.base_model_prefix = kind.base_model_prefix
        self.add_module(self.base_model_prefix, kind(config.text_config, **unused))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **settings: Any,
    ) -> SequenceClassifierOutput:
        """``input_ids`` and ``attention_mask`` (examples, positions) -> logits (examples, labels).

        What is not given is not passed on: not every encoder takes ``token_type_ids``.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        given = {name: value for name, value in given.items() if value is not None}
        outputs = self.base_model(**given, **{**settings, "return_dict": True})
        pooled = mean(outputs.last_hidden_state, attention_mask)
        logits = self.classifier(self.dropout(pooled.to(self.classifier.weight.dtype)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(examples, dim), in float32, from (examples, positions, dim) and (examples, positions)."""
    if mask is None:
        return hidden.float().mean(1)
    share = mask.unsqueeze(-1).float()
    return (hidden.float() * share).sum(1) / share.sum(1).clamp(min=1)
