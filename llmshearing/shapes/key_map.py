"""Names of weights: one table HF -> Composer for each naming scheme, the inverse derived from it; GGUF -> HF.

Names are without `.weight` and `.bias`; `{}` is the layer; ours are below `model.transformer.`. Where a
family keeps several weights of ours in one, one on top of the other, the table names them all.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import weight_table

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
_BLOCK = "model.layers.{}"
_POST_NORMS = {  # OLMo's
    f"{_BLOCK}.post_attention_layernorm": "blocks.{}.attn.post_norm",
    f"{_BLOCK}.post_feedforward_layernorm": "blocks.{}.mlp.post_norm",
}
_FOUR_NORMS = {**_POST_NORMS, f"{_BLOCK}.pre_feedforward_layernorm": "blocks.{}.ln_2"}  # Gemma's
_QKV = "blocks.{}.attn.wq", "blocks.{}.attn.wk", "blocks.{}.attn.wv"
_GATE_UP = "blocks.{}.mlp.gate_proj", "blocks.{}.mlp.up_proj"
_PHI = {f"{_BLOCK}.self_attn.qkv_proj": _QKV, f"{_BLOCK}.mlp.gate_up_proj": _GATE_UP}
_GRANITE_4 = {
    f"{_BLOCK}.shared_mlp.input_linear": _GATE_UP,
    f"{_BLOCK}.shared_mlp.output_linear": "blocks.{}.mlp.down_proj",
}
_Table = Mapping[str, str | tuple[str, ...]]


def _changed(changes: _Table) -> _Table:
    """LLaMA's names but for `changes`, which take the place of the rows that lead to the same weights."""
    taken = {ours for row in changes.values() for ours in ([row] if isinstance(row, str) else row)}
    return {theirs: ours for theirs, ours in _LLAMA.items() if ours not in taken} | {**changes}


_OF_FAMILY: dict[str, _Table] = {  # every other family has LLaMA's names
    "gpt_neox": _GPT_NEOX,
    "olmo2": _changed(_POST_NORMS),
    "olmo3": _changed(_POST_NORMS),
    "gemma2": _changed(_FOUR_NORMS),
    "gemma3_text": _changed(_FOUR_NORMS),
    "phi3": _changed(_PHI),
    "granitemoehybrid": _changed(_GRANITE_4),
}
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


def to_composer(hf_name: str, family: str) -> tuple[str, ...]:
    """Our names of the weights that an HF weight of `family` holds, from its first rows to its last.

    Raises:
        ValueError: for a name that is not in the table.
    """
    table = {**_OF_FAMILY.get(family, _LLAMA), **_NEWER.get(family, {})}
    names = _look_up(hf_name, table, f"HF models of family {family}")
    return tuple(PREFIX + name for name in names)


def renamed_to_composer(weights: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """HF weights by our names; the parts of one that holds several share its memory.

    Raises:
        ValueError: for a name that is not in the table, or one of several weights with too few or many rows.
    """
    table, found = weight_table(arch), {}
    for hf_name, weight in weights.items():
        names = to_composer(hf_name, arch.family)
        if len(names) == 1:
            found[names[0]] = weight
            continue
        sizes = [table[_part(name)].rows.size for name in names]
        if not weight.dim() or len(weight) != sum(sizes):
            raise ValueError(
                f"{hf_name} has shape {list(weight.shape)}; expected {' + '.join(map(str, sizes))} rows, of "
                f"{', '.join(map(_part, names))}."
            )
        found |= dict(zip(names, weight.split(sizes), strict=True))
    return found


def to_hf(name: str, family: str) -> str:
    """The HF name, in `family`, of one of our weights; LLaMA's where the family keeps several in one.

    Raises:
        ValueError: for a name that is not in the table.
    """
    table = {**_LLAMA, **_OF_FAMILY.get(family, _LLAMA)}
    inverse = {ours: theirs for theirs, ours in table.items() if isinstance(ours, str)}
    return _look_up(name.removeprefix(PREFIX), inverse, f"our {family} models")[0]


def renamed_to_hf(weights: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Our weights by the HF names of their family; weights that it keeps in one are put together.

    Raises:
        ValueError: for a name that is not in the table, or a part that is missing.
    """
    inverse = {
        ours: (theirs, row)
        for theirs, row in _OF_FAMILY.get(arch.family, _LLAMA).items()
        for ours in ([row] if isinstance(row, str) else row)
    }
    parts: dict[str, list[Tensor | None]] = {}
    for name, weight in weights.items():
        module, layer, parameter = _split(name.removeprefix(PREFIX))
        if module not in inverse or parameter not in _PARAMETERS:
            raise ValueError(_strange(name, f"our {arch.family} models"))
        theirs, row = inverse[module]
        row = [row] if isinstance(row, str) else row
        hf_name = f"{_join(theirs, layer)}.{parameter}"
        parts.setdefault(hf_name, [None] * len(row))[row.index(module)] = weight
    result = {}
    for hf_name, held in parts.items():
        whole = [part for part in held if part is not None]
        if len(whole) < len(held):
            raise ValueError(f"The checkpoint lacks {len(held) - len(whole)} of the parts of {hf_name}.")
        result[hf_name] = whole[0] if len(held) == 1 else torch.cat(whole)
    return result


def gguf_to_hf(name: str, family: str) -> str:
    """The HF name, in `family`, of a tensor of a GGUF file.

    Raises:
        ValueError: for a name that is not in the table.
    """
    table = _GGUF_NEOX if family == "gpt_neox" else _GGUF_LLAMA
    return _look_up(name, table, f"GGUF files of family {family}")[0]


_PARAMETERS = ("weight", "bias")


def _look_up(name: str, table: _Table, where: str) -> list[str]:
    module, layer, parameter = _split(name)
    if module not in table or parameter not in _PARAMETERS:
        raise ValueError(_strange(name, where))
    row = table[module]
    return [f"{_join(ours, layer)}.{parameter}" for ours in ([row] if isinstance(row, str) else row)]


def _split(name: str) -> tuple[str, str | None, str]:
    """A name's module with `{}` for the layer, the layer and the parameter."""
    module, _, parameter = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    if layer is None:
        return module, None, parameter
    return module.replace(layer[0], ".{}.", 1), layer[1], parameter


def _join(pattern: str, layer: str | None) -> str:
    return pattern.format(*([] if layer is None else [layer]))


def _strange(name: str, where: str) -> str:
    return f"The checkpoint has a tensor {name}, which {where} do not have."


def _part(name: str) -> str:
    """The row of the table of units that one of our weights is."""
    return re.sub(r"^blocks\.\d+\.", "", name.removeprefix(PREFIX)).rpartition(".")[0]
