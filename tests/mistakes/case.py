"""A row of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

TRAIN, PREPARE = "train", "llmshearing.data.prepare"
INSPECT = "llmshearing.data.inspect"
CONVERT, PRUNE = "llmshearing.utils.composer_to_hf", "llmshearing.utils.post_pruning_processing"


@dataclass(frozen=True)
class Case:
    """A mistake or fault: a command, its arguments, what the message must hold, and what to do before."""

    name: str
    module: str
    words: str
    message: tuple[str, ...]
    before: Callable[[SimpleNamespace], Any] | None = None
    leaves: str = "nothing"
    """Folder that may hold more afterwards: that of a run which began, or what preparing goes on from."""


START = (TRAIN, "{y}")
FROM_WEIGHTS = (TRAIN, "{y} model.path={f}/model.pt")
TO_COMPOSER = (CONVERT, "save_hf_to_composer {f}/hf {f}/o.pt")
