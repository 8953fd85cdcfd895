"""BERT with mean pooling, as sentence-transformers' MiniLM is used."""

import torch
from torch import nn
from transformers import BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledBert(BertPreTrainedModel):
    """BERT whose sentence embedding is the mean of its hidden states over real tokens."""

    base_model_prefix = "bert"

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def embed(self, input_ids, attention_mask, token_type_ids=None):
        """(examples, hidden)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids, attention_mask, token_type_ids=None, labels=None):
        embedded = self.embed(input_ids, attention_mask, token_type_ids)
        logits = self.classifier(self.dropout(embedded))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@torch.no_grad()
def embedded(model: MeanPooledBert, batches: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentence embeddings and logits of all rows, in eval mode."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = [model.embed(b["input_ids"], b["attention_mask"]) for b in batches]
    together = torch.cat(found).float()
    return together, model.classifier(together)
