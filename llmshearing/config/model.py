"""The section `model`: the source, its sizes, and the method by which a run prunes it."""

from dataclasses import dataclass
from typing import Any

from llmshearing.config.key import FREE, NOTED, key
from llmshearing.config.strict import build

SCHEMES = ("max_gap", "input", "output", "middle", "both", "importance")  # of LayerCHOP
_DURATIONS = ("ba", "tok", "sp", "ep", "dur")


@dataclass
class TargetConfig:
    """The shape to prune to; a size left out stays that of the source."""

    d_model: int | None = key(None, "Hidden size.")
    n_heads: int | None = key(None, "Query heads of each layer.")
    n_kv_heads: int | None = key(
        None,
        "KV heads of each layer; default: `n_heads` with multi-head attention, else those of the source.",
    )
    n_layers: int | None = key(None, "Decoder layers.")
    intermediate_size: int | None = key(None, "Width of each MLP.")
    vocab_size: int | None = key(
        None,
        "Accepted for original files; a vocabulary is not pruned, so it must equal the source's.",
    )


@dataclass
class L0Config:
    """Masks and the constraint that drives them to the target."""

    start_sparsity: float = key(0.0, "Sparsity at which every target starts.", least=0, below=1)
    target_sparsity: float = key(
        0.0, "Overall sparsity to reach where no `target_model` is given.", least=0, below=1
    )
    pruning_modules: list[str] | None = key(
        None,
        "Masks: head, kv_head, head_layer, intermediate, mlp, layer, hidden; default: those of the target.",
    )
    constraint: str = key(
        "lagrangian",
        "`lagrangian`: multipliers push expected sparsities to their targets (released code); `projection`: "
        "after every step each row's log-alphas are shifted until its expected sparsity is the target.",
        choices=("lagrangian", "projection"),
    )
    lagrangian_warmup_steps: str = key(
        "0ba",
        "How long targets rise from `start_sparsity`, such as 640ba.",
        units=_DURATIONS,
        bare=True,
    )
    eval_target_model: bool = key(
        True, "Evaluate with the target's shape; false: with as many units as the masks expect to keep now."
    )
    target_model: TargetConfig | None = key(
        None, "The shape to prune to; null: prune to `target_sparsity` of the whole model."
    )
    init: str | None = key(
        None,
        "File of scores that `llmshearing oneshot` wrote with `--scores`: masks start in their order; "
        "null: all alike.",
        resume=FREE,
    )
    noise: str = key(
        "per_rank",
        "`per_rank`: each rank and microbatch draws its own masks; `shared`: all use the same of a step.",
        choices=("per_rank", "shared"),
    )


@dataclass
class LayerChopConfig:
    """Whole layers to remove, at once or one after another (Just CHOP, arXiv 2305.14864)."""

    n_layers: int | None = key(None, "Layers that stay; default: as many as `keep` lists.")
    scheme: str | None = key(
        None,
        "Where layers are removed; default: max_gap. `importance`: those that change their input least.",
        choices=SCHEMES,
    )
    keep: list[int] | None = key(
        None, "The layers that stay, counted from 0, instead of a `scheme`.", distinct=True
    )
    scores: str | None = key(
        None,
        "For `importance`: file of scores that `llmshearing oneshot` wrote with `--scores`.",
        resume=FREE,
    )
    warm_steps: str = key("500ba", "Training before the first layer goes.", units=_DURATIONS, bare=True)
    layers_per_cut: int | None = key(None, "Layers that go at once; default: all.", least=1)
    interval: str = key("1ba", "Training between two cuts.", units=_DURATIONS, bare=True)
    order: str = key(
        "ascending",
        "Which layers go first: `ascending` and `descending` by their number, `importance`: the least "
        "important.",
        choices=("ascending", "descending", "importance"),
    )


