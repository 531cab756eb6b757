"""Random small architectures of every family, and random gates for them."""

import torch
from hypothesis import strategies as st

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import FAMILIES
from llmshearing.shapes.units import KINDS, Gates, drive, rows

VOCABULARY = 48


@st.composite
def architectures(draw) -> Architecture:
    """Small shapes of every family, with every option that the family's HF config has."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    neox = family == "gpt_neox"
    kv_heads = draw(st.integers(1, 4))
    n_heads = kv_heads * (1 if neox else draw(st.sampled_from([1, 2, 3])))
    head_dim = draw(st.sampled_from([4, 8]))
    bias = draw(st.booleans())
    return Architecture(
        d_model=n_heads * head_dim if neox else draw(st.integers(6, 40)),
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        n_layers=draw(st.integers(1, 4)),
        intermediate_size=draw(st.integers(3, 40)),
        vocab_size=VOCABULARY,
        max_seq_len=32,
        family=family,
        qkv_bias=neox or family == "qwen2" or (bias and family in ("llama", "qwen3")),
        out_bias=neox or (bias and family in ("llama", "qwen3")),
        mlp_bias=neox or (family == "llama" and draw(st.booleans())),
        qk_norm=family == "qwen3",
        sliding_window=5 if family == "mistral" and draw(st.booleans()) else None,
        tie_embeddings=draw(st.booleans()),
        parallel_residual=neox and draw(st.booleans()),
        rotary_pct=draw(st.sampled_from([0.5, 1.0])) if neox else 1.0,
        activation="gelu" if neox else "silu",
    )


def random_gates(
    arch: Architecture, kinds: list[str], closed: float, even: bool, generator: torch.Generator
) -> Gates:
    """Gates of `kinds`, of which a part `closed` is 0, and of the rest a third 1 and the others soft.

    With `even` every row closes equally many units, as under a target; some layer always stays. GPT-NeoX
    has no head size of its own, so its heads and hidden dimensions close together.
    """
    by_kind = {}
    for kind in kinds:
        if kind == "kv_head" and arch.fused_qkv:
            continue
        gates = torch.rand(KINDS[kind].shape(arch), generator=generator) * 1.5
        chance = rows(kind, torch.rand(gates.shape, generator=generator), arch)
        if even:
            chance = chance.argsort(-1).argsort(-1) / chance.shape[-1]
        gates[(chance < closed).reshape(gates.shape)] = 0
        if kind == "hidden":
            gates[:4] = gates[:4].clamp(min=0.3)
        if kind in ("layer", "mlp", "head_layer"):
            gates[-1] = gates[-1].clamp(min=0.2)
        by_kind[kind] = gates.clamp(max=1)
    gates = drive(by_kind)
    if arch.family == "gpt_neox":
        _close_together(gates, arch)
    return gates


def _close_together(gates, arch):
    kept = max(1, arch.n_heads - 1)
    for name, size in (("head", kept), ("hidden", kept * arch.head_dim)):
        values = gates.get(name, torch.ones(KINDS[name].shape(arch))).clamp(min=0.1)
        values[..., size:] = 0
        gates[name] = values
