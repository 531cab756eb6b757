"""How large, how long, how much: arithmetic on shapes.

P parameters, L layers, D hidden, H query heads, E head dim, V vocabulary, S sequence, N devices.
"""

import math
from dataclasses import dataclass

import torch
from composer.callbacks.speed_monitor import GPU_AVAILABLE_FLOPS

from llmshearing.config import Config
from llmshearing.models.loss import chunk_size
from llmshearing.planning.activations import SavedBytes, saved_bytes
from llmshearing.planning.prepared import Prepared
from llmshearing.planning.sizes import evaluations, planned_steps, steps_in, training_tokens
from llmshearing.pruning import Aim, method_class
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import (
    embedding_parameters,
    expected_flops,
    forward_flops,
    matrix_parameters,
    parameters,
    training_flops,
)

# Share of a GPU's peak that training reaches. On A100s at 4,096 tokens a sequence the original publishes
# 1,844 tokens/s a device for pruning 7B (8,684 and 4,957 for training 1.3B and 2.7B are 28% and 31%),
# MosaicML's llm-foundry 3,684 for training a dense 7B.
UTILIZATION = {"as published for the original": 0.27, "as llm-foundry publishes": 0.54}
ADAM_BYTES = 8  # two moments in fp32 for each parameter
_SAMPLES = 100  # steps of a run whose work is averaged
_FULL, _HALF = 4, 2  # bytes of a number in fp32, and in bf16 or fp16


# ------------------------------------------------------------------------ time


def evaluation_tokens(prepared: Prepared) -> int:
    """Tokens that all evaluations of the run read."""
    return evaluations(prepared.config) * sum(prepared.evaluation.values()) * prepared.config.max_seq_len


def hours(prepared: Prepared, tokens_per_second: float) -> float:
    """Hours of the run, given the rate of training the source; an evaluation's token costs a third.

    A pruning run executes the units that are open, so it takes the source's time times `executed_share`.
    """
    work = training_tokens(prepared.config) + evaluation_tokens(prepared) / 3
    return work * executed_share(prepared) / tokens_per_second / 3600


def executes_all(prepared: Prepared) -> bool:
    """Whether every unit is executed, closed ones too."""
    return prepared.config.model.execute == "all" or prepared.config.compile_config is not None


def executed_share(prepared: Prepared) -> float:
    """Operations of the run's training over those with every unit, by the schedule of the pruning method."""
    config, arch, steps = prepared.config, prepared.source, planned_steps(prepared.config)
    method = method_class(config.model)
    if method is None or arch is None or not steps or not prepared.aim.kinds or executes_all(prepared):
        return 1.0
    length = config.max_seq_len
    sampled = [min(steps - 1, round((i + 0.5) * steps / _SAMPLES)) for i in range(_SAMPLES)]
    work = [
        expected_flops(arch, method.open_shares(config.model, arch, step, steps), 1, length)
        for step in sampled
    ]
    return sum(work) / len(work) / training_flops(arch, 1, length)


def tokens_per_second(
    arch: Architecture, seq_len: int, gpu: str, utilization: float, teacher: Architecture | None = None
) -> float:
    """Training tokens that one device gets through in a second, at a share of its bf16 peak.

    Args:
        teacher: a model whose forward pass each token takes too.

    Raises:
        ValueError: for a GPU whose peak is not known.
    """
    if gpu not in GPU_AVAILABLE_FLOPS or "amp_bf16" not in GPU_AVAILABLE_FLOPS[gpu]:
        known = [name for name, peak in GPU_AVAILABLE_FLOPS.items() if "amp_bf16" in peak]
        raise ValueError(f"GPU {gpu!r} is not known; expected one of {', '.join(known)}.")
    work = training_flops(arch, 1, seq_len) + (forward_flops(teacher, 1, seq_len) if teacher else 0)
    return utilization * GPU_AVAILABLE_FLOPS[gpu]["amp_bf16"] * seq_len / work


@dataclass(frozen=True)
class DomainBudget:
    """How long the data of one domain lasts at the starting weights."""

    name: str
    weight: float
    sequences: int
    """Sequences there are."""
    evaluation: int
    """Sequences of it that an evaluation reads."""
    steps_a_pass: float
    """Steps until every sequence was used once."""
    passes: float
    """How often the whole run goes through it."""


def domain_budgets(prepared: Prepared) -> list[DomainBudget]:
    """The budget of each domain whose data was found."""
    config, sequences = prepared.config, prepared.training
    names = config.data_loading.set_names or [""]
    weights = config.data_loading.proportion or [1.0]
    budgets = []
    for name, weight in zip(names, weights, strict=False):
        if name not in sequences:
            continue
        each_step = weight * config.global_train_batch_size
        lasts = sequences[name] / each_step if each_step else math.inf
        passes = planned_steps(prepared.config) / lasts
        evaluated = prepared.evaluation.get(name, 0)
        budgets.append(DomainBudget(name, weight, sequences[name], evaluated, lasts, passes))
    return budgets


