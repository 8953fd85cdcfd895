"""Laws of LayerGroups over the architectures of Transformers, timm and plain PyTorch."""

import copy
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import nn

from hf_sft.errors import SourceError
from hf_sft.layer_groups import LayerGroups, is_norm

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
DECODED = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
PAIR = dict(
    vocab_size=40,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    forced_eos_token_id=2,
    **DECODED,
)
SPEECH = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [2, 1, 1, 1]}
SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [2, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
TOWERS = {
    "text_config": {**TEXT, "num_hidden_layers": 2, "projection_dim": 8, "projection_size": 16},
    "vision_config": IMAGE,
}

TOKENS = {"input_ids": torch.tensor([[1, 5, 6, 2]])}
BOTH = {**TOKENS, "decoder_input_ids": torch.tensor([[1, 7, 8]])}
PIXELS = {"pixel_values": torch.zeros(1, 3, 32, 32)}
SOUND = {"input_values": torch.zeros(1, 400)}


@dataclass(frozen=True)
class Case:
    """One architecture: how to build it, what its groups must be, an input for its forward."""

    name: str
    auto: str
    config: Callable
    arguments: dict
    blocks: int
    head: set[str]  # the modules (or bare parameters) whose tensors make the head, exactly
    inputs: dict | None
    stem: str | None = ""  # a prefix of a stem parameter; None where there is no stem
    first: str = ""  # module of the first block
    last: tuple[str, ...] = ()  # modules that the last block holds besides its own

    def build(self) -> nn.Module:
        auto = getattr(hf, self.auto)
        config = self.config(**copy.deepcopy(self.arguments))
        make = getattr(auto, "from_config", auto)
        return make(config).eval()


SEQUENCE, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
TRANSLATE, CLASSIFY = "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DISTIL = {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
DEBERTA = {
    **TEXT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
XLM = {
    "vocab_size": 40,
    "emb_dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "max_position_embeddings": 32,
    "pad_index": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 3],
    "num_heads": [2, 2],
    "window_size": 4,
}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
WHISPER = {**PAIR, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
DETR = dict(
    **DECODED,
    use_timm_backbone=False,
    backbone=None,
    use_pretrained_backbone=False,
    num_queries=5,
    backbone_config=hf.ResNetConfig(layer_type="basic", out_features=["stage4"], **STAGES),
)
MEL = {"input_features": torch.zeros(1, 8, 32), "decoder_input_ids": torch.tensor([[1, 7]])}
VISION = {"vision_model.post_layernorm"}

CASES = [
    Case("bert", SEQUENCE, hf.BertConfig, TEXT, 3, {"classifier"}, TOKENS,
         "bert.embeddings.", "bert.encoder.layer.0", ("bert.pooler",)),
    Case("roberta", SEQUENCE, hf.RobertaConfig, TEXT, 3, {"classifier"}, TOKENS,
         "roberta.embeddings.", "roberta.encoder.layer.0"),
    Case("distilbert", SEQUENCE, hf.DistilBertConfig, DISTIL, 3, {"pre_classifier", "classifier"},
         TOKENS, "distilbert.embeddings.", "distilbert.transformer.layer.0"),
    Case("deberta-v2", SEQUENCE, hf.DebertaV2Config, DEBERTA, 3, {"pooler", "classifier"}, TOKENS,
         "deberta.encoder.LayerNorm", "deberta.encoder.layer.0"),
    Case("albert", SEQUENCE, hf.AlbertConfig, {**TEXT, "embedding_size": 8}, 1, {"classifier"},
         TOKENS, "albert.encoder.embedding_hidden_mapping_in",
         "albert.encoder.albert_layer_groups.0", ("albert.pooler",)),
    Case("electra", SEQUENCE, hf.ElectraConfig, {**TEXT, "embedding_size": 8}, 3, {"classifier"},
         TOKENS, "electra.embeddings_project", "electra.encoder.layer.0"),
    Case("modernbert", SEQUENCE, hf.ModernBertConfig, TEXT, 3, {"head", "classifier"}, TOKENS,
         "model.embeddings.", "model.layers.0", ("model.final_norm",)),
    Case("bert-one-layer", SEQUENCE, hf.BertConfig, {**TEXT, "num_hidden_layers": 1}, 1,
         {"classifier"}, TOKENS, "bert.embeddings.", "bert.encoder.layer.0", ("bert.pooler",)),
    Case("bert-no-head", "AutoModel", hf.BertConfig, TEXT, 3, set(), TOKENS,
         "embeddings.", "encoder.layer.0", ("pooler",)),
    Case("bert-masked", "AutoModelForMaskedLM", hf.BertConfig, TEXT, 3, {"cls"}, TOKENS,
         "bert.embeddings.", "bert.encoder.layer.0"),
    Case("bert-answers", "AutoModelForQuestionAnswering", hf.BertConfig, TEXT, 3, {"qa_outputs"},
         TOKENS, "bert.embeddings.", "bert.encoder.layer.0"),
    Case("xlm", SEQUENCE, hf.XLMConfig, XLM, 3,
         {"sequence_summary"}, TOKENS, "transformer.embeddings.", "transformer.attentions.0",
         ("transformer.layer_norm1.2", "transformer.ffns.2", "transformer.layer_norm2.2")),
    Case("gpt2", SEQUENCE, hf.GPT2Config, GPT2, 3, {"score"}, TOKENS,
         "transformer.wpe", "transformer.h.0", ("transformer.ln_f",)),
    Case("gpt2-lm", CAUSAL, hf.GPT2Config, GPT2, 3, set(), TOKENS,
         "transformer.wte", "transformer.h.0", ("transformer.ln_f",)),
    Case("llama", SEQUENCE, hf.LlamaConfig, GROUPED, 3, {"score"}, TOKENS,
         "model.embed_tokens", "model.layers.0", ("model.norm",)),
    Case("llama-lm", CAUSAL, hf.LlamaConfig, GROUPED, 3, {"lm_head"}, TOKENS,
         "model.embed_tokens", "model.layers.0", ("model.norm",)),
    Case("qwen3", SEQUENCE, hf.Qwen3Config, GROUPED, 3, {"score"}, TOKENS,
         "model.embed_tokens", "model.layers.0", ("model.norm",)),
    Case("qwen3-lm-tied", CAUSAL, hf.Qwen3Config, {**GROUPED, "tie_word_embeddings": True}, 3,
         set(), TOKENS, "model.embed_tokens", "model.layers.0", ("model.norm",)),
    Case("t5", TRANSLATE, hf.T5Config, T5, 5, set(), BOTH,
         "shared", "encoder.block.0", ("decoder.final_layer_norm",)),
    Case("bart", TRANSLATE, hf.BartConfig, PAIR, 5, {"final_logits_bias"}, BOTH,
         "model.encoder.layernorm_embedding", "model.encoder.layers.0"),
    Case("mbart", TRANSLATE, hf.MBartConfig, PAIR, 5, {"final_logits_bias"}, BOTH,
         "model.encoder.layernorm_embedding", "model.encoder.layers.0",
         ("model.decoder.layer_norm",)),
    Case("bart-classes", SEQUENCE, hf.BartConfig, PAIR, 5, {"classification_head"}, TOKENS,
         "model.shared", "model.encoder.layers.0"),
    Case("marian", TRANSLATE, hf.MarianConfig, PAIR, 5, {"final_logits_bias"}, BOTH,
         "model.shared", "model.encoder.layers.0"),
    Case("vit", CLASSIFY, hf.ViTConfig, IMAGE, 3, {"classifier"}, PIXELS,
         "vit.embeddings.", "vit.layers.0", ("vit.layernorm",)),
    Case("deit", "DeiTForImageClassification", hf.DeiTConfig, IMAGE, 3, {"classifier"}, PIXELS,
         "deit.embeddings.", "deit.layers.0", ("deit.layernorm",)),
    Case("swin", CLASSIFY, hf.SwinConfig, SWIN, 2, {"classifier"}, PIXELS,
         "swin.embeddings.", "swin.encoder.layers.0", ("swin.layernorm",)),
    Case("convnext", CLASSIFY, hf.ConvNextConfig,
         {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}, 4, {"classifier"}, PIXELS,
         "convnext.embeddings.", "convnext.encoder.stages.0", ("convnext.layernorm",)),
    Case("resnet", CLASSIFY, hf.ResNetConfig, STAGES, 4, {"classifier"}, PIXELS,
         "resnet.embedder.", "resnet.encoder.stages.0"),
    Case("beit", CLASSIFY, hf.BeitConfig, IMAGE, 3, {"classifier"}, PIXELS,
         "beit.embeddings.", "beit.layers.0", ("beit.pooler",)),
    Case("dinov2", CLASSIFY, hf.Dinov2Config, IMAGE, 3, {"classifier"}, PIXELS,
         "dinov2.embeddings.", "dinov2.encoder.layer.0", ("dinov2.layernorm",)),
    Case("clip", "AutoModel", hf.CLIPConfig, {**TOWERS, "projection_dim": 8}, 5,
         {"logit_scale", "visual_projection", "text_projection"}, None,
         "vision_model.embeddings.", "text_model.encoder.layers.0", tuple(VISION)),
    Case("siglip", "AutoModel", hf.SiglipConfig, TOWERS, 5, {"logit_scale", "logit_bias"}, None,
         "vision_model.embeddings.", "text_model.encoder.layers.0",
         ("vision_model.post_layernorm", "vision_model.head")),
    Case("clip-images", CLASSIFY, hf.CLIPConfig, TOWERS, 3, {"classifier"}, PIXELS,
         "vision_model.pre_layrnorm", "vision_model.encoder.layers.0", tuple(VISION)),
    Case("siglip-images", CLASSIFY, hf.SiglipConfig, TOWERS, 3, {"classifier"}, PIXELS,
         "vision_model.embeddings.", "vision_model.encoder.layers.0",
         ("vision_model.post_layernorm", "vision_model.head")),
    Case("clip-vision", "CLIPVisionModel", hf.CLIPVisionConfig, IMAGE, 3, set(), PIXELS),
    Case("detr", "AutoModelForObjectDetection", hf.DetrConfig, DETR, 9,
         {"class_labels_classifier", "bbox_predictor"}, {"pixel_values": torch.zeros(1, 3, 64, 64)},
         "model.backbone.model.embedder.", "model.backbone.model.encoder.stages.0",
         ("model.decoder.layernorm",)),
    Case("segformer", "AutoModelForSemanticSegmentation", hf.SegformerConfig, SEGFORMER, 4,
         {"decode_head"}, {"pixel_values": torch.zeros(1, 3, 64, 64)}, None, "segformer.stages.0"),
    Case("wav2vec2-ctc", "AutoModelForCTC", hf.Wav2Vec2Config, SPEECH, 4, {"lm_head"}, SOUND,
         "wav2vec2.feature_extractor.conv_layers.0", "wav2vec2.feature_extractor.conv_layers.1"),
    Case("wav2vec2-audio", "AutoModelForAudioClassification", hf.Wav2Vec2Config, SPEECH, 4,
         {"projector", "classifier"}, SOUND, "wav2vec2.feature_extractor.conv_layers.0",
         "wav2vec2.feature_extractor.conv_layers.1"),
    Case("whisper", "AutoModelForSpeechSeq2Seq", hf.WhisperConfig, WHISPER, 5, set(), MEL,
         "model.decoder.embed_tokens", "model.encoder.layers.0", ("model.decoder.layer_norm",)),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def every_tensor(model: nn.Module) -> list[str]:
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return sorted(name for name, _ in named)


def assert_partition(groups: LayerGroups, model: nn.Module) -> None:
    """Each parameter and buffer is in exactly one group; one stem at most, the head last."""
    held = sorted(name for group in groups for name in group.parameters + group.buffers)
    assert held == every_tensor(model)
    assert sorted(groups.parameters) == sorted(name for name, _ in model.named_parameters())
    roles = [group.role for group in groups]
    assert roles == sorted(roles, key=["stem", "block", "head"].index)
    assert roles.count("head") == 1
    assert roles.count("stem") <= 1
    assert len({group.name for group in groups}) == len(groups)


def under(names: tuple[str, ...], module: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for name in names)


def order_of_execution(model: nn.Module, groups: LayerGroups, forward: Callable) -> list[int]:
    """The index of each group, in the order in which a module of it first ran."""
    index = {name: i for i, g in enumerate(groups) for name in g.parameters + g.buffers}
    seen: list[int] = []
    handles = []
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers} if name else {}
        for i in {index[f"{name}.{n}"] for n in own if f"{name}.{n}" in index}:
            handles.append(module.register_forward_pre_hook(lambda *_, i=i: seen.append(i)))
    with torch.no_grad():
        forward(model)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(seen))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request) -> tuple[Case, nn.Module, LayerGroups]:
    torch.manual_seed(0)
    model = request.param.build()
    return request.param, model, LayerGroups.of(model)


