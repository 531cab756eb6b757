"""Parameters of a method that every process holds whole, as the model's own are sharded."""

from collections.abc import Iterable
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(parameter: Tensor) -> Tensor:
    """A parameter of a method as a plain tensor, also where a run of several processes replicates it.

    Its gradient is that of this process until `share_gradients`.
    """
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@torch.no_grad()
def share_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of replicated parameters over the processes, in place; a missing one is 0.

    Processes that execute different units have gradients of different parameters. So this happens once,
    after the backward passes of a step, and for all parameters alike.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learned:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [local(cast(Tensor, p.grad)) for p in learned if isinstance(p, DTensor)]
    if not gradients:
        return
    total = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(total)
    means = (total / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
