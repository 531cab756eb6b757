"""Tiny HF models with random weights, one for every family and option."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.hf_config import architecture_from_hf, architecture_to_hf
from llmshearing.shapes.model_section import complete

LIMIT = 64  # positions
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": LIMIT,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
_YARN = {"rope_type": "yarn", "factor": 4.0}
_THREE = {**GROUPED, "num_hidden_layers": 3}
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_WINDOWS = {**_THREE, "layer_types": _TYPES, "sliding_window": 6}
_LONG = {
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [1.0, 2.0, 5.0],
    },
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
}
_GRANITE = {
    **GROUPED,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.5,
}
_GRANITE_4 = {
    **_GRANITE,
    "num_local_experts": 0,
    "shared_intermediate_size": 56,
    "layer_types": ["attention"] * 2,
    "mamba_n_heads": 4,
}
_GEMMA = {**_WINDOWS, "head_dim": 8, "query_pre_attn_scalar": 12}
_NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # beyond the vocabulary

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama grouped": LlamaConfig(**GROUPED),
    "llama one kv head": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "llama tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama biases": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "llama head_dim": LlamaConfig(**GROUPED, head_dim=12),
    "llama rope base": LlamaConfig(**GROUPED, rope_theta=500000.0),
    "llama rope linear": LlamaConfig(**GROUPED, rope_scaling={"type": "linear", "factor": 2.0}),
    "llama rope dynamic": LlamaConfig(**GROUPED, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "llama rope llama3": LlamaConfig(
        **GROUPED,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama rope yarn": LlamaConfig(**GROUPED, rope_scaling={**_YARN}),
    "llama rope yarn scaled": LlamaConfig(
        **GROUPED,
        rope_scaling={**_YARN, "original_max_position_embeddings": 16, "attention_factor": 1.3},
    ),
    "llama gelu": LlamaConfig(**GROUPED, hidden_act="gelu"),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "mistral window": MistralConfig(**GROUPED, sliding_window=8),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2 tied": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "qwen3 tied, biases": Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True, attention_bias=True),
    "qwen2 windows": Qwen2Config(**_WINDOWS, use_sliding_window=True),
    "qwen3 windows": Qwen3Config(
        **_THREE, head_dim=8, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "smollm3": SmolLM3Config(**_THREE, **_NO_TOKENS, no_rope_layer_interval=2),
    "smollm3 windows": SmolLM3Config(
        **_THREE,
        **_NO_TOKENS,
        no_rope_layers=[0, 1, 1],
        use_sliding_window=True,
        sliding_window=6,
        layer_types=_TYPES,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "olmo2": Olmo2Config(**GROUPED, **_NO_TOKENS),
    "olmo2 biases, linear": Olmo2Config(
        **SIZES, **_NO_TOKENS, attention_bias=True, rope_scaling={"type": "linear", "factor": 2.0}
    ),
    "olmo3": Olmo3Config(**_WINDOWS, **_NO_TOKENS, rope_theta=500000.0),
    "olmo3 yarn": Olmo3Config(
        **_WINDOWS,
        **_NO_TOKENS,
        rope_theta=500000.0,
        rope_scaling={**_YARN, "original_max_position_embeddings": 16},
    ),
    "phi3": Phi3Config(**GROUPED, **_NO_TOKENS, sliding_window=6),
    "phi3 longrope, tied": Phi3Config(**GROUPED, **_NO_TOKENS, **_LONG, tie_word_embeddings=True),
    "granite": GraniteConfig(**_GRANITE, attention_bias=True, mlp_bias=True),
    "granite tied": GraniteConfig(**_GRANITE, tie_word_embeddings=True),
    "granitemoehybrid": GraniteMoeHybridConfig(**_GRANITE_4, position_embedding_type="rope"),
    "granitemoehybrid nope": GraniteMoeHybridConfig(**_GRANITE_4, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**_GEMMA, attn_logit_softcapping=0.5, final_logit_softcapping=3.0),
    "gemma2 untied": Gemma2Config(
        **_GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False
    ),
    "gemma3_text": Gemma3TextConfig(**_GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "gemma3_text untied": Gemma3TextConfig(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=6,
        sliding_window_pattern=2,
        tie_word_embeddings=False,
    ),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_neox serial": GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "gpt_neox full rotary": GPTNeoXConfig(**SIZES, rotary_pct=1.0, rotary_emb_base=25000),
    "gpt_neox tied": GPTNeoXConfig(**SIZES, tie_word_embeddings=True, hidden_act="gelu_new"),
}

# The names of CONFIGS by family: the one list of families that tests go through.
BY_FAMILY: dict[str, list[str]] = {}
for _name, _config in CONFIGS.items():
    BY_FAMILY.setdefault(_config.model_type, []).append(_name)
TWO_A_FAMILY = [name for names in BY_FAMILY.values() for name in names[:2]]


def shares_kv_heads(name: str) -> bool:
    """Whether the model `name` has fewer KV heads than query heads, half as many."""
    return getattr(CONFIGS[name], "num_key_value_heads", None) == GROUPED["num_key_value_heads"]


def make(config: PretrainedConfig) -> PreTrainedModel:
    """A model of `config` in fp32 whose every parameter, norms and biases included, is random.

    Norms multiply by about 1: Gemma's add 1 to their weight.
    """
    own = copy.deepcopy(config)  # saving a model writes its type there
    model = AutoModelForCausalLM.from_config(own, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name and name.endswith("weight")
            one = 0.0 if own.model_type.startswith("gemma") else 1.0
            parameter.normal_(one if is_norm else 0.0, 0.15)
    return model


def save(
    model: PreTrainedModel, folder: Path, safe_serialization: bool = True, max_shard_size: str = "5GB"
) -> Path:
    """Save `model` as an HF folder; with pickled weights as transformers 4 did, and 5 does not any more."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if not safe_serialization:
        _pickle_weights(folder, max_shard_size)
    return folder


