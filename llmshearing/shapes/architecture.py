"""The shape of a decoder, as every other file of the package sees it."""

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


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a decoder's parameters and its function.

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
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1.")
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers is {self.n_layers}; expected at most {MAX_LAYERS}.")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} is {value!r}; expected a number above 0.")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads} and n_kv_heads is {self.n_kv_heads}; expected n_heads to be a "
                f"multiple of n_kv_heads, since each KV head serves the same number of query heads."
            )

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

    def resized(self, **sizes: Any) -> "Architecture":
        """The same family with other sizes."""
        return replace(self, **sizes)
