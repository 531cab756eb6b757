"""Spreading a model over processes: Composer's FSDP2, block by block, chosen by `fsdp_config`.

One process trains the plain model. On several, every block is a unit whose weights, gradients and optimizer
state are split over all processes. What a pruning method holds itself, a few thousand numbers that must stay
in fp32, is replicated instead, its gradients averaged (`llmshearing.pruning.replicated`).
"""

from typing import Any

import torch
from composer.core import Precision
from composer.distributed.activation_checkpointing import apply_ac
from composer.distributed.fsdp2 import create_mixed_precision_policy
from composer.distributed.prepare_distributed import parallelize_model
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.distributed.tensor import Replicate, distribute_tensor

from llmshearing.config import FsdpConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.decoder import Decoder
from llmshearing.stack import sums_gradients

_RESHARD_AFTER_FORWARD = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}


def parallelize(model: ComposerMosaicLlama, fsdp: FsdpConfig, precision: str) -> None:
    """Shard `model` in place over all processes; on one, only checkpoint its activations if asked to."""
    if dist.get_world_size() > 1:
        shard(model, fsdp, precision)
    elif fsdp.activation_checkpointing or fsdp.activation_cpu_offload:
        apply_ac(
            model,
            fsdp.activation_checkpointing,
            fsdp.activation_cpu_offload,
            model.model.activation_checkpointing_fn,
        )
    if (method := model.model.method) is not None:
        method.after_sharding(model.model)


def shard(model: ComposerMosaicLlama, fsdp: FsdpConfig, precision: str) -> None:
    """Shard `model` in place over all processes.

    Parameters on the meta device are given memory, not values, on the device of this process.
    """
    decoder = model.model
    device = _device()
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    kept_whole = _replicate(decoder.method, mesh) if decoder.method is not None else set()

    def unit(module: nn.Module) -> bool | dict[str, Any]:
        return {"ignored_params": kept_whole} if module is decoder else decoder.fsdp_wrap_fn(module)

    checkpointing = fsdp.activation_checkpointing or fsdp.activation_cpu_offload
    parallelize_model(
        model,
        _composer_config(fsdp, mesh),
        precision=Precision(precision),
        fsdp_wrap_policy=CustomPolicy(unit),
        activation_checkpointing_check_fn=decoder.activation_checkpointing_fn if checkpointing else None,
        param_init_fn=lambda module: _materialize(module, device),
    )
    policy = create_mixed_precision_policy(Precision(precision), fsdp.mixed_precision.upper())
    if device == "cpu" and sums_gradients(mesh, policy):
        _average_gradients(model)


def shard_frozen(decoder: Decoder) -> None:
    """Shard a decoder that is not trained over all processes, in place; on one it stays whole.

    Blocks, head and the rest are units; `hidden_states` gathers what it needs, and the head's weight is
    gathered by who uses it. Parameters on the meta device stay there.
    """
    if dist.get_world_size() == 1:
        return
    mesh = init_device_mesh(_device(), (dist.get_world_size(),))
    head = [] if decoder.arch.tie_embeddings else [decoder.head]
    for module in (*decoder.transformer["blocks"], *head, decoder):  # type: ignore[misc]
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(decoder, "hidden_states")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _composer_config(fsdp: FsdpConfig, mesh: DeviceMesh) -> FSDP2Config:
    return FSDP2Config(
        device_mesh=mesh,
        reshard_after_forward=_RESHARD_AFTER_FORWARD[fsdp.sharding_strategy.upper()],
        mixed_precision=fsdp.mixed_precision.upper(),
        activation_checkpointing=fsdp.activation_checkpointing,
        activation_cpu_offload=fsdp.activation_cpu_offload,
        verbose=fsdp.verbose,
    )


def _replicate(module: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Make every parameter of `module` a replicated DTensor with rank 0's values; return them. Move buffers.

    As DTensors they go through gradient clipping, optimizer and checkpoints together with the sharded ones.
    """
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            whole = distribute_tensor(parameter.detach(), mesh, [Replicate()])
            inner.register_parameter(name, nn.Parameter(whole, parameter.requires_grad))
        for name, buffer in list(inner.named_buffers(recurse=False)):
            setattr(inner, name, buffer.to(mesh.device_type))
    return set(module.parameters())


def _average_gradients(model: nn.Module) -> None:
    """Divide gradients by the number of processes."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_all_reduce_hook(_divide)


def _divide(gradient: Tensor) -> None:
    gradient.div_(dist.get_world_size())


def _materialize(module: nn.Module, device: str) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        for inner in module.modules():
            if any(parameter.is_meta for parameter in inner.parameters(recurse=False)):
                inner.to_empty(device=device, recurse=False)
