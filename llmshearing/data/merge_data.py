"""Merge MDS folders into one, their sequences spread evenly: any first part of it holds all of them."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from streaming.base.format.mds import MDSWriter

from llmshearing import cli, fired
from llmshearing.datasets.mds_index import INDEX, is_plain_name, read_index
from llmshearing.datasets.shard_folder import ShardFolder
from llmshearing.files import replacing_folder

logger = logging.getLogger(__name__)

_SHUFFLE = "the sequences of all folders are spread evenly, and training reads them in random order"
_ROWS = "every folder is merged whole; eval_subset_num_batches limits what an evaluation reads"


def merge(inputs: Sequence[Path], output: Path) -> int:
    """Write the sequences of all input folders to one; returns how many there are.

    Sequence i of a folder of n comes at (i + 1/2) / n of the result.

    A folder that an earlier run wrote to `output` is replaced, with a warning.

    Raises:
        FileNotFoundError: for a folder without index.json or without one of its shards.
        ValueError: for a damaged folder, one that is given twice or would be replaced, and for folders
            whose columns or sequence lengths differ.
        FileExistsError: where `output` holds something else.
    """
    _check_places(inputs, output)
    folders = [ShardFolder(path) for path in inputs]
    columns = [_columns(folder) for folder in folders]
    for path, found in zip(inputs, columns, strict=True):
        if found != columns[0]:
            raise ValueError(
                f"{path} holds {found}, {inputs[0]} holds {columns[0]}: prepare both with one tokenizer "
                "and one length"
            )
    sizes = [len(folder) for folder in folders]
    _check_output(output, sum(sizes))
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(place, kind="stable")]
    samples = [map(folder.entry, range(size)) for folder, size in zip(folders, sizes, strict=True)]
    with (
        replacing_folder(output, INDEX) as partial,
        MDSWriter(out=str(partial.absolute()), columns=columns[0][0]) as writer,
    ):
        for number in owner:
            writer.write(next(samples[number]))
    return len(owner)


def _check_places(inputs: Sequence[Path], output: Path) -> None:
    """Raise ValueError for an input that is given twice or that replacing the output would remove."""
    places = [path.resolve() for path in inputs]
    for i, (path, place) in enumerate(zip(inputs, places, strict=True)):
        if place in places[:i]:
            raise ValueError(f"{path} is to be merged twice: name each folder once in --split_names")
        if place.is_relative_to(output.resolve()):
            raise ValueError(
                f"the merge would replace {path}, which it reads: choose another --output_split, "
                f"{output} holds it"
            )


def _check_output(output: Path, count: int) -> None:
    """Raise FileExistsError for an output folder that an earlier run of this merge cannot have written."""
    index = output / INDEX
    if not index.is_file():
        return
    try:
        held = sum(shard.samples for shard in read_index(index))
    except ValueError as error:
        raise FileExistsError(
            f"{output} was not written by a merge ({error}): choose another --output_split or remove it"
        ) from None
    if held != count:
        raise FileExistsError(
            f"{output} holds {held:,} sequences, not the {count:,} of this merge: choose another "
            "--output_split or remove it"
        )
    logger.warning("%s, which held as many sequences, is replaced", output)


def _columns(folder: ShardFolder) -> tuple[dict[str, str], int | None]:
    """Name and encoding of each column, and how many bytes the tokens of a sequence take."""
    if not len(folder):
        raise ValueError(f"{folder.path} holds no sequences: omit it")
    return folder.columns, folder.token_bytes


def merge_data(
    input_dir: str | Path,
    output_dir: str | Path,
    output_split: str,
    split_names: Sequence[str],
    shuffle: bool = False,
    split_rows: int | None = None,
) -> None:
    """Merge folders of prepared data into one, their sequences spread evenly.

    Example:

        llmshearing merge --input_dir data/eval --output_dir data --output_split eval_merge \\
          --split_names cc github book

    Args:
        input_dir: folder that holds the folders to merge.
        output_dir: folder that gets the merged one.
        output_split: name of the merged folder, such as eval_merge.
        split_names: names of the folders to merge.
        shuffle: accepted for the original's commands, without effect.
        split_rows: accepted for the original's commands, without effect.

    Raises:
        ValueError: for an output that is not a plain name, and as `merge` does.
        OSError: as `merge` does.
    """
    if not is_plain_name(output_split):
        raise ValueError(
            f"--output_split is {output_split!r}: expected the name of a folder in --output_dir, "
            "such as eval_merge"
        )
    for flag, given, about in (("--shuffle", shuffle, _SHUFFLE), ("--split_rows", split_rows, _ROWS)):
        if given:
            logger.warning("%s has no effect: %s", flag, about)
    if not split_names:
        raise ValueError("--split_names is empty: expected the names of the folders to merge")
    output = Path(output_dir, output_split)
    count = merge([Path(input_dir, name) for name in split_names], output)
    cli.say(f"{count:,} sequences of {len(split_names)} folders in {output}")


if __name__ == "__main__":
    cli.run(lambda: fired.call(merge_data, "python -m llmshearing.data.merge_data", sys.argv[1:]))
