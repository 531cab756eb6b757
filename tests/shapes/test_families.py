"""Every family computes what transformers computes, and every config survives the way there and back."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import ModelConfig, TargetConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import FAMILIES
from llmshearing.shapes.hf_config import architecture_from_hf, architecture_to_hf
from llmshearing.shapes.model_section import architecture_of, complete, target_of
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


@pytest.mark.parametrize("model_type", ["t5", "gpt2", None])
def test_an_unsupported_family_is_named_with_those_that_are_supported(model_type):
    with pytest.raises(ValueError, match=f"model_type is '{model_type}'.*{', '.join(FAMILIES)}"):
        architecture_from_hf({"model_type": model_type})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
            "type 'spiral'; supported: default, linear",
        ),
        (
            {
                "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
                "original_max_position_embeddings": 16,
            },
            "type 'longrope', which is supported for phi3 alone, not llama",
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
        ({"rope_theta": float("inf")}, "rope_theta is inf; expected a number above 0"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\] in the HF config; expected keys and values"),
        # transformers 5 rejects the next two itself, in its own words
        (
            {"intermediate_size": None},
            "intermediate_size: missing in the HF config|'intermediate_size' expected",
        ),
        ({"hidden_act": ["silu"]}, r"activation is \['silu'\]; expected its name|'hidden_act' expected str"),
        ({"max_position_embeddings": -4}, "max_seq_len is -4; expected a whole number of at least 1"),
    ],
)
def test_a_config_that_cannot_be_pruned_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        architecture_from_hf({**older("llama"), **change})


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("qwen3_moe", "a mixture of experts, which cannot be pruned"),
        ("qwen2_5_vl", "a model of images and text"),
        ("gemma3", "of model_type gemma3_text, is supported"),
        ("phi4_multimodal", "images, speech and text"),
    ],
)
def test_a_family_that_is_nearly_supported_is_named_as_such(model_type, reason):
    with pytest.raises(ValueError, match=f"'{model_type}', which is not supported: .*{reason}.*; supported"):
        architecture_from_hf({"model_type": model_type})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("smollm3 windows", {"use_sliding_window": False}, "use_sliding_window is false"),
        (
            "qwen2 windows",
            {"layer_types": ["full_attention"] * 2},
            "inconsistent: .*layer|layer_types is 2 values",
        ),
        (
            "qwen2 windows",
            {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]},
            "chunked_attention",
        ),
        ("gemma2", {"sliding_window": 0}, "sliding_window is 0 in the HF config"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "an encoder is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "which transformers ignores in Gemma 3"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is 2 values .* one for each of 3 layers"),
        ("granitemoehybrid", {"num_local_experts": 4}, "a mixture of experts cannot be pruned"),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, "hybrid models are not supported"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "supported: rope and nope"),
        ("llama", {"vision_config": {"depth": 2}}, "llama has vision_config: it is a model of images"),
    ],
)
def test_an_option_of_a_family_that_is_not_supported_is_rejected(name, change, message):
    with pytest.raises(ValueError, match=message):
        architecture_from_hf({**CONFIGS[name].to_dict(), **change})


def test_keys_of_a_later_version_that_may_change_the_function_are_rejected():
    later = {**CONFIGS["llama"].to_dict(), "transformers_version": "99.1.0"}
    assert architecture_from_hf({**later, "use_new_norm": False, "new_dropout": 0.1, "colour": "red"})
    with pytest.raises(ValueError, match=r"written by transformers 99.1.0, and its use_new_norm is True"):
        architecture_from_hf({**later, "use_new_norm": True})
    unversioned = {**later, "transformers_version": None, "residual_scale": 2.0}
    with pytest.raises(
        ValueError, match=r"does not say which version wrote it, and its residual_scale is 2.0"
    ):
        architecture_from_hf(unversioned)
    assert architecture_from_hf({**later, "transformers_version": "4.30.0", "use_new_norm": True})


def test_what_layers_differ_in_follows_them():
    arch = arch_of("smollm3 windows")
    assert [arch.window(i) for i in range(3)] == [6, None, 6]
    assert [arch.rotates(i) for i in range(3)] == [False, True, True]
    last = arch.of_layers([1, 2])
    assert ([last.window(i) for i in range(2)], [last.rotates(i) for i in range(2)]) == (
        [None, 6],
        [True] * 2,
    )
    assert last.rope_layers is None
    assert arch.of_layers([1]).sliding_window is None
    with pytest.raises(ValueError, match="window_layers has 3 values and n_layers is 2"):
        replace(arch, n_layers=2)


def test_special_tokens_beyond_the_vocabulary_are_not_filled_in():
    config = architecture_to_hf(arch_of("phi3"))
    assert config["pad_token_id"] is None
    assert "bos_token_id" not in config


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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "change"),
    [
        (7, None, "n_heads=4 or x.n_heads=8"),
        (6, None, "n_heads=4 or x.n_heads=8 or x.n_kv_heads=3"),
        (None, 3, "n_heads=3 or x.n_heads=6 or x.n_kv_heads=4"),
        (4, 8, "n_kv_heads=2 or x.n_kv_heads=4"),
        (9, 5, "n_heads and x.n_kv_heads lower"),
    ],
)
def test_target_heads_that_kv_heads_do_not_divide_are_rejected_with_those_that_fit(heads, kv_heads, change):
    source = arch_of("llama grouped").resized(n_heads=8, n_kv_heads=4)
    with pytest.raises(ValueError, match="KV heads do not divide") as found:
        target_of(source, TargetConfig(n_heads=heads, n_kv_heads=kv_heads), where="x.")
    assert str(found.value).startswith(f"x.n_heads is {heads or 8}, which {kv_heads or 4} KV heads")
    assert str(found.value).endswith(f"The source has 8 query and 4 KV heads: set x.{change}.")


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


JUNK = (None, True, -1, 10**400, float("nan"), "x", [], [[1]], {"a": 1}, {"rope_type": [1]})
TOP = ("rope_scaling", "rope_parameters", "rope_theta", "quantization_config", "layer_types", "torch_dtype")


@pytest.mark.parametrize("name", [*(names[0] for names in BY_FAMILY.values()), "phi3 longrope, tied"])
def test_junk_in_a_config_is_a_sentence(name):
    """Any other exception than ValueError would end a command with a traceback."""
    config = CONFIGS[name].to_dict()
    for key in {*FAMILIES[config["model_type"]].keys.values(), *TOP}:
        for junk in JUNK:
            changed = {**config, key: junk}
            with suppress(ValueError):
                architecture_to_hf(architecture_from_hf(changed), changed)
