"""A GGUF file gives the model that was written to it, with its tokens and rotary scaling, or an error."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

pytest.importorskip("gguf")

import gguf

import gguf_twins
from gguf_twins import WORDS, twin
from llmshearing.checkpoints.gguf_files import read_gguf, scaling_of
from llmshearing.checkpoints.hf_files import from_hf, read_hf
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.convert import save_hf_to_composer
from llmshearing.commands.equality import differences, load_ours, load_theirs
from llmshearing.shapes.rope_config import read_rope
from twins import CONFIGS, tokens

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}


def prefixed(model, values):
    name = gguf_twins.ARCHITECTURES[model.config.model_type]
    return {f"{name}.{key}": value for key, value in values.items()}


@torch.no_grad()
def largest_difference(path, hf, length=64):
    """Between the logits of a conversion of `path` and those of the model it was made from."""
    save_hf_to_composer(path, path.with_suffix(".pt"))
    ids = tokens(length, WORDS)
    ours = load_ours(read_checkpoint(path.with_suffix(".pt")))({"input_ids": ids})["logits"]
    return float((ours - hf(ids).logits).abs().max())


SCALED = {
    "llama rope linear": LINEAR,
    "llama rope yarn": YARN,
    "llama rope yarn scaled": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.attn_factor": 1.3 / (0.1 * math.log(4.0) + 1),
    },
}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, config in CONFIGS.items()
        if config.model_type in ("llama", "mistral", "qwen2", "qwen3")
        and not any(word in name for word in ("gelu", "dynamic", "llama3", "windows"))
    ]
    + ["gpt_neox", "gpt_neox serial"],
)
def test_every_family_comes_out_as_it_was_written(tmp_path, name):
    hf = twin(name)
    path = gguf_twins.write(tmp_path / "m.gguf", hf, prefixed(hf, SCALED.get(name, {})))
    assert largest_difference(path, hf) < 1e-4


@pytest.mark.parametrize(
    ("factor", "low", "high", "original", "theta", "size"),
    [
        (8.0, 1.0, 4.0, 16, 10000.0, 8),
        (32.0, 1.0, 4.0, 8192, 500000.0, 64),
        (8.0, 1.0, 4.0, 8192, 500000.0, 128),
        (16.0, 2.0, 6.0, 5000, 100000.0, 64),
        (4.0, 1.5, 9.0, 1000, 10000.0, 128),
    ],
)
def test_llama_3_scaling_is_recovered_from_its_factors(factor, low, high, original, theta, size):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    config = LlamaConfig(head_dim=size, rope_theta=theta, rope_scaling=scaling)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = gguf_twins.rope_factors(expected, theta, size)
    found = scaling_of(factors.astype(float), theta ** (-np.arange(0, size, 2) / size), 2048)
    assert found is not None
    again, _ = ROPE_INIT_FUNCTIONS["llama3"](
        LlamaConfig(head_dim=size, rope_theta=theta, rope_scaling=found), "cpu"
    )
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=0)
    if (low, high) == (1.0, 4.0) and size >= 64:
        assert (found["factor"], found["original_max_position_embeddings"]) == (factor, original)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        (np.ones(4), None),
        (np.full(4, 3.0), {"rope_type": "linear", "factor": 3.0}),
    ],
)
def test_equal_factors_are_no_scaling_or_a_linear_one(factors, expected):
    assert scaling_of(factors, 10000.0 ** (-np.arange(4) / 4), 64) == expected


def test_factors_of_no_known_scaling_are_reported(tmp_path):
    hf = twin("llama grouped")
    odd = {"rope_freqs.weight": np.array([1.0, 5.0, 2.0, 7.0], np.float32)}
    path = gguf_twins.write(tmp_path / "m.gguf", hf, tensors=lambda t: {**t, **odd})
    with pytest.raises(
        ValueError, match=r"m\.gguf \(llama\): rope_freqs\.weight scales .* no rope_scaling of HF"
    ):
        read_gguf(path)


def llama3(tmp_path):
    hf = twin("llama rope llama3")
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](hf.config, "cpu")
    factors = {"rope_freqs.weight": gguf_twins.rope_factors(frequencies, 10000.0, 8)}
    return hf, gguf_twins.write(tmp_path / "m.gguf", hf, tensors=lambda t: {**t, **factors})


def test_llama_3_scaling_comes_out_as_it_was_written(tmp_path):
    hf, path = llama3(tmp_path)
    assert largest_difference(path, hf) < 1e-4


@pytest.mark.parametrize(
    "name", ["llama grouped", "llama rope linear", "llama rope yarn scaled", "llama rope llama3"]
)
def test_the_check_reads_a_file_its_own_way_and_notices_a_lost_scaling(tmp_path, name):
    if name == "llama rope llama3":
        hf, path = llama3(tmp_path)
    else:
        hf = twin(name)
        path = gguf_twins.write(tmp_path / "m.gguf", hf, prefixed(hf, SCALED.get(name, {})))
    theirs = load_theirs(path)
    ids = tokens(64, WORDS)
    with torch.no_grad():
        assert (theirs(ids).logits - hf(ids).logits).abs().max() < 1e-4
    save_hf_to_composer(path, tmp_path / "right.pt")
    right = load_ours(read_checkpoint(tmp_path / "right.pt"))
    assert differences(right, theirs, [64])[0].largest < 1e-4
    if name != "llama grouped":
        theta = read_rope(CONFIGS[name].to_dict())["rope_theta"]
        plain = twin(name, rope_scaling={"rope_type": "default", "rope_theta": theta})
        plain.load_state_dict(hf.state_dict())
        save_hf_to_composer(gguf_twins.write(tmp_path / "lost.gguf", plain), tmp_path / "lost.pt")
        lost = load_ours(read_checkpoint(tmp_path / "lost.pt"))
        assert differences(lost, theirs, [64])[0].largest > 0.1


def test_the_check_compares_with_no_random_weights(tmp_path):
    path = gguf_twins.write(
        tmp_path / "m.gguf", twin("llama grouped"), tensors=without("blk.1.ffn_down.weight")
    )
    with pytest.raises(ValueError, match=r"transformers finds no model\.layers\.1\.mlp\.down_proj\.weight"):
        load_theirs(path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_other_types_are_dequantized(tmp_path, kind):
    hf = twin("qwen2", hidden_size=64, intermediate_size=96)
    names = gguf_twins.tensors_of(hf)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "qwen2")
    expected = {}
    for name, array in names.items():
        of_type = gguf.GGMLQuantizationType[kind] if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(array, of_type)
        writer.add_tensor(name, stored, raw_dtype=of_type)
        expected[name] = gguf.quants.dequantize(stored, of_type)
    for key, value in gguf_twins.metadata_of(hf).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "m.gguf")[1]
    assert torch.equal(found["model.embed_tokens.weight"], torch.tensor(expected["token_embd.weight"]))
    assert all(weight.dtype == torch.float32 for weight in found.values())
    assert torch.allclose(found["lm_head.weight"], hf.state_dict()["lm_head.weight"], atol=0.1)


# -------------------------------------------------------------------- tensors


def without(*names):
    return lambda tensors: {name: array for name, array in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({}, without("blk.1.ffn_down.weight"), r"1 missing: .*blocks\.1\.mlp\.down_proj\.weight"),
        ({}, without("token_embd.weight"), "it has no vocab_size|1 missing"),
        (
            {},
            lambda t: {**t, "blk.1.ffn_gate_inp.weight": np.ones((4, 4), np.float32)},
            "ffn_gate_inp.weight, which",
        ),
        (
            {},
            lambda t: {**t, "blk.7.attn_norm.weight": np.ones(32, np.float32)},
            r"1 unexpected: .*blocks\.7",
        ),
        (
            {},
            lambda t: {**t, "output.weight": np.ones((4, 4), np.float32)},
            r"output\.weight \(expected \(300, 32\)",
        ),
        ({"block_count": 3}, lambda t: t, "9 missing"),
        ({"attention.head_count_kv": 4}, lambda t: t, "of the wrong shape"),
        ({"expert_count": 8}, lambda t: t, r"settings that are not supported: expert_count \(8\)"),
        ({"attention.causal": False}, lambda t: t, "attention.causal is false: a model that reads its text"),
        ({"logit_scale": 0.5}, lambda t: t, r"not supported: logit_scale \(0.5\)"),
        (
            {"rope.scaling.type": "longrope"},
            lambda t: t,
            "rope.scaling.type is 'longrope'; supported: none, linear",
        ),
        ({"rope.dimension_count": 4}, lambda t: t, "rope.dimension_count is 4; expected all 8 of a head"),
        (
            {"attention.head_count": [4, 2]},
            lambda t: t,
            r"attention.head_count is \[4, 2\]; one whole number",
        ),
        (
            {"attention.layer_norm_rms_epsilon": None},
            lambda t: t,
            "it has no attention.layer_norm_rms_epsilon",
        ),
        ({"block_count": 4_000_000_000}, lambda t: t, "num_hidden_layers is 4000000000"),
    ],
)
def test_what_has_no_place_or_is_missing_is_reported(tmp_path, metadata, tensors, message):
    hf = twin("llama grouped")
    path = gguf_twins.write(tmp_path / "m.gguf", hf, prefixed(hf, metadata), tensors)
    with pytest.raises(ValueError, match=message):
        from_hf(read_hf(path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.type": "adapter"}, "of type 'adapter'; expected a model"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000; the file has 300 tokens"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "300 tokens and 2 types"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "inconsistent tokenizer"),
    ],
)
def test_metadata_that_contradicts_itself_is_reported(tmp_path, metadata, message):
    path = gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"), metadata)
    with pytest.raises(ValueError, match=message):
        read_gguf(path)


def test_an_architecture_that_is_not_supported_is_named(tmp_path):
    hf = twin("llama grouped")
    gguf_twins.write_raw(tmp_path / "m.gguf", "gemma3", {}, gguf_twins.tensors_of(hf))
    with pytest.raises(
        ValueError, match="architecture 'gemma3'; supported in GGUF: llama, qwen2, qwen3, gptneox"
    ):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -100])
def test_a_truncated_file_is_reported(tmp_path, size):
    path = gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"))
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"m\.gguf .*is truncated or not a GGUF file"):
        read_gguf(path)


def test_a_list_that_announces_more_than_there_is_is_not_read_for_ever(tmp_path):
    path = gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"), {"x": [1, 2, 3]})
    content = path.read_bytes()
    place = content.index(b"\x01\x00\x00\x00\x00\x00\x00\x00x") + 9 + 8  # name, its types, the length
    path.write_bytes(content[:place] + b"\xff" * 7 + b"\x00" + content[place + 8 :])
    with pytest.raises(ValueError, match="truncated or not a GGUF file"):
        read_gguf(path)


# ---------------------------------------------------------------- split files


def split(tmp_path, hf, count=3, keys=True):
    """A model in `count` parts."""
    names = list(gguf_twins.tensors_of(hf))
    paths = []
    for part in range(count):
        path = tmp_path / f"m-{part + 1:05d}-of-{count:05d}.gguf"
        metadata = {"split.no": part, "split.count": count, "split.tensors.count": len(names)} if keys else {}
        own = names[part::count]
        gguf_twins.write(path, hf, metadata, lambda t, own=own: {name: t[name] for name in own})
        paths.append(path)
    return paths


@pytest.mark.parametrize("keys", [True, False])
def test_a_split_file_is_read_whole_from_any_of_its_parts(tmp_path, keys):
    hf = twin("qwen3")
    assert largest_difference(split(tmp_path, hf, keys=keys)[1], hf) < 1e-4


def test_a_missing_part_is_named(tmp_path):
    parts = split(tmp_path, twin("llama"))
    parts[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=r"one of 3 parts, of which m-00002-of-00003\.gguf is missing"
    ):
        read_gguf(parts[0])


def test_a_part_under_another_name_is_reported(tmp_path):
    part = split(tmp_path, twin("llama"))[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"part 1 of 3, .* NAME-00001-of-00003\.gguf"):
        read_gguf(part)


def test_parts_that_changed_places_are_reported(tmp_path):
    one, two, _ = split(tmp_path, twin("llama"))
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)
    with pytest.raises(ValueError, match="says it is part 2 of 3, but is read as part 1 of 3"):
        read_gguf(one)
