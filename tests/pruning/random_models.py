"""Random small architectures of every family, and random gates for them."""

import torch
from hypothesis import strategies as st

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import FAMILIES
from llmshearing.shapes.units import KINDS, Gates, drive, rows

VOCABULARY = 48


_WITH_BIAS = ("llama", "qwen3", "smollm3", "olmo2", "olmo3", "granite", "granitemoehybrid", "gemma2")
_WITH_MLP_BIAS = ("llama", "smollm3", "granite")
_WINDOWED = ("qwen2", "qwen3", "smollm3", "olmo3", "gemma2", "gemma3_text")


@st.composite
def architectures(draw, family: str | None = None) -> Architecture:
    """Small shapes of every family, or of one, with every option that the family's HF config has."""
    family = family or draw(st.sampled_from(sorted(FAMILIES)))
    neox, gemma, granite = family == "gpt_neox", family.startswith("gemma"), family.startswith("granite")
    kv_heads = draw(st.integers(1, 4))
    n_heads = kv_heads * (1 if neox else draw(st.sampled_from([1, 2, 3])))
    head_dim = draw(st.sampled_from([4, 8]))
    n_layers = draw(st.integers(1, 4))
    bias = draw(st.booleans())
    long = family == "phi3" and draw(st.booleans())
    fixed = neox or long or family == "granitemoehybrid"  # see width_fixes_heads
    windowed = family in _WINDOWED and draw(st.booleans())
    by_layer = st.lists(st.booleans(), min_size=n_layers, max_size=n_layers).map(tuple)
    rope_theta = draw(st.sampled_from([10000.0, 500.0]))
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5][: head_dim // 2], "long_factor": [2.0] * (head_dim // 2)}
    return Architecture(
        d_model=n_heads * head_dim if fixed else draw(st.integers(6, 40)),
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        n_layers=n_layers,
        intermediate_size=draw(st.integers(3, 40)),
        vocab_size=VOCABULARY,
        max_seq_len=32,
        family=family,
        qkv_bias=neox or family == "qwen2" or (bias and family in _WITH_BIAS),
        out_bias=neox or (bias and family in _WITH_BIAS),
        mlp_bias=neox or (family in _WITH_MLP_BIAS and draw(st.booleans())),
        qk_norm=family in ("qwen3", "olmo2", "olmo3", "gemma3_text"),
        rope_theta=rope_theta,
        rope_scaling={"rope_type": "longrope", "original_max_position_embeddings": 12, **factors}
        if long
        else None,
        sliding_window=5 if windowed or (family in ("mistral", "phi3") and draw(st.booleans())) else None,
        window_layers=draw(by_layer) if windowed else None,
        rope_layers=draw(by_layer)
        if family == "smollm3"
        else (bias,) * n_layers
        if family == "granitemoehybrid"
        else None,
        local_rope_theta={"gemma3_text": 700.0, "olmo3": rope_theta}.get(family) if windowed else None,
        tie_embeddings=draw(st.booleans()),
        parallel_residual=neox and draw(st.booleans()),
        rotary_pct=draw(st.sampled_from([0.5, 1.0])) if neox or (family == "phi3" and not long) else 1.0,
        activation="gelu" if neox else "gelu_pytorch_tanh" if gemma else "silu",
        attention_multiplier=draw(st.sampled_from([5**-0.5, 12**-0.5])) if gemma or granite else None,
        embedding_multiplier=3.0 if granite else 1.0,
        residual_multiplier=0.5 if granite else 1.0,
        logits_scaling=2.0 if granite else 1.0,
        attention_softcap=1.0 if family == "gemma2" and draw(st.booleans()) else None,
        logits_softcap=3.0 if gemma and draw(st.booleans()) else None,
    )


def random_gates(
    arch: Architecture, kinds: list[str], closed: float, even: bool, generator: torch.Generator
) -> Gates:
    """Gates of `kinds`, of which a part `closed` is 0, and of the rest a third 1 and the others soft.

    With `even` every row closes equally many units, as under a target; some layer always stays.
    """
    by_kind = {}
    for kind in kinds:
        if kind == "kv_head" and arch.width_fixes_heads:
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
    if arch.width_fixes_heads:
        _close_together(gates, arch)
    return gates


def _close_together(gates, arch):
    kept = max(arch.group_size, arch.n_heads - arch.group_size)
    for name, size in (("head", kept), ("hidden", kept * arch.head_dim)):
        values = gates.get(name, torch.ones(KINDS[name].shape(arch))).clamp(min=0.1)
        values[..., size:] = 0
        gates[name] = values