# ---------------------------------------------------------------------- memory

# GiB of a device's memory by the names of Composer's table; of those sold in several sizes the largest.
DEVICE_GIB = {"h200-sxm": 131, "h100-sxm": 80, "h100-pcie": 80, "a100": 80, "a10": 24}
DRIVER_GIB = 2  # what driver and allocator take


@dataclass(frozen=True)
class Memory:
    """Bytes on one of several devices."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's moments, and the state of the pruning method."""
    gathered: float
    """Blocks, embedding and head gathered from all devices to be computed with."""
    activations: float
    recomputed: float
    """Activations with activation checkpointing: a block's input each, and one block's inside."""
    logits: float
    """One chunk of logits and the gradient of the output projection."""
    teacher: float = 0
    """The teacher's weights, its head whole, the input of that for a microbatch, two chunks of logits."""

    def total(self, checkpointing: bool) -> float:
        """Bytes in all."""
        activations = self.recomputed if checkpointing else self.activations
        fixed = self.weights + self.gradients + self.optimizer + self.gathered + self.logits + self.teacher
        return fixed + activations


def memory(prepared: Prepared, devices: int) -> Memory:
    """Estimate of a device's memory when parameters, gradients and moments are sharded over `devices`.

    What the allocator and the driver take comes on top (`DRIVER_GIB`).
    """
    config, arch = prepared.config, prepared.source
    assert arch is not None
    sharded = devices > 1
    width = _FULL if config.precision == "fp32" else _HALF
    block = (matrix_parameters(arch) // arch.n_layers) * width
    in_use = 3 * block + embedding_parameters(arch) * width if sharded else 0
    tokens = microbatch(config, devices) * config.max_seq_len
    saved = _block_bytes(prepared, arch, sharded)
    stream = tokens * arch.d_model * (width if sharded else _FULL)
    held, trained = held_and_trained(arch, prepared.aim)
    return Memory(
        weights=_FULL * held / devices,
        gradients=_FULL * trained / devices,
        optimizer=(ADAM_BYTES * trained + _FULL * prepared.aim.state) / devices,
        gathered=in_use,
        activations=arch.n_layers * saved.of(tokens),
        recomputed=arch.n_layers * stream + saved.of(tokens),
        logits=_logit_bytes(config, arch, width),
        teacher=_teacher_bytes(prepared, devices, tokens, width),
    )


def _teacher_bytes(prepared: Prepared, devices: int, tokens: int, width: int) -> float:
    """What a teacher adds to the peak of a step; its blocks run before the model keeps anything."""
    if prepared.teacher is None:
        return 0
    arch = prepared.teacher.arch
    head = arch.vocab_size * arch.d_model * width if devices > 1 else 0
    chunk = _chunk_tokens(prepared.config, arch) * arch.vocab_size * _FULL
    return parameters(arch) * width / devices + tokens * arch.d_model * width + head + 2 * chunk


def held_and_trained(arch: Architecture, aim: Aim) -> tuple[int, int]:
    """Parameters of a run, those that its method puts into the decoder included, and how many train."""
    count = parameters(arch)
    return count + aim.own, aim.own + (count if aim.trains_weights else 0)


def microbatch(config: Config, devices: int) -> int:
    """Sequences of a forward pass on one device; 1 where the run finds out what fits."""
    wanted = config.device_train_microbatch_size
    return min(wanted if isinstance(wanted, int) else 1, max(1, config.global_train_batch_size // devices))


def _block_bytes(prepared: Prepared, arch: Architecture, sharded: bool) -> SavedBytes:
    compute = torch.float32 if prepared.config.precision == "fp32" else torch.bfloat16
    weights = compute if sharded else torch.float32
    return saved_bytes(arch, weights, compute, masked=bool(prepared.aim.kinds))


def _logit_bytes(config: Config, arch: Architecture, width: int) -> float:
    chunk = _chunk_tokens(config, arch) * arch.vocab_size * (_FULL + 2 * width)
    return chunk + arch.vocab_size * arch.d_model * (_FULL + width)


def _chunk_tokens(config: Config, arch: Architecture) -> int:
    return config.model.loss_chunk_tokens or chunk_size(arch.vocab_size)


# ------------------------------------------------------------------------ disk


def checkpoint_bytes(prepared: Prepared) -> int:
    """Bytes of one checkpoint: weights in fp32, the method's state and, unless left out, Adam's moments."""
    assert prepared.source is not None
    held, trained = held_and_trained(prepared.source, prepared.aim)
    moments = 0 if prepared.config.save_weights_only else trained * ADAM_BYTES
    return _FULL * (held + prepared.aim.state) + moments


def checkpoints_kept(prepared: Prepared) -> int:
    """Checkpoints that lie in the run's folder at its end."""
    interval = steps_in(prepared.config.save_interval, prepared.config)
    written = math.ceil(planned_steps(prepared.config) / interval) if interval else 0
    keep = prepared.config.save_num_checkpoints_to_keep
    return written if keep < 0 else min(max(1, keep), written)
