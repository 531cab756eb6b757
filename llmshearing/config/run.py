"""A run's whole file: `Config`, and the sections about how it trains and where."""

from dataclasses import dataclass
from typing import Any

from llmshearing.config.data import DataLoadingConfig, LoaderConfig
from llmshearing.config.distillation import DistillationConfig
from llmshearing.config.key import FREE, REQUIRED, SAME, key
from llmshearing.config.model import ModelConfig


@dataclass
class SchedulerConfig:
    """The learning rate's course, one for all parameter groups."""

    name: str = key(
        "cosine_with_warmup",
        "Shape of the course after the warm-up.",
        choices=("cosine_with_warmup", "linear_decay_with_warmup", "constant_with_warmup"),
    )
    t_warmup: str = key(
        "0ba", "Duration of the warm-up, such as 320ba.", units=("ba", "tok", "sp", "ep", "dur")
    )
    alpha_f: float = key(0.1, "Final learning rate as a part of the peak.", least=0, most=1)


@dataclass
class OptimizerConfig:
    """One optimizer with three groups: model, masks, multipliers."""

    name: str = key(
        "decoupled_adamw",
        "Whether weight decay is a part of each step (decoupled_adamw) or of the learning rate (adamw).",
        choices=("decoupled_adamw", "adamw"),
    )
    lr: float = key(
        1e-4, "Peak learning rate of the model's parameters; with `maskllm`, of its logits.", least=0
    )
    betas: list[float] = key(
        lambda: [0.9, 0.95], "Decay rates of the two moments.", least=0, below=1, length=2
    )
    eps: float = key(1e-8, "Epsilon of Adam.", least=0)
    weight_decay: float = key(
        0.0,
        "Weight decay of the model's parameters, or of the logits of `maskllm`; other masks and multipliers "
        "have none.",
        least=0,
    )
    lag_lr: float = key(1.0, "Peak learning rate of masks (descending) and multipliers (ascending).", above=0)


@dataclass
class FsdpConfig:
    """How several processes share a model; one process needs none of it."""

    sharding_strategy: str = key(
        "FULL_SHARD",
        "FULL_SHARD: gather weights for each use; SHARD_GRAD_OP: keep them from forward to backward.",
        choices=("FULL_SHARD", "SHARD_GRAD_OP"),
        any_case=True,
    )
    mixed_precision: str = key(
        "DEFAULT",
        "DEFAULT: compute in `precision`, reduce gradients in fp32; PURE: both so; FULL: both in fp32.",
        choices=("DEFAULT", "PURE", "FULL"),
        any_case=True,
    )
    activation_checkpointing: bool = key(
        False,
        "Keep only each block's input and compute the rest again in the backward pass; also on one process.",
    )
    activation_cpu_offload: bool = key(False, "Keep activations in the host's memory; also on one process.")
    state_dict_type: str = key(
        "full",
        "A checkpoint is one file (full) or a folder to which every process writes its part (sharded).",
        choices=("full", "sharded"),
        any_case=True,
    )
    verbose: bool = key(False, "Log how the model was sharded.")


