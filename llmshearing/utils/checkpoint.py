"""Opening and writing checkpoints: `llmshearing.checkpoints` by its earlier name."""

from llmshearing.checkpoints.describing import completed, describe, run_config
from llmshearing.checkpoints.opening import Checkpoint, in_pieces, open_checkpoint, read_checkpoint
from llmshearing.checkpoints.writing import check_output, load_weights, write_checkpoint

__all__ = [
    "Checkpoint",
    "check_output",
    "completed",
    "describe",
    "in_pieces",
    "load_weights",
    "open_checkpoint",
    "read_checkpoint",
    "run_config",
    "write_checkpoint",
]
