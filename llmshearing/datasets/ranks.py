"""Which of a run's processes this one is, from torch.distributed or the launcher, without a trainer."""

import os
from typing import NamedTuple

from torch import distributed


class Ranks(NamedTuple):
    """The place of one process among those of a run and among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def current_ranks() -> Ranks:
    """The place of this process; a process without a launcher is the only one."""
    local = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size(), *local)
    return Ranks(_number("RANK", 0), _number("WORLD_SIZE", 1), *local)


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))
