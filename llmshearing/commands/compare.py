"""Whether a Composer checkpoint computes what an HF model does: `llmshearing compare`."""

import re
from pathlib import Path

from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.commands.equality import conclude, differences, lengths_up_to, load_ours, load_theirs

_UNITS = {"M": 1e6, "B": 1e9}


def check_size(size: str, checkpoint: Checkpoint) -> None:
    """Reject a checkpoint whose parameters are not `size` to within a tenth (Llama 7B has 6.7 billion).

    Raises:
        ValueError: when they are not, or `size` is not a size.
    """
    match = re.fullmatch(r"([\d.]+)([MB])", size.upper())
    if match is None:
        raise ValueError(f"SIZE is {size!r}; expected a number of parameters such as 7B or 370M.")
    expected = float(match[1]) * _UNITS[match[2]]
    found = sum(weight.numel() for weight in checkpoint.weights.values())
    if abs(found - expected) > expected / 10:
        raise ValueError(f"SIZE is {size}, but {checkpoint.path} has {found:,} parameters.")


def compare(hf_path: str | Path, checkpoint_path: str | Path, size: str | None = None) -> None:
    """Check that a Composer checkpoint computes what an HF model does: logits compared one by one.

    Example:

        llmshearing compare models/Llama-2-7b-hf models/llama2-7b.pt 7B

    Args:
        hf_path: HF folder, GGUF file or name on the hub.
        checkpoint_path: Composer checkpoint.
        size: number of parameters to expect, such as 7B or 370M.

    Raises:
        ValueError: when the two differ, or the checkpoint has another size.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    if checkpoint.section:
        raise ValueError(
            f"{checkpoint_path} is the checkpoint of a pruning run; `llmshearing check` compares those."
        )
    if size:
        check_size(size, checkpoint)
    ours = load_ours(checkpoint)
    conclude(differences(ours, load_theirs(hf_path), lengths_up_to(ours.model.arch.max_seq_len)))