class TestTransformers:
    def test_partition(self, built):
        _, model, groups = built
        assert_partition(groups, model)

    def test_head_is_exactly_the_task_head(self, built):
        case, model, groups = built
        names = every_tensor(model)
        expected = [n for n in names if any(under((n,), module) for module in case.head)]
        assert sorted(groups.head.parameters + groups.head.buffers) == expected
        for module in case.head:
            assert under(groups.head.parameters + groups.head.buffers, module)

    def test_blocks(self, built):
        case, _, groups = built
        assert len(groups.blocks) == case.blocks
        if case.first:
            assert groups.blocks[0].name == case.first
        for block in groups.blocks:
            assert under(block.parameters, block.name)
        for module in case.last:
            assert under(groups.blocks[-1].parameters, module)

    def test_stem(self, built):
        case, _, groups = built
        if case.stem is None:
            assert groups.stem is None
        else:
            assert any(name.startswith(case.stem) for name in groups.stem.parameters)

    def test_groups_run_in_order(self, built):
        case, model, groups = built
        if case.inputs is None:
            pytest.skip("two towers: checked one by one in test_each_tower_runs_in_order")
        seen = order_of_execution(model, groups, lambda m: m(**case.inputs))
        assert seen == sorted(seen)
        assert {i for i, group in enumerate(groups) if group.role == "block"} <= set(seen)

    def test_norms(self, built):
        _, model, groups = built
        norms = {n for n, m in model.named_modules() if re.search("norm", type(m).__name__, re.I)}
        owners = {name.rpartition(".")[0] for name in every_tensor(model)}
        norms = {n for n in norms & owners if not list(model.get_submodule(n).children())}
        assert groups.norm_modules == norms
        assert groups.norm_parameters == {
            n for n, _ in model.named_parameters() if n.rpartition(".")[0] in norms
        }
        assert groups.norm_modules


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_each_tower_runs_in_order(name):
    model = BY_NAME[name].build()
    groups = LayerGroups.of(model)

    def forward(model: nn.Module) -> None:
        model.get_text_features(**TOKENS)
        model.get_image_features(**PIXELS)

    seen = order_of_execution(model, groups, forward)
    blocks = [i for i in seen if groups.groups[i].role == "block"]
    assert blocks == sorted(blocks)
    assert len(blocks) == 5


