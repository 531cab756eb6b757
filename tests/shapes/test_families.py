"""Every family computes what transformers computes, and every config survives the way there and back."""

import json

import pytest
import torch

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import ModelConfig, TargetConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import (
    FAMILIES,
    architecture_from_hf,
    architecture_of,
    architecture_to_hf,
    complete,
    target_of,
)
from twins import BY_FAMILY, CONFIGS, LIMIT, make, older, tokens

TOLERANCE = 1e-4


def ours(hf) -> ComposerMosaicLlama:
    """Our model with the weights of an HF model."""
    weights, arch = from_hf(HFModel("twin", hf.config.to_dict(), dict(hf.state_dict()), {}))
    model = ComposerMosaicLlama(complete(ModelConfig(), arch, "twin")).eval()
    model.load_state_dict(weights)
    return model


def test_every_family_has_its_twins():
    assert set(BY_FAMILY) == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_those_of_transformers(name):
    hf = make(CONFIGS[name])
    model = ours(hf)
    for length in (3, LIMIT // 2 + 1, LIMIT):
        ids = tokens(length)
        expected = hf(ids).logits
        assert expected.std() > 0.1
        assert (model({"input_ids": ids})["logits"] - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_dynamic_rope_stretches_beyond_the_limit_as_in_transformers():
    hf = make(CONFIGS["llama rope dynamic"])
    model = ours(hf)
    ids = tokens(LIMIT + LIMIT // 2)
    assert (model({"input_ids": ids})["logits"] - hf(ids).logits).abs().max() <= TOLERANCE
    ids = tokens(LIMIT)  # and shrinks back
    assert (model({"input_ids": ids})["logits"] - make_again(hf)(ids).logits).abs().max() <= TOLERANCE


def make_again(hf):
    fresh = make(hf.config)
    fresh.load_state_dict(hf.state_dict())
    return fresh


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_the_way_there_and_back(name):
    hf = json.loads(CONFIGS[name].to_json_string())
    arch = architecture_from_hf(hf)
    written = architecture_to_hf(arch, hf)
    assert architecture_from_hf(written) == arch
    assert written == hf or "rope_parameters" in hf  # which is written in the older spelling
    assert architecture_from_hf(architecture_to_hf(arch)) == arch
    smaller = arch.resized(d_model=16, n_heads=2, n_kv_heads=2, head_dim=8, n_layers=1, intermediate_size=24)
    assert architecture_from_hf(architecture_to_hf(smaller, hf)) == smaller


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_section_says_everything_about_an_architecture(name):
    arch = architecture_from_hf(CONFIGS[name].to_dict())
    assert architecture_of(complete(ModelConfig(), arch, "twin")) == arch


def test_missing_config_keys_have_the_defaults_of_transformers():
    arch = architecture_from_hf({"model_type": "qwen3", "hidden_size": 64})
    assert (arch.head_dim, arch.norm_eps, arch.qk_norm) == (128, 1e-6, True)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((2048, 16, 24, 5504), 1_345_423_360),
        ((2560, 20, 32, 6912), 2_701_560_320),
        ((1024, 8, 24, 2816), 373_867_520),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(shape, parameters):
    d_model, n_heads, n_layers, intermediate_size = shape
    cfg = ModelConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        intermediate_size=intermediate_size,
        vocab_size=32000,
        max_seq_len=4096,
        init_device="meta",
    )
    assert sum(p.numel() for p in ComposerMosaicLlama(cfg).parameters()) == parameters


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize("model_type", ["mixtral", "t5", "gpt2", "gemma2", None])
def test_an_unsupported_family_is_named_with_those_that_are_supported(model_type):
    with pytest.raises(ValueError, match=f"model_type is '{model_type}'.*{', '.join(FAMILIES)}"):
        architecture_from_hf({"model_type": model_type})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "type 'longrope'; supported: default, linear",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "type None; supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized; pruning needs the weights in fp32"),
        ({"num_key_value_heads": 3}, "n_heads is 4 and n_kv_heads is 3"),
        (
            {"num_hidden_layers": "four"},
            "n_layers is 'four'; expected a whole|'num_hidden_layers' expected int",
        ),
        ({"num_attention_heads": 0}, "The HF config is inconsistent|num_attention_heads is 0"),
        (
            {"hidden_size": None},
            "hold together|hidden_size is None in the HF config; expected a whole number",
        ),
        ({"rope_theta": "abc"}, "rope_theta is 'abc'; expected a number above 0"),
        ({"max_position_embeddings": -4}, "max_seq_len is -4; expected a whole number of at least 1"),
    ],
)
def test_a_config_that_cannot_be_pruned_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        architecture_from_hf({**older("llama"), **change})


def test_a_window_in_some_layers_only_is_rejected():
    config = {**CONFIGS["qwen2"].to_dict(), "use_sliding_window": True}
    with pytest.raises(ValueError, match="use_sliding_window is true"):
        architecture_from_hf(config)


def test_gpt_neox_without_biases_is_rejected():
    with pytest.raises(ValueError, match="attention_bias is false"):
        architecture_from_hf({**CONFIGS["gpt_neox"].to_dict(), "attention_bias": False})


def arch_of(name: str) -> Architecture:
    return architecture_from_hf(CONFIGS[name].to_dict())


def test_what_a_family_cannot_express_is_rejected_at_export():
    with pytest.raises(ValueError, match="family llama cannot express out_bias=True"):
        architecture_to_hf(arch_of("llama").resized(out_bias=True))
    with pytest.raises(ValueError, match="family gpt_neox cannot express head_dim=8"):
        architecture_to_hf(arch_of("gpt_neox").resized(d_model=24))


def test_target_heads_that_kv_heads_do_not_divide_are_rejected():
    with pytest.raises(ValueError, match=r"target_model.n_heads is 3, which 2 KV heads do not divide"):
        target_of(arch_of("llama grouped"), TargetConfig(n_heads=3))


def test_a_configured_size_that_is_not_the_checkpoints_names_the_line_to_change():
    with pytest.raises(
        ValueError,
        match=r"model.d_model is 64, but the checkpoint W has 32; set .*\nmodel.n_layers is 9",
    ):
        complete(ModelConfig(d_model=64, n_layers=9), arch_of("llama"), "W")


def test_sequences_may_be_shorter_than_the_checkpoints_where_rotations_do_not_depend_on_them():
    assert complete(ModelConfig(max_seq_len=16), arch_of("llama"), "W").max_seq_len == LIMIT
    with pytest.raises(ValueError, match=r"model.max_seq_len is 16"):
        complete(ModelConfig(max_seq_len=16), arch_of("llama rope yarn"), "W")


def test_padding_on_the_left_is_rejected():
    model, ids = ours(make(CONFIGS["llama"])), tokens(4)
    model({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0]]).expand_as(ids)})
    with pytest.raises(ValueError, match="padding on the left; pad on the right"):
        model({"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1, 1]]).expand_as(ids)})
