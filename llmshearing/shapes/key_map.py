"""Names of weights: one table HF -> Composer for each naming scheme, the inverse derived from it; GGUF -> HF.

Names are without `.weight` and `.bias`; `{}` is the layer; ours are below `model.transformer.`.
"""

import re
from collections.abc import Mapping

PREFIX = "model.transformer."

_LLAMA = {
    "model.embed_tokens": "wte",
    "model.layers.{}.input_layernorm": "blocks.{}.ln_1",
    "model.layers.{}.self_attn.q_proj": "blocks.{}.attn.wq",
    "model.layers.{}.self_attn.k_proj": "blocks.{}.attn.wk",
    "model.layers.{}.self_attn.v_proj": "blocks.{}.attn.wv",
    "model.layers.{}.self_attn.q_norm": "blocks.{}.attn.q_norm",
    "model.layers.{}.self_attn.k_norm": "blocks.{}.attn.k_norm",
    "model.layers.{}.self_attn.o_proj": "blocks.{}.attn.out_proj",
    "model.layers.{}.post_attention_layernorm": "blocks.{}.ln_2",
    "model.layers.{}.mlp.gate_proj": "blocks.{}.mlp.gate_proj",
    "model.layers.{}.mlp.up_proj": "blocks.{}.mlp.up_proj",
    "model.layers.{}.mlp.down_proj": "blocks.{}.mlp.down_proj",
    "model.norm": "ln_f",
    "lm_head": "output",
}
_GPT_NEOX = {
    "gpt_neox.embed_in": "wte",
    "gpt_neox.layers.{}.input_layernorm": "blocks.{}.ln_1",
    "gpt_neox.layers.{}.attention.query_key_value": "blocks.{}.attn.query_key_value",
    "gpt_neox.layers.{}.attention.dense": "blocks.{}.attn.out_proj",
    "gpt_neox.layers.{}.post_attention_layernorm": "blocks.{}.ln_2",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h": "blocks.{}.mlp.up_proj",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": "blocks.{}.mlp.down_proj",
    "gpt_neox.final_layer_norm": "ln_f",
    "embed_out": "output",
}
_OF_FAMILY = {"gpt_neox": _GPT_NEOX}  # every other family has LLaMA's names
_NEWER = {"gpt_neox": {"lm_head": "output"}}  # of transformers 5, read; the older one is written
_GGUF_LLAMA = {
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "blk.{}.attn_norm": "gpt_neox.layers.{}.input_layernorm",
    "blk.{}.attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
    "blk.{}.attn_output": "gpt_neox.layers.{}.attention.dense",
    "blk.{}.ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blk.{}.ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$|\.attention\.(bias|masked_bias)$")


def is_weight(hf_name: str) -> bool:
    """Whether an HF tensor is a weight: old checkpoints also hold rotary tables and causal masks."""
    return not _NOT_WEIGHTS.search(hf_name)


def to_composer(hf_name: str, family: str) -> str:
    """Our name of an HF weight of `family`.

    Raises:
        ValueError: for a name that is not in the table.
    """
    table = _OF_FAMILY.get(family, _LLAMA) | _NEWER.get(family, {})
    return PREFIX + _look_up(hf_name, table, f"HF models of family {family}")


def to_hf(name: str, family: str) -> str:
    """The HF name, in `family`, of one of our weights.

    Raises:
        ValueError: for a name that is not in the table.
    """
    inverse = {ours: theirs for theirs, ours in _OF_FAMILY.get(family, _LLAMA).items()}
    return _look_up(name.removeprefix(PREFIX), inverse, f"our {family} models")


def gguf_to_hf(name: str, family: str) -> str:
    """The HF name, in `family`, of a tensor of a GGUF file.

    Raises:
        ValueError: for a name that is not in the table.
    """
    table = _GGUF_NEOX if family == "gpt_neox" else _GGUF_LLAMA
    return _look_up(name, table, f"GGUF files of family {family}")


def _look_up(name: str, table: Mapping[str, str], where: str) -> str:
    module, _, parameter = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    pattern = module if layer is None else module.replace(layer[0], ".{}.", 1)
    if pattern not in table or parameter not in ("weight", "bias"):
        raise ValueError(f"The checkpoint has a tensor {name}, which {where} do not have.")
    found = table[pattern].format(*([] if layer is None else [layer[1]]))
    return f"{found}.{parameter}"
