"""Configs as transformers 4 and 5 write them mean the same, and what is not understood is rejected."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.hf_config import architecture_from_hf, architecture_to_hf
from llmshearing.shapes.key_map import renamed_to_hf
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.rope_config import read_rope
from twins import CONFIGS, older

FIXTURES = Path(__file__).parents[1] / "fixtures" / "transformers5"
spec = importlib.util.spec_from_file_location("make_transformers5", FIXTURES / "make.py")
assert spec is not None
assert spec.loader is not None
written = importlib.util.module_from_spec(spec)
spec.loader.exec_module(written)
NAMES = sorted(written.CASES)


def config(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def filled(name: str, shape: torch.Size) -> torch.Tensor:
    return written.filled(name.replace("lm_head", "head").replace("embed_out", "head"), shape)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_that_transformers_5_computed(name: str) -> None:
    """Stored logits: transformers 4 misreads such a config, so it cannot be asked."""
    hf = config(name)
    arch = architecture_from_hf(hf)
    ours = ComposerMosaicLlama(complete(ModelConfig(init_device="meta"), arch, name))
    shapes = renamed_to_hf(dict(ours.named_parameters()), arch)
    theirs = {n: filled(n, parameter.shape) for n, parameter in shapes.items()}
    if arch.fused_qkv:  # transformers 5 calls it so
        theirs["lm_head.weight"] = theirs.pop("embed_out.weight")
    weights, _ = from_hf(HFModel(name, hf, theirs, {}))
    ours.load_state_dict(weights, assign=True)
    with torch.no_grad():
        logits = ours.eval()({"input_ids": written.IDS})["logits"]
    torch.testing.assert_close(logits, load_file(FIXTURES / "logits.safetensors")[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_written_in_the_spelling_that_both_versions_read(name: str) -> None:
    arch = architecture_from_hf(config(name))
    again = architecture_to_hf(arch, config(name))
    if arch.family != "olmo3":  # whose layers with a window transformers 5 would give another base
        assert "rope_parameters" not in again
    assert architecture_from_hf(again) == arch


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_both_spellings_are_one_architecture(name: str) -> None:
    older = CONFIGS[name].to_dict()
    arch = architecture_from_hf(older)
    newer = {k: v for k, v in older.items() if k not in ("rope_theta", "rope_scaling", "rotary_emb_base")}
    newer.pop("rotary_pct", None)
    newer.pop("partial_rotary_factor", None)
    parameters = {**(arch.rope_scaling or {"rope_type": "default"}), "rope_theta": arch.rope_theta}
    if arch.fused_qkv or arch.rotary_pct != 1:
        parameters["partial_rotary_factor"] = arch.rotary_pct
    if arch.local_rope_theta is not None:
        local = {"rope_type": "default", "rope_theta": arch.local_rope_theta}
        parameters = {"full_attention": parameters, "sliding_attention": local}
        newer.pop("rope_local_base_freq", None)
    newer |= {"rope_parameters": parameters, "transformers_version": "5.24.0"}
    assert architecture_from_hf(newer) == arch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": None}, "neither rope_parameters nor rope_theta"),
        (
            {"rope_theta": 1234.0},
            r"contradicts itself: rope_parameters.rope_theta is 500000.0 and rope_theta is 1234.0",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradicts itself"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by type of layer"),
        ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "has type 'spiral'; supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "of type longrope lacks short_factor, long_factor"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "facter": 3}},
            "has facter, which is not",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "of type linear lacks factor"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; expected keys and values"),
    ],
)
def test_what_is_not_understood_is_rejected(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture_from_hf({**config("llama"), **changes})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"rope_type": "default", "rope_theta": 1e6},
            "expected the keys full_attention and sliding_attention",
        ),
        (
            {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters.sliding_attention has rope_type 'linear'; expected default",
        ),
        (
            {"full_attention": {}, "sliding_attention": {"rope_theta": 5.0}},
            "rope_parameters.sliding_attention.rope_theta is 5.0 and rope_local_base_freq is 10000.0",
        ),
    ],
)
def test_rotations_by_type_of_layer_that_are_not_understood_are_rejected(parameters, message) -> None:
    with pytest.raises(ValueError, match=message):
        architecture_from_hf({**older("gemma3_text"), "rope_parameters": parameters})


def test_an_older_config_without_a_base_has_its_class_default() -> None:
    hf = {key: value for key, value in older("llama").items() if key != "rope_theta"}
    assert read_rope(hf) == {}
    assert architecture_from_hf(hf).rope_theta == 10000.0
