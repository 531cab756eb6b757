"""Parameters of a method that every process holds whole, as the model's own are sharded."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


class _Averaged(torch.autograd.Function):
    """A replicated parameter on this rank; its gradient is averaged over the ranks."""

    @staticmethod
    def forward(ctx, parameter: DTensor) -> Tensor:
        ctx.mesh = parameter.device_mesh
        return parameter.to_local().view_as(parameter.to_local())

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return DTensor.from_local(total / ctx.mesh.size(), ctx.mesh, [Replicate()], run_check=False)


def local(parameter: Tensor) -> Tensor:
    """A parameter of a method as a plain tensor, also where a run of several processes replicates it."""
    return _Averaged.apply(parameter) if isinstance(parameter, DTensor) else parameter  # type: ignore[return-value]
