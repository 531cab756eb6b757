"""A dense model and a file of masks to the sparse model: `llmshearing apply_masks`."""

from pathlib import Path

from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import check_output, write_checkpoint
from llmshearing.commands.convert import export, record_of
from llmshearing.files import check_new_folder
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
        ValueError: when the masks belong to another model, or the model's own masks are not applied yet.
        OSError: when something is missing or cannot be written.
    """
    as_checkpoint = Path(out).suffix == ".pt"
    if as_checkpoint:
        check_output(out, dense)
    else:
        check_new_folder(Path(out))
    checkpoint = read_checkpoint(dense)
    if checkpoint.section:
        raise ValueError(
            f"{dense} is the checkpoint of a pruning run, whose masks are not applied yet; expected a dense "
            f"model. `llmshearing prune {dense}` applies its own."
        )
    arch, config = describe(checkpoint)
    weights = masked(checkpoint.weights, MaskFile(masks, hf_shapes(arch)), arch)
    if as_checkpoint:
        write_checkpoint(out, weights, record_of(checkpoint, config))
    else:
        export(weights, arch, config, checkpoint.hf_files, out)
    cli.say(f"saved   {out}")


def masked(weights: dict[str, Tensor], masks: MaskFile, arch: Architecture) -> dict[str, Tensor]:
    """Weights by our names, with exact zeros where masks remove them."""
    by_hf = {to_hf(name, arch.family): name for name in weights}
    return weights | {by_hf[name]: weights[by_hf[name]].masked_fill(~masks[name], 0) for name in masks.shapes}
