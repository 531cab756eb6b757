"""Parameters, operations and steps: arithmetic on an architecture or a configuration alone."""

import math
import re

from llmshearing.config.keys import Config
from llmshearing.shapes.architecture import Architecture


def parameters(arch: Architecture) -> int:
    """Parameters of a decoder, embeddings included."""
    norm = arch.d_model * (2 if arch.layer_norms else 1)
    layer = arch.attention_matrix_parameters + arch.mlp_matrix_parameters + 2 * norm
    if arch.qkv_bias:
        layer += (arch.n_heads + 2 * arch.n_kv_heads) * arch.head_dim
    if arch.out_bias:
        layer += arch.d_model
    if arch.mlp_bias:
        layer += (arch.mlp_matrices - 1) * arch.intermediate_size + arch.d_model
    if arch.qk_norm:
        layer += 2 * arch.head_dim
    return arch.n_layers * layer + norm + embedding_parameters(arch)


def embedding_parameters(arch: Architecture) -> int:
    """Parameters of the embedding and, unless tied, the output projection."""
    return arch.vocab_size * arch.d_model * (1 if arch.tie_embeddings else 2)


def planned_steps(config: Config) -> int:
    """Steps of the whole run."""
    return steps_in(config.max_duration, config)


def steps_in(duration: str, config: Config) -> int:
    """Steps in a duration such as 3200ba, 50000000tok or 1000sp (sequences)."""
    match = re.fullmatch(r"(\d+)(ba|tok|sp)", duration)
    if match is None:
        return 0
    sequences = config.global_train_batch_size
    per_step = {"ba": 1, "tok": sequences * config.max_seq_len, "sp": sequences}[match[2]]
    return math.ceil(int(match[1]) / max(per_step, 1))


def evaluations(config: Config) -> int:
    """Evaluations of the whole run."""
    interval = steps_in(config.eval_interval, config)
    if config.eval_loader is None:
        return 0
    return (planned_steps(config) // interval if interval else 0) + int(config.eval_first)


def training_tokens(config: Config) -> int:
    """Tokens that the run trains on."""
    return planned_steps(config) * config.global_train_batch_size * config.max_seq_len