@dataclass
class DimChopConfig:
    """Dimensions to remove by their scores while training (Just CHOP's DimCHOP, with PLATON's scores)."""

    tied: bool = key(
        True,
        "True: remove heads, MLP width and hidden dimensions down to `target_model`; false: zero columns of "
        "each matrix, which may come back, and keep the shape.",
    )
    target_model: TargetConfig | None = key(None, "The shape to prune to, with `tied`; the depth stays.")
    sparsity: float | None = key(
        None, "Part of the columns of each matrix to zero, without `tied`.", above=0, below=1
    )
    schedule: str = key(
        "cubic",
        "How the number of open dimensions falls: `cubic` as PLATON's, or `exponential`.",
        choices=("cubic", "exponential"),
    )
    warm_steps: str = key(
        "0.1dur", "Training before the first dimension closes.", units=_DURATIONS, bare=True, resume=NOTED
    )
    final_steps: str = key(
        "0.3dur",
        "Training at the end with the final choice.",
        units=_DURATIONS,
        bare=True,
        resume=NOTED,
    )
    window: int = key(10, "Steps between two choices; sensitivities are averaged over them.", least=1)
    sensitivity_beta: float = key(
        0.85, "Smoothing of the sensitivity, from window to window.", least=0, below=1
    )
    uncertainty_beta: float = key(0.95, "Smoothing of its uncertainty.", least=0, below=1)


@dataclass
class MaskLLMConfig:
    """N:M masks on single weights of the blocks' linear layers (MaskLLM): learned, or fixed."""

    pattern: str = key("2:4", "N:M: N of every M neighbouring weights of a row stay.")
    prior: str | None = key(
        None,
        "Masks to start from: a file of `llmshearing oneshot` or `prune`, or `magnitude`; null: none.",
        resume=NOTED,
    )
    prior_strength: float = key(3.0, "How strongly the logits lean to the prior at the start.", least=0)
    temperature: list[float] = key(
        lambda: [4.0, 0.05], "Temperature of the choice at the first and the last step.", above=0, length=2
    )
    scale: list[float] = key(
        lambda: [100.0, 500.0], "Factor of the logits at the first and the last step.", above=0, length=2
    )
    weight_reg: float = key(
        1e-5, "Weight of the squared norm of the masked weights, which learning raises.", least=0
    )
    hard: bool = key(False, "Compute with the likeliest mask in training, with the soft one's gradient.")
    noise: str = key(
        "per_rank",
        "`per_rank`: each rank and microbatch draws its own masks; `shared`: all use the same of a step.",
        choices=("per_rank", "shared"),
    )
    fixed: bool = key(
        False,
        "Train the weights that stay under the masks of `prior`, which stay as they are.",
    )