def test_encoder_comes_before_decoder():
    for name in ("t5", "bart", "marian", "whisper", "detr"):
        blocks = [block.name for block in LayerGroups.of(BY_NAME[name].build()).blocks]
        sides = ["decoder." in block for block in blocks]
        assert sides == sorted(sides)
        assert sum(sides) == 3


def test_a_tied_tensor_is_with_the_embedding_only():
    model = BY_NAME["gpt2-lm"].build()
    groups = LayerGroups.of(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert groups.group_of("transformer.wte.weight") is groups.stem
    assert "lm_head.weight" not in groups.parameters
    assert groups.head.parameters == ()


def test_relative_position_bias_is_with_its_block():
    groups = LayerGroups.of(BY_NAME["t5"].build())
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert groups.group_of(name).name == "decoder.block.0"


def test_what_stands_between_two_parts_is_with_the_second():
    groups = LayerGroups.of(BY_NAME["detr"].build())
    assert groups.group_of("model.input_projection.weight").name == "model.encoder.layers.0"
    groups = LayerGroups.of(BY_NAME["wav2vec2-ctc"].build())
    name = "wav2vec2.feature_projection.projection.weight"
    assert groups.group_of(name).name == "wav2vec2.encoder.layers.0"


def test_frozen_batch_norms_are_norms_without_parameters():
    groups = LayerGroups.of(BY_NAME["detr"].build())
    backbone = {name for name in groups.norm_modules if name.startswith("model.backbone")}
    assert len(backbone) == 14
    assert not any(name.startswith("model.backbone") for name in groups.norm_parameters)


def test_a_fresh_part_inside_the_base_is_the_head_where_nothing_else_is():
    config = hf.PerceiverConfig(
        vocab_size=40, d_latents=16, d_model=16, num_latents=4, num_self_attends_per_block=2,
        num_self_attention_heads=2, num_cross_attention_heads=2, max_position_embeddings=32,
        num_blocks=1,
    )  # fmt: skip
    model = hf.PerceiverForSequenceClassification(config)
    fresh = {n for n, _ in model.named_parameters() if n.startswith("perceiver.decoder.")}
    groups = LayerGroups.of(model, fresh=fresh)
    assert_partition(groups, model)
    assert set(groups.head.parameters) == fresh


@pytest.mark.parametrize("name", ["bert", "bert-no-head", "t5", "clip-images", "siglip"])
def test_a_model_that_is_fresh_whole_is_ordered_all_the_same(name):
    model = BY_NAME[name].build()
    fresh = [name for name, _ in model.named_parameters()]
    found = LayerGroups.of(model, fresh=[*fresh, "tied.weight"])
    assert found.groups == LayerGroups.of(model).groups


def test_fresh_norms_or_poolers_inside_the_base_do_not_move_the_head():
    model = BY_NAME["bert"].build()
    fresh = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"]
    assert LayerGroups.of(model, fresh=fresh).groups == LayerGroups.of(model).groups


class Net(nn.Module):
    """A plain model without any list: its order is that of registration."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
        self.third = nn.Linear(4, 2)


class Body(nn.Module):
    """A plain model with blocks in two lists of one length that run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.pooler = nn.Linear(4, 4)
        self.down = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.up = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.final = nn.Linear(4, 2)


class Classes(nn.Module):
    """A Transformers base model inside a user's own module."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.mine = nn.Linear(16, 2)


class Held(nn.Module):
    """What DistributedDataParallel does to the names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class TestPlainModules:
    def test_sequential(self):
        model = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
        )
        groups = LayerGroups.of(model)
        assert_partition(groups, model)
        assert [group.parameters for group in groups] == [
            ("0.weight", "0.bias", "1.weight", "1.bias"), ("3.weight", "3.bias"),
            ("4.weight", "4.bias"),
        ]  # fmt: skip
        assert groups.norm_modules == {"1"}
        assert set(groups.stem.buffers) == {"1.running_mean", "1.running_var",
                                            "1.num_batches_tracked"}  # fmt: skip

    def test_two_layers_are_stem_and_head(self):
        groups = LayerGroups.of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        assert [group.role for group in groups] == ["stem", "head"]

    def test_backbone_and_head_in_a_sequential(self):
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), *blocks), nn.Linear(4, 2))
        groups = LayerGroups.of(model)
        assert [block.name for block in groups.blocks] == ["0.1", "0.2", "0.3"]
        assert groups.head.parameters == ("1.weight", "1.bias")

    def test_children_without_lists(self):
        model = Net()
        groups = LayerGroups.of(model)
        assert_partition(groups, model)
        assert groups.stem.parameters == (
            "token", "first.weight", "first.bias", "norm.weight", "norm.bias",
        )  # fmt: skip
        assert [block.name for block in groups.blocks] == ["second"]
        assert groups.head.parameters == ("third.weight", "third.bias")

    def test_lists_that_follow_each_other(self):
        model = Body()
        groups = LayerGroups.of(model)
        assert_partition(groups, model)
        assert [block.name for block in groups.blocks] == ["down.0", "down.1", "up.0", "up.1"]
        assert {"norm.weight", "pooler.weight"} <= set(groups.blocks[-1].parameters)
        assert groups.head.parameters == ("final.weight", "final.bias")

    def test_a_base_model_in_a_module_of_ones_own(self):
        model = Classes(BY_NAME["bert-no-head"].build())
        groups = LayerGroups.of(model)
        assert_partition(groups, model)
        assert [block.name for block in groups.blocks][0] == "base.encoder.layer.0"
        assert "base.pooler.dense.weight" in groups.blocks[-1].parameters
        assert groups.head.parameters == ("mine.weight", "mine.bias")

    def test_a_module_that_only_holds_the_model(self):
        model = BY_NAME["bert"].build()
        inner, outer = LayerGroups.of(model), LayerGroups.of(Held(model))
        assert [g.parameters for g in outer] == [
            tuple(f"module.{name}" for name in g.parameters) for g in inner
        ]
        assert outer.blocks[0].name == "module.bert.encoder.layer.0"

    def test_fresh_tells_the_head_of_a_plain_module(self):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        fresh = ["2.weight", "2.bias", "3.weight", "3.bias"]
        groups = LayerGroups.of(model, fresh=fresh)
        assert groups.head.parameters == tuple(fresh)
        assert LayerGroups.of(model).head.parameters == ("3.weight", "3.bias")

    def test_shared_modules_are_one_block(self):
        block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        model = nn.Sequential(nn.Linear(4, 4), block, block, nn.Linear(4, 2))
        groups = LayerGroups.of(model)
        assert_partition(groups, model)
        assert [group.role for group in groups] == ["stem", "block", "head"]

    def test_refuses_what_has_no_order(self):
        bare = nn.Module()
        bare.weight, bare.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        for model in (bare, nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2)), nn.ReLU()):
            with pytest.raises(SourceError, match=r"cannot order .*model\.layer_groups: \["):
                LayerGroups.of(model)
        with pytest.raises(SourceError, match=r'\["weight", "bias"\]'):
            LayerGroups.of(nn.Linear(4, 2))
        groups = LayerGroups.of(nn.Linear(4, 2), ["weight", "bias"])
        assert [group.role for group in groups] == ["stem", "head"]