@dataclass(kw_only=True)
class Config:
    """A run: pruning when the section of a method is set below `model`, else training."""

    model: ModelConfig = key(ModelConfig, "The model.", resume=SAME)
    distillation: DistillationConfig | None = key(
        None, "A teacher to learn from; null: the model learns from the text alone.", resume=SAME
    )
    data_local: str | None = key(None, "Folder of the prepared data.", resume=FREE)
    data_remote: str | None = key(None, "Where to fetch data from that `data_local` lacks.", resume=FREE)
    tokenizer_name: str | None = key(
        None, "Tokenizer folder, saved with the model. A hub name is accepted and ignored."
    )
    max_seq_len: int = key(4096, "Tokens in a sequence.", least=2)
    global_seed: int = key(17, "Seed that other keys refer to.")
    run_name: str | None = key(None, "Name of the run; default: made by Composer.", resume=FREE)
    train_loader: LoaderConfig = key(REQUIRED, "Training data.", same_below=("dataset.split",))
    eval_loader: LoaderConfig | None = key(None, "Evaluation data.")
    scheduler: SchedulerConfig = key(SchedulerConfig, "Learning rate schedule.")
    optimizer: OptimizerConfig = key(OptimizerConfig, "Optimizer.", resume=SAME)
    algorithms: dict[str, Any] = key(dict, "Composer algorithms by name, such as gradient_clipping.")
    callbacks: dict[str, Any] = key(
        dict, "Composer callbacks by name, beside `data_loading`. `speed_monitor` is always there."
    )
    data_loading: DataLoadingConfig = key(DataLoadingConfig, "The mixture of domains.", within="callbacks")
    loggers: dict[str, Any] = key(
        dict, "Composer loggers by name: wandb, tensorboard, mlflow, file_logger.", resume=FREE
    )
    max_duration: str = key(
        REQUIRED,
        "Length of the run, such as 3200ba, 50000000000tok or 1ep.",
        units=("ba", "tok", "sp", "ep"),
        least=1,
        resume=FREE,
    )
    eval_interval: str = key("0ba", "How often to evaluate, such as 50ba; 0ba: never.", units=("ba", "ep"))
    eval_first: bool = key(False, "Evaluate before the first step.")
    eval_subset_num_batches: int = key(
        -1, "Batches of an evaluation on each device; -1: all.", least=1, also=(-1,)
    )
    global_train_batch_size: int = key(REQUIRED, "Sequences in a step, over all devices.", least=1)
    device_eval_batch_size: int = key(
        8, "Sequences in an evaluation batch of one device.", least=1, resume=FREE
    )
    device_train_microbatch_size: int | str = key(
        "auto",
        "Sequences in a forward pass of one device; auto: find the largest that fits (CUDA).",
        least=1,
        also=("auto",),
        resume=FREE,
    )
    precision: str = key("amp_bf16", "What the model computes in.", choices=("fp32", "amp_bf16", "amp_fp16"))
    fsdp_config: FsdpConfig | None = key(FsdpConfig, "Sharding over several processes.", resume=FREE)
    compile_config: dict[str, Any] | None = key(
        None,
        "Arguments of torch.compile for the model, such as {mode: default} or {}; null: not compiled.",
        resume=FREE,
    )
    progress_bar: bool = key(
        True, "Show Composer's progress bar on a terminal, and lines of progress elsewhere.", resume=FREE
    )
    log_to_console: bool = key(
        False, "Write lines of progress to standard error also when `progress_bar` is false.", resume=FREE
    )
    console_log_interval: str = key(
        "1ba", "Batches between lines of progress, such as 10ba.", units=("ba",), least=1, resume=FREE
    )
    python_log_level: str | None = key(
        None,
        "Level of the package's log.",
        choices=("debug", "info", "warning", "error", "critical"),
        any_case=True,
        resume=FREE,
    )
    max_skipped_steps: int = key(
        0,
        "How many steps with a non-finite loss or gradient to skip before the run stops.",
        least=0,
        resume=FREE,
    )
    save_interval: str = key(
        "1000ba", "How often to save a checkpoint, such as 200ba.", units=("ba", "ep"), resume=FREE
    )
    save_folder: str | None = key(
        None, "Folder of the run: checkpoints, configuration, masks, metrics, report.", resume=FREE
    )
    save_num_checkpoints_to_keep: int = key(-1, "Checkpoints to keep; -1: all.", least=-1, resume=FREE)
    save_overwrite: bool = key(
        False, "Overwrite checkpoints of an earlier run in `save_folder`.", resume=FREE
    )
    save_weights_only: bool = key(
        False, "Save no optimizer state; such a run cannot be resumed.", resume=FREE
    )
    load_path: str | None = key(None, "Checkpoint to resume from, training state included.", resume=FREE)
    load_weights_only: bool = key(False, "Take only the weights from `load_path`.", resume=FREE)
    autoresume: bool = key(
        False, "Resume from the latest checkpoint of `save_folder` if there is one.", resume=FREE
    )
    seed: int = key(
        17, "Seed of initial weights, mask noise and mixture.", least=0, most=2**32 - 1, resume=SAME
    )
    dist_timeout: float = key(
        1800.0,
        "Seconds that a rank waits for another before the run fails.",
        least=1,
        most=10**9,
        resume=FREE,
    )

    def __post_init__(self) -> None:
        self.written: dict[Place, Written] = {}
        """Values that stand in the file as `${resolver:...}`, such as those of the environment, by place."""


Place = tuple[str | int, ...]
"""Where a value stands: the keys and list indices that lead to it."""


@dataclass(frozen=True)
class Written:
    """A value that a resolver gave, and the text that stands for it in the file."""

    text: str
    value: Any
