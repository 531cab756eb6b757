"""Whether a Composer checkpoint computes what an HF model does.

    python -m llmshearing.utils.test_composer_hf_eq HF CKPT [SIZE]

SIZE, such as 7B or 370M, is compared with the number of parameters.

Example:

    python -m llmshearing.utils.test_composer_hf_eq models/Llama-2-7b-hf models/llama2-7b.pt 7B
"""

import re

from llmshearing import cli
from llmshearing.checkpoints.opening import Checkpoint, read_checkpoint
from llmshearing.commands.equality import conclude, differences, lengths_up_to, load_ours, load_theirs

_UNITS = {"M": 1e6, "B": 1e9}


def check_size(size: str, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose parameters are not `size` to within a tenth (Llama 7B has 6.7 billion).

    Raises:
        ValueError: when they are not, or `size` is no size.
    """
    match = re.fullmatch(r"([\d.]+)([MB])", size.upper())
    if match is None:
        raise ValueError(f"SIZE is {size!r}; expected a number of parameters such as 7B or 370M.")
    expected = float(match[1]) * _UNITS[match[2]]
    found = sum(weight.numel() for weight in checkpoint.weights.values())
    if abs(found - expected) > expected / 10:
        raise ValueError(f"SIZE is {size}, but {checkpoint.path} has {found:,} parameters.")


def main() -> None:
    parser = cli.parser("llmshearing.utils.test_composer_hf_eq", __doc__)
    parser.add_argument("hf", help="HF folder, GGUF file or name on the hub")
    parser.add_argument("checkpoint", help="Composer checkpoint")
    parser.add_argument("size", nargs="?", help="number of parameters to expect, such as 7B")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint)
    if checkpoint.masks:
        raise ValueError(
            f"{args.checkpoint} is the checkpoint of a pruning run; "
            "`python -m llmshearing.utils.test_pruning` checks those."
        )
    if args.size:
        check_size(args.size, checkpoint)
    ours = load_ours(checkpoint)
    conclude(differences(ours, load_theirs(args.hf), lengths_up_to(ours.model.arch.max_seq_len)))


if __name__ == "__main__":
    cli.run(main)