class TestPatterns:
    GLOBS = ("bert.embeddings.*", "bert.encoder.layer.0.*", "bert.*", "classifier.*")

    def test_first_match_wins(self):
        model = BY_NAME["bert"].build()
        groups = LayerGroups.of(model, self.GLOBS)
        assert_partition(groups, model)
        assert [group.name for group in groups] == list(self.GLOBS)
        assert [group.role for group in groups] == ["stem", "block", "block", "head"]
        assert under(groups.blocks[1].parameters, "bert.pooler")
        assert "bert.embeddings.position_ids" in groups.stem.buffers

    @pytest.mark.parametrize(
        ("globs", "message"),
        [
            (["bert.*", "clasifier.*"], r"'clasifier\.\*' matches no parameter.*classifier\.w"),
            (["bert.encoder.*", "classifier.*"], r"no glob matches parameter 'bert\.embeddings\."),
            (["*", "classifier.*"], r"'classifier\.\*': every parameter .* already taken"),
            (["*"], "two globs or more"),
        ],
    )  # fmt: skip
    def test_a_rule_without_effect_is_an_error(self, globs, message):
        with pytest.raises(SourceError, match=message):
            LayerGroups.of(BY_NAME["bert"].build(), globs)


def test_group_of_an_unknown_name_lists_the_nearest():
    groups = LayerGroups.of(BY_NAME["bert"].build())
    with pytest.raises(SourceError, match=r"classifier\.weight"):
        groups.group_of("clasifier.weight")
    assert groups.group_of("bert.embeddings.position_ids") is groups.stem


