"""Where the sequences of a domain lie: this project's layout, and those that the original's data comes in.

| layout | where |
|---|---|
| a folder for each domain below the split | `local/split/DOMAIN` |
| the original's for dynamic loading, where the split's name is ignored | `local/DOMAIN` |
| the original's without: one folder, the domain written beside each sequence | `local/split` |
"""

import logging
from functools import cache
from pathlib import Path

from llmshearing.config import DatasetConfig
from llmshearing.datasets.mds_index import INDEX

logger = logging.getLogger(__name__)


def place_of(cfg: DatasetConfig, name: str, dynamic: bool = True) -> tuple[Path, str | None]:
    """The folder below `local` that holds a domain, and the domain to pick there, None: all of the folder.

    A folder that is nowhere is looked for in this project's own layout, as is every remote one.

    Args:
        name: the domain; empty: the split as a whole.
        dynamic: whether weights change, with which the original ignores the split where both others exist.
    """
    local, split = Path(cfg.local), Path(cfg.split)
    own = split / name
    if not name or cfg.remote or (local / own).exists():
        return own, None
    beside, mixed = (local / name / INDEX).is_file(), (local / split / INDEX).is_file()
    if mixed and not (beside and dynamic):
        return split, name
    if beside:
        _note(
            f"train_loader.dataset.split {cfg.split} is ignored: the domains' folders lie in {local} itself"
        )
        return Path(name), None
    return own, None


@cache
def _note(message: str) -> None:
    """Log once."""
    logger.info(message)
