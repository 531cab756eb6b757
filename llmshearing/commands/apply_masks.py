"""A dense model and a file of masks to the sparse model: `llmshearing apply_masks`."""

from pathlib import Path

from torch import Tensor

from llmshearing.checkpoints.describing import describe
from llmshearing.commands.plain_models import check_place, read_model, write_model
from llmshearing.pruning.mask_file import MaskFile
from llmshearing.pruning.maskllm import hf_shapes
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import to_hf


def apply_masks(dense: str | Path, masks: str | Path, out: str | Path) -> None:
    """Set the weights of a dense model that masks remove to exactly 0; every other number stays as it is.

    Example:

        llmshearing apply_masks models/Llama-2-7b-hf runs/masks/pruned-latest-rank0.masks.npz models/sparse-7b

    Args:
        dense: HF folder or Composer checkpoint that the masks were made for.
        masks: file of masks, as `llmshearing prune` and `llmshearing oneshot` write it.
        out: HF folder to write, or Composer checkpoint where the name ends in .pt.

    Raises:
        ValueError: when the masks belong to another model, the model's own masks are not applied yet, or its
            weights are NaN or infinite.
        OSError: when something is missing or cannot be written.
    """
    check_place(out, dense)
    checkpoint = read_model(dense)
    arch, config = describe(checkpoint)
    weights = masked(checkpoint.weights, MaskFile(masks, hf_shapes(arch)), arch)
    write_model(out, weights, arch, config, checkpoint)


def masked(weights: dict[str, Tensor], masks: MaskFile, arch: Architecture) -> dict[str, Tensor]:
    """Weights by our names, with exact zeros where masks remove them."""
    by_hf = {to_hf(name, arch.family): name for name in weights}
    return weights | {by_hf[name]: weights[by_hf[name]].masked_fill(~masks[name], 0) for name in masks.shapes}
