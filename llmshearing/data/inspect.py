"""Show what a folder of prepared data holds: sequences, tokens and dtype of every folder, and some text.

Example:

    llmshearing inspect data --tokenizer path/to/llama --samples 2
"""

import argparse
import json
import logging
from pathlib import Path

from llmshearing import cli
from llmshearing.data.text_tokenizer import TextTokenizer, check_tokenizer
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import Manifest, read_manifest
from llmshearing.datasets.mds_index import INDEX
from llmshearing.datasets.sequence_folder import TOKEN_DTYPES, SequenceFolder

logger = logging.getLogger(__name__)

_SHOWN_TOKENS = 60


def find_folders(root: Path) -> list[Path]:
    """Every MDS folder at or below `root`, except those whose shards a folder above them names.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not (folders := sorted(index.parent for index in root.rglob(INDEX) if not _is_hidden(index, root))):
        raise FileNotFoundError(f"{root} holds no {INDEX}: expected what `llmshearing prepare` has completed")
    found = set(folders)
    return [folder for folder in folders if found.isdisjoint(folder.parents)]


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def manifest_of(root: Path) -> Manifest | None:
    """The manifest of the data that a folder belongs to: there, or up to two folders above."""
    manifests = (read_manifest(folder) for folder in (root, *list(root.resolve().parents)[:2]))
    return next((manifest for manifest in manifests if manifest is not None), None)


def choose_tokenizer(name: str | None, manifest: Manifest | None) -> TextTokenizer | None:
    """The named tokenizer, which must be the data's, or else the manifest's if it still exists.

    Raises:
        ValueError: for a tokenizer whose vocabulary does not match that of the data.
    """
    if name is not None:
        tokenizer = load_tokenizer(name)
        if manifest is not None:
            check_tokenizer(manifest, tokenizer)
        return tokenizer
    if manifest is None:
        return None
    try:
        return load_tokenizer(manifest.tokenizer["name"])
    except ValueError as error:
        logger.warning("no samples are shown: %s", error)
        return None


def describe(folder: SequenceFolder, root: Path) -> str:
    """One line on a folder."""
    count = len(folder)
    name = str(folder.path.relative_to(root))
    return f"{name:<32}{count:>12,}{count * folder.seq_len:>16,}  {folder.dtype}"


def show_samples(folder: SequenceFolder, tokenizer: TextTokenizer, samples: int) -> None:
    """Print the beginnings of some sequences, evenly spread."""
    for index in range(0, len(folder), max(1, len(folder) // samples))[:samples]:
        sequence = folder[index]
        text = tokenizer.decode(sequence.tokens[:_SHOWN_TOKENS].tolist())
        cli.say(f"  [{index}] {sequence.domain}: {json.dumps(text, ensure_ascii=False)}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.data.inspect", __doc__)
    parser.add_argument("folder", type=Path, help="prepared data, or one folder of it")
    parser.add_argument("--tokenizer", help="to decode samples (the manifest's)")
    parser.add_argument("--samples", type=int, default=1, help="sequences of each folder to decode (1)")
    parser.add_argument("--seq_length", type=int, help="tokens of a sequence, for data without a manifest")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = parse_arguments()
    paths = find_folders(args.folder)
    manifest = manifest_of(args.folder)
    seq_length = manifest.seq_length if manifest is not None else args.seq_length
    if seq_length is None:
        raise ValueError(
            f"{args.folder} has no manifest: give the tokens of a sequence, such as --seq_length 4096"
        )
    tokenizer = choose_tokenizer(args.tokenizer, manifest) if args.samples > 0 else None
    vocab_size = tokenizer.vocab_size if tokenizer is not None else None
    known = manifest is not None
    folders = [
        SequenceFolder(path, seq_length, TOKEN_DTYPES, vocab_size, length_is_known=known) for path in paths
    ]
    cli.say(f"{'folder':<32}{'sequences':>12}{'tokens':>16}  dtype")
    for folder in folders:
        cli.say(describe(folder, args.folder))
        if tokenizer is not None:
            show_samples(folder, tokenizer, args.samples)
    if manifest is not None and "prefix" in manifest.tokenizer:
        cli.say(f"each document between {manifest.around} of {manifest.tokenizer['name']}")


if __name__ == "__main__":
    cli.run(main)
