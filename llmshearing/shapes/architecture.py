"""The shape of a decoder, as every other file of the package sees it."""

import math
from dataclasses import dataclass, replace
from typing import Any

_COUNTS = (
    "d_model",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "n_layers",
    "intermediate_size",
    "vocab_size",
    "max_seq_len",
)


MAX_LAYERS = 10_000  # more means a broken or hostile file, and would be built layer by layer
_LARGEST = 2**63  # which no size of a tensor reaches
_BY_LAYER = ("window_layers", "rope_layers")
_GEMMA = ("gemma2", "gemma3_text")
_OLMO = ("olmo2", "olmo3")


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a decoder's parameters and its function.

    Attributes:
        sliding_window: tokens that a position sees in layers with a window; None: no layer has one.
        window_layers: which layers have the window, one truth value a layer; None: all.
        rope_layers: which layers rotate q and k, one truth value a layer; None: all.
        local_rope_theta: base of the rotation, then without scaling, in layers with a window; None: they
            rotate as the others do.
        attention_multiplier: what scores are multiplied by; None: 1 / sqrt(head_dim).
        embedding_multiplier: what the embedding is multiplied by.
        residual_multiplier: what attention and MLP are multiplied by before they are added.
        logits_scaling: what logits are divided by.
        attention_softcap, logits_softcap: c of c tanh(x / c) over scores and logits; None: no cap.

    Raises:
        ValueError: when the sizes contradict each other.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_layers: int
    intermediate_size: int
    vocab_size: int
    max_seq_len: int
    family: str = "llama"
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rotary_pct: float = 1.0
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] | None = None
    rope_layers: tuple[bool, ...] | None = None
    local_rope_theta: float | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    parallel_residual: bool = False
    activation: str = "silu"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value < _LARGEST:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1, below 2**63.")
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers is {self.n_layers}; expected at most {MAX_LAYERS}.")
        positive = ("norm_eps", "rope_theta", "logits_scaling")
        optional = ("local_rope_theta", "attention_multiplier", "attention_softcap", "logits_softcap")
        for name in (*positive, *(name for name in optional if getattr(self, name) is not None)):
            value = getattr(self, name)
            if not _is_finite(value) or not value > 0:
                raise ValueError(f"{name} is {value!r}; expected a number above 0.")
        for name in ("rotary_pct", "embedding_multiplier", "residual_multiplier"):
            if not _is_finite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a finite number.")
        if not isinstance(self.activation, str):
            raise ValueError(f"activation is {self.activation!r}; expected its name, such as silu.")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads} and n_kv_heads is {self.n_kv_heads}; expected n_heads to be a "
                f"multiple of n_kv_heads, since each KV head serves the same number of query heads."
            )
        self._settle_layers()

    def _settle_layers(self) -> None:
        """Check what differs by layer, and give every function one form: None where nothing is special."""
        for name in _BY_LAYER:
            facts = getattr(self, name)
            if facts is not None and len(facts) != self.n_layers:
                raise ValueError(
                    f"{name} has {len(facts)} values and n_layers is {self.n_layers}; expected one a layer."
                )
            settled = None if facts is None or all(facts) else tuple(map(bool, facts))
            object.__setattr__(self, name, settled)
        if self.sliding_window is None or (self.window_layers and not any(self.window_layers)):
            for name in ("sliding_window", "window_layers", "local_rope_theta"):
                object.__setattr__(self, name, None)
        if self.attention_multiplier == self.head_dim**-0.5:
            object.__setattr__(self, "attention_multiplier", None)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def layer_norms(self) -> bool:
        """Whether norms are LayerNorms with bias (GPT-NeoX) rather than RMSNorms."""
        return self.family == "gpt_neox"

    @property
    def fused_qkv(self) -> bool:
        """Whether q, k and v are one matrix, interleaved by head (GPT-NeoX)."""
        return self.family == "gpt_neox"

    @property
    def mlp_matrices(self) -> int:
        """Weight matrices of one MLP: 3 when gated (gate, up, down), else 2 (up, down)."""
        return 2 if self.family == "gpt_neox" else 3

    @property
    def pre_norms(self) -> bool:
        """Whether attention and MLP read the residual stream through a norm (all but OLMo)."""
        return self.family not in _OLMO

    @property
    def post_norms(self) -> bool:
        """Whether a norm follows attention and MLP before they are added (OLMo, Gemma)."""
        return self.family in _OLMO + _GEMMA

    @property
    def norm_offset(self) -> float:
        """What norms add to their weight: 1 in Gemma."""
        return 1.0 if self.family in _GEMMA else 0.0

    @property
    def qk_norm_over_heads(self) -> bool:
        """Whether norms of q and k are over all heads together (OLMo) rather than over each head."""
        return self.family in _OLMO

    @property
    def embedding_scale(self) -> float:
        """What the embedding is multiplied by; in Gemma the square root of the hidden size."""
        return self.d_model**0.5 if self.family in _GEMMA else self.embedding_multiplier

    @property
    def width_fixes_heads(self) -> bool:
        """Whether heads have no size of their own in the HF config: d_model / n_heads must stay head_dim."""
        longrope = self.rope_scaling is not None and self.rope_scaling["rope_type"] == "longrope"
        return self.family in ("gpt_neox", "granitemoehybrid") or (self.family == "phi3" and longrope)

    @property
    def differs_by_layer(self) -> bool:
        """Whether layers differ in more than their weights."""
        return any(getattr(self, name) is not None for name in _BY_LAYER)

    def window(self, layer: int) -> int | None:
        """Tokens that a position of this layer sees; None: all before it."""
        return self.sliding_window if self.window_layers is None or self.window_layers[layer] else None

    def rotates(self, layer: int) -> bool:
        """Whether this layer rotates q and k."""
        return self.rope_layers is None or self.rope_layers[layer]

    def rotates_locally(self, layer: int) -> bool:
        """Whether this layer's rotation is that of layers with a window."""
        return self.local_rope_theta is not None and self.window(layer) is not None

    def of_layers(self, layers: list[int]) -> "Architecture":
        """The same with these layers alone, each with its own window and rotation."""
        facts = {name: getattr(self, name) for name in _BY_LAYER}
        kept = {name: tuple(fact[i] for i in layers) for name, fact in facts.items() if fact is not None}
        return replace(self, n_layers=len(layers), **kept)

    def resized(self, **sizes: Any) -> "Architecture":
        """The same family with other sizes; where layers differ, with the first ones, or alike if more."""
        n_layers = sizes.get("n_layers", self.n_layers)
        if not self.differs_by_layer:
            return replace(self, **sizes)
        if n_layers > self.n_layers:
            return replace(self, **dict.fromkeys(_BY_LAYER), **sizes)
        return replace(self.of_layers(list(range(n_layers))), **sizes)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf
