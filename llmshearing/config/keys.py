"""The typed schema of a run's YAML file.

The line under each field documents it; `docs/configuration.md` is made from them.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from llmshearing.config.loader import LoaderConfig
from llmshearing.config.strict import build


@dataclass
class TargetConfig:
    """The shape to prune to; a size left out stays that of the source."""

    d_model: int | None = None
    """Hidden size."""
    n_heads: int | None = None
    """Query heads of each layer."""
    n_kv_heads: int | None = None
    """KV heads of each layer; default: `n_heads` with multi-head attention, else those of the source."""
    n_layers: int | None = None
    """Decoder layers."""
    intermediate_size: int | None = None
    """Width of each MLP."""
    vocab_size: int | None = None
    """Accepted for original files; a vocabulary is not pruned, so it must equal the source's."""


@dataclass
class L0Config:
    """Masks and the constraint that drives them to the target."""

    start_sparsity: float = 0.0
    """Sparsity at which every target starts, in [0, 1)."""
    target_sparsity: float = 0.0
    """Overall sparsity to reach where no `target_model` is given, in [0, 1)."""
    pruning_modules: list[str] | None = None
    """Masks: head, kv_head, head_layer, intermediate, mlp, layer, hidden; default: those of the target."""
    lagrangian_warmup_steps: str = "0ba"
    """Batches over which targets rise from `start_sparsity`, such as 640ba."""
    eval_target_model: bool = True
    """Evaluate with the target's shape; false: with as many units as the masks expect to keep now."""
    target_model: TargetConfig | None = None
    """The shape to prune to; null: prune to `target_sparsity` of the whole model."""
    noise: str = "per_rank"
    """`per_rank`: each rank and microbatch draws its own masks; `shared`: all use the same of a step."""


@dataclass
class ModelConfig:
    """The model. Sizes left out are read from the checkpoint at `path`."""

    name: str = "mosaic_llama"
    """Registry name: any that begins with mosaic_llama, such as mosaic_llama2_7b, or with mosaic_pythia."""
    path: str | None = None
    """Weights to start from: a Composer checkpoint or state dict, or an HF folder; null: random weights."""
    init_device: str = "cpu"
    """cpu | meta: where a model has its parameters at first; a run decides that itself."""
    family: str | None = None
    """Architecture family when there is no checkpoint to tell: llama, mistral, qwen2, qwen3, gpt_neox."""
    d_model: int | None = None
    """Hidden size."""
    n_heads: int | None = None
    """Query heads."""
    n_kv_heads: int | None = None
    """KV heads; default: `n_heads`."""
    head_dim: int | None = None
    """Size of one head; default: d_model / n_heads."""
    n_layers: int | None = None
    """Decoder layers."""
    intermediate_size: int | None = None
    """Width of each MLP."""
    vocab_size: int | None = None
    """Rows of the embedding."""
    max_seq_len: int | None = None
    """Positions the model is trained for, in tokens."""
    rms_norm_eps: float | None = None
    """Epsilon of the norms."""
    layer_norm_eps: float | None = None
    """Epsilon of the norms, by Pythia's name."""
    rope_theta: float | None = None
    """Base of the rotary embedding."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as in an HF config: rope_type and its parameters."""
    rotary_pct: float | None = None
    """Part of a head that rotates (Pythia)."""
    sliding_window: int | None = None
    """Tokens a position can look back; null: all."""
    qkv_bias: bool | None = None
    """Whether the q, k and v projections have biases."""
    out_bias: bool | None = None
    """Whether the attention output projection has a bias."""
    mlp_bias: bool | None = None
    """Whether the MLP projections have biases."""
    qk_norm: bool | None = None
    """Whether q and k are normalised by head (Qwen3)."""
    tie_embeddings: bool | None = None
    """Whether the output projection is the embedding."""
    activation: str | None = None
    """Activation of the MLP by its HF name; default: silu, or gelu for gpt_neox."""
    use_parallel_residual: bool | None = None
    """Whether attention and MLP read the same input (Pythia)."""
    init_std: float = 0.02
    """Standard deviation of random initial weights."""
    attn_pdrop: float = 0.0
    """Must be 0: the published recipe has no dropout."""
    resid_pdrop: float = 0.0
    """Must be 0: the published recipe has no dropout."""
    emb_pdrop: float = 0.0
    """Must be 0: the published recipe has no dropout."""
    attn_impl: str = "sdpa"
    """sdpa | flash | eager; flash needs the package flash-attn."""
    loss_chunk_tokens: int | None = None
    """Tokens whose logits exist at once in training; default: about 64 MiB of logits."""
    set_names: list[str] | None = None
    """Domains whose losses the model reports; default: those of `callbacks.data_loading`."""
    l0_module: L0Config | None = None
    """Masks to learn; null: train the model as it is."""

    accepted_without_effect: ClassVar[tuple[str, ...]] = ("tokenizer_name",)
    """Keys of original files: the run's own `tokenizer_name` is the one used."""


@dataclass
class DataLoadingConfig:
    """Domains and their weights: the section `callbacks.data_loading`."""

    dynamic: bool = False
    """Update the weights after every evaluation; false: keep `proportion`."""
    set_names: list[str] | None = None
    """Domains: folders below the training split."""
    proportion: list[float] | None = None
    """Weight of each domain at the start; they sum to 1."""
    update_type: str = "doremi"
    """doremi | bandit | constant."""
    target_loss: list[float] | None = None
    """Reference loss of each domain, in nats a token."""
    clip_excess: bool = False
    """Count losses below their reference as equal to it (the paper; the released code does not)."""
    smoothing: float = 1e-4
    """Part of every new weight that is spread evenly over domains."""
    step_size: float = 1.0
    """Factor of the excess loss in the exponent."""
    max_weight: float | None = None
    """Largest weight a domain may get; null: no limit."""

    @property
    def updates(self) -> bool:
        """Whether weights ever change."""
        return self.dynamic and self.update_type != "constant"


@dataclass
class SchedulerConfig:
    """The learning rate's course, one for all parameter groups."""

    name: str = "cosine_with_warmup"
    """cosine_with_warmup | constant_with_warmup | linear_decay_with_warmup."""
    t_warmup: str = "0ba"
    """Duration of the warm-up, such as 320ba."""
    alpha_f: float = 0.1
    """Final learning rate as a part of the peak."""


@dataclass
class OptimizerConfig:
    """One optimizer with three groups: model, masks, multipliers."""

    name: str = "decoupled_adamw"
    """decoupled_adamw | adamw: whether weight decay is a part of each step or of the learning rate."""
    lr: float = 1e-4
    """Peak learning rate of the model's parameters."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the moments."""
    eps: float = 1e-8
    """Epsilon of Adam."""
    weight_decay: float = 0.0
    """Weight decay of the model's parameters; masks and multipliers have none."""
    lag_lr: float = 1.0
    """Peak learning rate of masks (descending) and multipliers (ascending)."""


@dataclass
class FsdpConfig:
    """How several processes share a model; one process needs none of it."""

    sharding_strategy: str = "FULL_SHARD"
    """FULL_SHARD: gather weights for each use; SHARD_GRAD_OP: keep them from forward to backward."""
    mixed_precision: str = "DEFAULT"
    """DEFAULT: compute in `precision`, reduce gradients in fp32; PURE: both so; FULL: both in fp32."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the rest again in the backward pass; also on one process."""
    activation_cpu_offload: bool = False
    """Keep activations in the host's memory; also on one process."""
    state_dict_type: str = "full"
    """full: a checkpoint is one file; sharded: a folder to which every process writes its part."""
    verbose: bool = False
    """Log how the model was sharded."""

    accepted_without_effect: ClassVar[tuple[str, ...]] = (
        "activation_checkpointing_reentrant",
        "backward_prefetch",
        "cpu_offload",
        "flatten_parameters",
        "forward_prefetch",
        "keep_low_precision_grads",
        "limit_all_gathers",
        "load_monolith_rank0_only",
        "min_params",
        "sharded_ckpt_prefix_dir",
        "sync_module_states",
        "use_orig_params",
    )
    """Keys of FSDP's first version, which has been replaced."""


