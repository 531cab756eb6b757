"""What differs between the supported versions of torch, decided by looking at how they behave.

Composer 0.32.1 was written for torch 2.7.0. What it, and torch, need on other versions stands here; nothing
else in the package asks for a version.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def complete_composer() -> None:
    """Define the two names that Composer uses when memory runs out, and defines for torch up to 2.7.0 only.

    With `device_train_microbatch_size: auto` Composer exchanges FSDP1's `unshard` for one that synchronizes.
    No model here uses FSDP1, so that both names can be the method itself.
    """
    from composer.trainer import _patch_pytorch as patches
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    for name in ("original_unshard", "unshard_with_sync"):
        if not hasattr(patches, name):
            setattr(patches, name, FlatParamHandle.unshard)


def sums_gradients(mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> bool:
    """Whether FSDP2 adds gradients up over `mesh` where it should average them, as over gloo in torch 2.7.

    Every process of the mesh must ask. One weight is sharded and gets the gradient 1 from each of them.

    Raises:
        RuntimeError: when what comes back is neither the mean nor the sum.
    """
    layer = nn.Linear(1, mesh.size(), bias=False, device=mesh.device_type)
    fully_shard(layer, mesh=mesh, mp_policy=policy)
    layer(torch.ones(1, 1, device=mesh.device_type)).sum().backward()
    assert layer.weight.grad is not None
    found = layer.weight.grad.to_local().flatten()[0].item()  # type: ignore[operator]
    if found not in (1, mesh.size()):
        raise RuntimeError(
            f"FSDP2 made a gradient of {found:g} out of 1 on each of {mesh.size()} processes; expected their "
            f"mean or their sum. Install a supported version of torch; this is {torch.__version__}."
        )
    return found != 1