def _pickle_weights(folder: Path, max_shard_size: str) -> None:
    weights: dict[str, torch.Tensor] = {}
    for file in folder.glob("model*.safetensors"):
        weights |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    pattern = "pytorch_model{suffix}.bin"
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        torch.save({name: weights[name] for name in names}, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def older(name: str) -> dict[str, Any]:
    """The HF config of the model `name` as transformers 4 spells it, whichever version is installed."""
    return older_config(CONFIGS[name])


def older_config(config: PretrainedConfig) -> dict[str, Any]:
    """An HF config as transformers 4 spells it."""
    held = config.to_dict() | {"transformers_version": None}
    return architecture_to_hf(architecture_from_hf(held), held)


def tokens(length: int, vocab_size: int = SIZES["vocab_size"], rows: int = 2) -> torch.Tensor:
    """Random token ids, [rows, length]."""
    return torch.randint(0, vocab_size, (rows, length))


def plain_model(name: str, l0: L0Config | None = None) -> ComposerMosaicLlama:
    """The model `name` with random weights, and with initial masks where `l0` is given."""
    hf = HFModel("twin", CONFIGS[name].to_dict(), dict(make(CONFIGS[name]).state_dict()), {})
    weights, arch = from_hf(hf)
    model = ComposerMosaicLlama(complete(ModelConfig(l0_module=l0), arch, name))
    model.load_state_dict(weights, strict=l0 is None)
    return model


def masked_model(name: str, l0: L0Config) -> ComposerMosaicLlama:
    """The model `name` with random weights and random masks, of which some gates close in each draw."""
    model = plain_model(name, l0)
    for mask in model.model.l0_module.masks.values():
        torch.nn.init.uniform_(mask.z_loga, -4.6, 4.6)
    return model


def masked_checkpoint(
    path: Path, name: str = "llama grouped", config: str | None = None, **target: int
) -> Path:
    """The checkpoint of a pruning run over the model `name` towards `target`, with random masks.

    Args:
        config: the run's configuration in the record, as YAML.
    """
    model = masked_model(name, L0Config(target_model=TargetConfig(**target)))
    files = {"config.json": json.dumps(CONFIGS[name].to_dict())}
    write_checkpoint(path, model.state_dict(), {"hf_files": files, "config": config})
    return path