@dataclass
class Config:
    """A run: pruning when `model.l0_module` is set, else training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data_local: str | None = None
    """Folder of the prepared data."""
    data_remote: str | None = None
    """Where to fetch data from that `data_local` lacks."""
    tokenizer_name: str | None = None
    """Tokenizer: a folder, which travels with the model; of a name nothing is read."""
    max_seq_len: int = 4096
    """Tokens in a sequence."""
    global_seed: int = 17
    """Seed that other keys refer to."""
    run_name: str | None = None
    """Name of the run; default: made by Composer."""
    train_loader: LoaderConfig = MISSING
    """Training data."""
    eval_loader: LoaderConfig | None = None
    """Evaluation data."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Learning rate schedule."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    algorithms: dict[str, Any] = field(default_factory=dict)
    """Composer algorithms by name, such as gradient_clipping."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Composer callbacks by name, and `data_loading`: the domain mixture. `speed_monitor` is always there."""
    loggers: dict[str, Any] = field(default_factory=dict)
    """Composer loggers by name: wandb, tensorboard, mlflow, file_logger."""
    max_duration: str = MISSING
    """Length of the run, such as 3200ba or 50000000000tok."""
    eval_interval: str = "0ba"
    """Batches between evaluations, such as 50ba; 0ba: none."""
    eval_first: bool = False
    """Evaluate before the first step."""
    eval_subset_num_batches: int = -1
    """Batches of an evaluation on each device; -1: all."""
    global_train_batch_size: int = MISSING
    """Sequences in a step, over all devices."""
    device_eval_batch_size: int = 8
    """Sequences in an evaluation batch of one device."""
    device_train_microbatch_size: Any = "auto"
    """Sequences in a forward pass of one device; auto: find the largest that fits (CUDA)."""
    precision: str = "amp_bf16"
    """fp32 | amp_bf16 | amp_fp16."""
    fsdp_config: FsdpConfig | None = field(default_factory=FsdpConfig)
    """Sharding over several processes."""
    compile_config: dict[str, Any] | None = None
    """Arguments of torch.compile for the model, such as {mode: default} or {}; null: not compiled."""
    progress_bar: bool = True
    """Show Composer's progress bar on a terminal, and lines of progress elsewhere."""
    log_to_console: bool = False
    """Write lines of progress to standard error also when `progress_bar` is false."""
    console_log_interval: str = "1ba"
    """Batches between lines of progress, such as 10ba."""
    python_log_level: str | None = None
    """Level of the package's log: debug, info, warning."""
    max_skipped_steps: int = 0
    """Steps of a run whose loss or gradient may be not finite: they are left out; one more ends the run."""
    save_interval: str = "1000ba"
    """Batches between checkpoints."""
    save_folder: str | None = None
    """Folder of the run: checkpoints, configuration, masks, metrics, report."""
    save_num_checkpoints_to_keep: int = -1
    """Checkpoints to keep; -1: all."""
    save_overwrite: bool = False
    """Overwrite checkpoints of an earlier run in `save_folder`."""
    save_weights_only: bool = False
    """Save no optimizer state; such a run cannot be resumed."""
    load_path: str | None = None
    """Checkpoint to go on from, training state included."""
    load_weights_only: bool = False
    """Take only the weights from `load_path`."""
    autoresume: bool = False
    """Go on from the latest checkpoint of `save_folder` if there is one."""
    seed: int = 17
    """Seed of initial weights, mask noise and mixture."""
    dist_timeout: float = 1800.0
    """Seconds after which a rank that hears nothing from another gives up."""

    accepted_without_effect: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Keys of original files: data is tokenized beforehand."""

    @property
    def data_loading(self) -> "DataLoadingConfig":
        """The section `callbacks.data_loading`, typed."""
        return build(DataLoadingConfig, self.callbacks.get("data_loading") or {}, "callbacks.data_loading")


def as_model_config(cfg: Any) -> ModelConfig:
    """`cfg` as a `ModelConfig`: itself, or built from a mapping or DictConfig."""
    return cfg if isinstance(cfg, ModelConfig) else build(ModelConfig, cfg, source="model")