@dataclass
class ModelConfig:
    """The model. Sizes left out are read from the checkpoint at `path`."""

    name: str = key(
        "mosaic_llama",
        "Registry name: any that begins with mosaic_llama, such as mosaic_llama2_7b, or with mosaic_pythia.",
    )
    path: str | None = key(
        None,
        "Weights to start from: a Composer checkpoint or state dict, or an HF folder; null: random weights.",
        resume=FREE,
    )
    init_device: str = key(
        "cpu",
        "Device on which parameters are created; a run chooses it itself.",
        choices=("cpu", "meta", "mixed"),
        resume=FREE,
    )
    family: str | None = key(
        None,
        "Architecture family, where no checkpoint gives it: the model_type of its HF config, such as llama; "
        "docs/models.md lists all.",
    )
    d_model: int | None = key(None, "Hidden size.")
    n_heads: int | None = key(None, "Query heads.")
    n_kv_heads: int | None = key(None, "KV heads; default: `n_heads`.")
    head_dim: int | None = key(None, "Size of one head; default: d_model / n_heads.")
    n_layers: int | None = key(None, "Decoder layers.")
    intermediate_size: int | None = key(None, "Width of each MLP.")
    vocab_size: int | None = key(None, "Rows of the embedding.")
    max_seq_len: int | None = key(None, "Positions the model is trained for, in tokens.")
    rms_norm_eps: float | None = key(None, "Epsilon of the norms.")
    layer_norm_eps: float | None = key(None, "Epsilon of the norms, by Pythia's name.")
    rope_theta: float | None = key(None, "Base of the rotary embedding.")
    rope_scaling: dict[str, Any] | None = key(
        None, "Rotary scaling as in an HF config: rope_type and its parameters."
    )
    rotary_pct: float | None = key(None, "Part of a head that rotates (Pythia, Phi-4-mini).")
    sliding_window: int | None = key(None, "Tokens a position can look back; null: all.")
    window_layers: list[bool] | None = key(
        None, "Which layers look back `sliding_window` tokens only, one truth value a layer; null: all."
    )
    rope_layers: list[bool] | None = key(
        None, "Which layers rotate q and k, one truth value a layer (SmolLM3); null: all."
    )
    local_rope_theta: float | None = key(
        None, "Base of the rotary embedding in layers with a window, where it is another (Gemma 3)."
    )
    attention_multiplier: float | None = key(
        None, "What attention scores are multiplied by (Granite, Gemma); null: 1 / sqrt(head_dim)."
    )
    embedding_multiplier: float | None = key(
        None, "What the embedding is multiplied by (Granite).", resume=FREE
    )
    residual_multiplier: float | None = key(
        None, "What attention and MLP are multiplied by before they are added (Granite).", resume=FREE
    )
    logits_scaling: float | None = key(None, "What logits are divided by (Granite).", resume=FREE)
    attention_softcap: float | None = key(None, "Soft cap of attention scores (Gemma 2); null: none.")
    logits_softcap: float | None = key(None, "Soft cap of logits (Gemma 2); null: none.")
    qkv_bias: bool | None = key(None, "Whether the q, k and v projections have biases.")
    out_bias: bool | None = key(None, "Whether the attention output projection has a bias.")
    mlp_bias: bool | None = key(None, "Whether the MLP projections have biases.")
    qk_norm: bool | None = key(None, "Whether q and k are normalised (Qwen3, OLMo, Gemma 3).")
    tie_embeddings: bool | None = key(None, "Whether the output projection is the embedding.")
    activation: str | None = key(
        None, "Activation of the MLP by its HF name; default: silu, or gelu for gpt_neox."
    )
    use_parallel_residual: bool | None = key(None, "Whether attention and MLP read the same input (Pythia).")
    init_std: float = key(0.02, "Standard deviation of random initial weights.", least=0)
    attn_pdrop: float = key(0.0, "Must be 0: the published recipe has no dropout.")
    resid_pdrop: float = key(0.0, "Must be 0: the published recipe has no dropout.")
    emb_pdrop: float = key(0.0, "Must be 0: the published recipe has no dropout.")
    attn_impl: str = key(
        "sdpa", "Attention: sdpa, flash or eager; flash needs the package flash-attn.", resume=FREE
    )
    execute: str = key(
        "open",
        "While pruning, `open`: leave units out of the computation whose gate is 0, with the same losses and "
        "gradients to rounding; `all`: compute with every unit.",
        choices=("open", "all"),
        resume=FREE,
    )
    loss_chunk_tokens: int | None = key(
        None,
        "Tokens whose logits exist at once in training; default: about 64 MiB of logits.",
        least=1,
        resume=FREE,
    )
    set_names: list[str] | None = key(
        None, "Domains whose losses the model reports; default: those of `callbacks.data_loading`."
    )
    l0_module: L0Config | None = key(
        None, "Masks to learn; without any method the model is trained as it is."
    )
    layerchop: LayerChopConfig | None = key(None, "Whole layers to remove.")
    dimchop: DimChopConfig | None = key(None, "Dimensions to remove by their scores.")
    maskllm: MaskLLMConfig | None = key(
        None, "N:M masks on single weights, to learn or to keep while training; null: none."
    )


def as_model_config(cfg: Any) -> ModelConfig:
    """`cfg` as a `ModelConfig`: itself, or built from a mapping or DictConfig."""
    return cfg if isinstance(cfg, ModelConfig) else build(ModelConfig, cfg, source="model")
