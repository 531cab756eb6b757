"""Where the sequences of a domain lie: this project's layout, and those that the original's data comes in.

| layout | where, below `local` or `remote` |
|---|---|
| a folder for each domain below the split | `split/DOMAIN` |
| the original's for dynamic loading, where the split's name is ignored | `DOMAIN` |
| the original's without: one folder, the domain written beside each sequence | `split` |
"""

import logging
from functools import cache
from pathlib import Path

from llmshearing.config import DatasetConfig
from llmshearing.datasets.mds_index import INDEX

logger = logging.getLogger(__name__)


def places_of(cfg: DatasetConfig, name: str, dynamic: bool = True) -> list[tuple[Path, str | None]]:
    """The folders below `local` or `remote` that may hold a domain, each with the domain to pick there.

    None instead of the domain: all of the folder. Of local ones, the first that exists, or else the one of
    this project's own layout; of remote ones, which nothing lists, all, in the order to try them.

    Args:
        name: the domain; empty: the split as a whole.
        dynamic: whether weights change, with which the original ignores the split where both others exist.
    """
    local, split = Path(cfg.local), Path(cfg.split)
    own, beside, mixed = (split / name, None), (Path(name), None), (split, name)
    places = [own, *(place for place in ([beside, mixed] if dynamic else [mixed]) if name)]
    if cfg.remote:
        return list(dict.fromkeys(places))
    return [place for place in places if (local / place[0] / INDEX).is_file()][:1] or [own]


def note_ignored_split(cfg: DatasetConfig, name: str, place: Path) -> None:
    """Say once where a domain was found beside the split instead of below it."""
    if place == Path(name) != Path(cfg.split, name):
        root = cfg.remote or cfg.local
        _note(f"train_loader.dataset.split {cfg.split} is ignored: the domains' folders lie in {root} itself")


@cache
def _note(message: str) -> None:
    """Log once."""
    logger.info(message)