@pytest.mark.parametrize(
    ("module", "norm"),
    [
        (nn.BatchNorm2d(4), True), (nn.SyncBatchNorm(4), True), (nn.InstanceNorm1d(4), True),
        (nn.GroupNorm(2, 4), True), (nn.RMSNorm(4), True), (nn.LayerNorm(4), True),
        (nn.Linear(4, 4), False), (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), False),
    ],
)  # fmt: skip
def test_is_norm(module, norm):
    assert is_norm(module) is norm


@pytest.fixture(scope="module")
def timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm")


class TestTimm:
    def test_wrapper_has_the_order_of_the_net_inside(self, timm):
        config = hf.TimmWrapperConfig(architecture="resnet18", num_labels=3)
        model = hf.TimmWrapperForImageClassification(config)
        groups, inner = LayerGroups.of(model), LayerGroups.of(model.timm_model)
        assert_partition(groups, model)
        assert [g.parameters for g in groups] == [
            tuple(f"timm_model.{name}" for name in g.parameters) for g in inner
        ]
        assert groups.head.parameters == ("timm_model.fc.weight", "timm_model.fc.bias")
        assert len(groups.blocks) == 8

    def test_norms_with_activation_are_norms(self, timm):
        with torch.device("meta"):
            model = timm.create_model("efficientnet_b0")
        groups = LayerGroups.of(model)
        assert "bn1" in groups.norm_modules
        assert "blocks.0.0.bn1.weight" in groups.norm_parameters
        assert under(groups.blocks[-1].parameters, "conv_head")
        assert groups.head.parameters == ("classifier.weight", "classifier.bias")

    def test_a_norm_beside_the_classifier_is_with_the_last_block(self, timm):
        with torch.device("meta"):
            model = timm.create_model("convnext_atto")
        groups = LayerGroups.of(model)
        assert len(groups.blocks) == 12
        assert "head.norm.weight" in groups.blocks[-1].parameters
        assert groups.head.parameters == ("head.fc.weight", "head.fc.bias")

    def test_two_classifiers_are_one_head(self, timm):
        with torch.device("meta"):
            model = timm.create_model("deit_tiny_distilled_patch16_224")
        heads = {name.partition(".")[0] for name in LayerGroups.of(model).head.parameters}
        assert heads == {"head", "head_dist"}

    def test_without_a_classifier_the_head_is_empty(self, timm):
        for name in ("vit_tiny_patch16_224", "pit_ti_224", "resnet18"):
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=0)
            groups = LayerGroups.of(model)
            assert_partition(groups, model)
            assert groups.head.parameters == ()
            assert len(groups.blocks) == {"v": 12, "p": 3, "r": 8}[name[0]]

    @pytest.mark.slow
    def test_a_model_of_every_module(self, timm):
        """Partition, order and head for one model of each of timm's modules, on the meta device."""
        checked, ran, headless, disordered, unbuilt = 0, 0, [], [], {}
        for module in timm.list_modules():
            name, model = smallest(timm, module, unbuilt)
            if model is None:
                continue
            groups = LayerGroups.of(model)
            assert_partition(groups, model)
            assert len(groups.blocks) >= 2, name
            assert set(groups.head.parameters) >= classifier_parameters(model), name
            checked += 1
            headless += [name] * (not groups.head.parameters)
            with torch.device("meta"):
                images = torch.empty(1, *model.pretrained_cfg["input_size"])
                seen = order_of_execution(model, groups, lambda m, x=images: m(x))
            ran += len(seen) > 2
            disordered += [name] * (seen != sorted(seen))
        assert checked >= 95, unbuilt
        assert ran >= 95
        assert len(headless) <= 8, headless
        assert disordered in ([], ["efficientvim_m1"])  # timm groups its per-stage norms last


def smallest(timm, module: str, unbuilt: dict[str, str]) -> tuple[str, nn.Module | None]:
    """A small model of a timm module, going by its name; the reasons for those that fail."""
    sizes = ["atto", "femto", "pico", "nano", "tiny", "_ti", "xx", "xs", "small", "_s", "18", "b0"]
    rank = {n: [size in n for size in sizes] for n in timm.list_models(module=module)}
    for name in sorted(rank, key=lambda n: (not any(rank[n]), [not r for r in rank[n]], n))[:3]:
        try:
            with torch.device("meta"):
                return name, timm.create_model(name).eval()
        except Exception as error:  # whatever keeps a model from being built without its weights
            unbuilt[name] = repr(error)
    return module, None


def classifier_parameters(model: nn.Module) -> set[str]:
    """What timm itself calls the classifier."""
    parts = model.pretrained_cfg.get("classifier") or ()
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    return {n for n, _ in model.named_parameters() if any(under((n,), part) for part in parts)}
