"""Calibration samples: sequences of token ids of one length, drawn from text or from prepared data.

    text or MDS folder -> documents or sequences -> token ids [N, S]

The same data, model, number, length and seed give the same samples.

N samples, S tokens of each.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from llmshearing.data.patience import tokenized
from llmshearing.data.records import DocumentReader
from llmshearing.data.sources import holds_records, is_hidden, open_folder
from llmshearing.data.text_tokenizer import TextTokenizer, is_made_with
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import MANIFEST, read_manifest
from llmshearing.datasets.mds_index import INDEX
from llmshearing.datasets.sequence_folder import SequenceFolder

logger = logging.getLogger(__name__)

SAMPLES = 1024
"""How many are read by default (Minitron, arXiv 2407.14679, section 2)."""
LENGTH = 2048
"""Tokens of each, of text and by default; no more than the model has positions."""
_POOL = 4  # sequences of text that are read for each one that is drawn
_FILES_AT_ONCE = 32
_TEXTS_AT_ONCE = 64
_PIECE = 1 << 17  # bytes of a plain text file that count as a document, about
_PLAIN = (".txt", ".text", ".md", ".rst")
_MAX_BROKEN = 100


def read_samples(
    data: str | Path,
    files: Mapping[str, str | bytes],
    source: str | Path,
    vocab_size: int,
    longest: int,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Token ids [N, S] of calibration samples, int64.

    Documents of text stand one after the other with the tokenizer's own tokens around each, as in
    pre-training. Samples of text are drawn from the first sequences of its files, four for each sample, where
    the seed orders the files; samples of prepared data from all of its sequences.

    Args:
        data: a file or folder of text (JSON lines or parquet with a field `text`, or plain text), or an MDS
            folder, or a folder of MDS folders.
        files: the HF files that travel with the model, of which the tokenizer is taken.
        source: the model, for messages.
        vocab_size: the model's.
        longest: positions that the model has.
        samples: how many; None: `SAMPLES`, or all if there are fewer.
        length: tokens of each; None: `LENGTH`, or that of the prepared data.

    Raises:
        FileNotFoundError: where there is no data.
        ValueError: where there is too little of it, or it does not fit the model.
    """
    path = Path(data).expanduser()
    for name, value, least in (("samples", samples, 1), ("length", length, 2), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}; expected {least} or more.")
    if length is not None and length > longest:
        raise ValueError(
            f"--length is {length}, but {source} has {longest} positions; give at most {longest}."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"--data {data} not found; expected a file or folder of text, or an MDS folder."
        )
    rng = np.random.default_rng(seed)
    if folders := _mds_folders(path):
        return _from_mds(folders, files, vocab_size, longest, samples, length, rng)
    length = length or min(LENGTH, longest)
    wanted = SAMPLES if samples is None else samples
    texts = _interleaved(_documents(path, rng.permutation))
    tokenizer = model_tokenizer(files, source)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"The tokenizer of {source} has {tokenizer.vocab_size} ids, its model {vocab_size}: it is the "
            "tokenizer of a different model."
        )
    pool = list(itertools.islice(_packed(texts, tokenizer, length, path), _POOL * wanted))
    return torch.from_numpy(np.stack([pool[i] for i in _draw(len(pool), samples, length, path, rng)]))


def read_texts(data: str | Path) -> Iterator[str]:
    """All documents of a file or folder of text.

    Raises:
        FileNotFoundError: where there is no text.
        ValueError: where a file is not what it should be.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"--data {data} not found; expected a file or folder of text.")
    for texts in _documents(path):
        yield from texts


def encoded(tokenizer: TextTokenizer, texts: list[str], path: str | Path) -> Iterable[Sequence[int]]:
    """The ids of each text.

    Raises:
        ValueError: when the tokenizer cannot tokenize one of them.
    """
    size = sum(map(len, texts))
    return tokenized(lambda: tokenizer.encode(texts), size, f"a text of {path}", tokenizer.name)


def model_tokenizer(files: Mapping[str, str | bytes], source: str | Path) -> TextTokenizer:
    """The tokenizer among the files that travel with a model.

    Raises:
        ValueError: when there is none, or it cannot be read.
    """
    if not any(name.startswith("tokenizer.") or name == "vocab.json" for name in files):
        raise ValueError(
            f"{source} carries no tokenizer, so text cannot be read for it: give prepared data, or a model "
            "folder with its tokenizer.json."
        )
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            Path(folder, name).write_bytes(data)
        return replace(load_tokenizer(folder), name=str(source))


def _draw(count: int, samples: int | None, length: int, path: Path, rng: np.random.Generator) -> list[int]:
    """Which of `count` sequences are the samples.

    Raises:
        ValueError: where there are fewer than asked for.
    """
    if count == 0 or (samples is not None and count < samples):
        asked = f"--samples asks for {samples}" if samples is not None else "at least one is needed"
        raise ValueError(
            f"{path} holds {count} sequences of {length:,} tokens, {asked}: give more text, or lower "
            "--samples or --length."
        )
    if samples is None and count < SAMPLES:
        logger.warning(
            "%s holds %d sequences of %d tokens, fewer than %d: all are used", path, count, length, SAMPLES
        )
    return rng.permutation(count)[: samples or SAMPLES].tolist()


# ------------------------------------------------------------------ prepared data


def _mds_folders(path: Path) -> list[Path]:
    """The MDS folders that `path` is or holds, in the order of their names; none if it holds none.

    Raises:
        ValueError: for the root of prepared data, which holds several splits.
    """
    if (path / INDEX).is_file():
        return [path]
    if (path / MANIFEST).is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ValueError(
            f"{path} holds the splits {', '.join(splits)} of prepared data; name one, such as "
            f"{path / splits[-1] if splits else path}."
        )
    return sorted(index.parent for index in path.glob(f"*/{INDEX}")) if path.is_dir() else []


def _from_mds(
    folders: list[Path],
    files: Mapping[str, str | bytes],
    vocab_size: int,
    longest: int,
    samples: int | None,
    length: int | None,
    rng: np.random.Generator,
) -> Tensor:
    """Samples of MDS folders, whose sequences may be cut to a smaller length."""
    place = folders[0] if len(folders) == 1 else folders[0].parent
    manifest = next(filter(None, map(read_manifest, (place, *list(place.parents)[:2]))), None)
    held = manifest.seq_length if manifest is not None else length
    if held is None:
        raise ValueError(f"{place} has no {MANIFEST} beside its split; give --length, its sequences' tokens.")
    if length is not None and length > held:
        raise ValueError(f"--length is {length}, but the sequences of {place} have {held} tokens.")
    tokenizer = files.get("tokenizer.json")
    if manifest is not None and isinstance(tokenizer, str) and not is_made_with(manifest, tokenizer):
        raise ValueError(
            f"{place} was prepared with the tokenizer {manifest.tokenizer['name']}, whose vocabulary is not "
            "the model's; prepare the text with the model's tokenizer, or give the text itself."
        )
    opened = [
        SequenceFolder(folder, held, vocab_size=vocab_size, length_is_known=manifest is not None)
        for folder in folders
    ]
    ends = np.cumsum([len(folder) for folder in opened])
    length = length or min(held, longest)
    rows = []
    for index in _draw(int(ends[-1]), samples, held, place, rng):
        at = int(np.searchsorted(ends, index, side="right"))
        tokens = opened[at][index - (int(ends[at - 1]) if at else 0)].tokens
        rows.append(tokens[:length])
    return torch.from_numpy(np.stack(rows))


# --------------------------------------------------------------------------- text


def _documents(path: Path, order: Callable[[int], Iterable[int]] = range) -> Iterator[Iterator[str]]:
    """The documents of each file.

    Args:
        order: in which to read so many files.

    Raises:
        FileNotFoundError: where a folder holds no text.
        ValueError: where `path` is something else, such as a pipe.
    """
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"--data {path} is neither a file nor a folder: write the text to a file first.")
    folder = open_folder(str(path if path.is_dir() else path.parent))
    if path.is_file():
        names = [path.name]
    else:
        visible = sorted(name for name in folder.list_files("", recursive=True) if not is_hidden(name))
        names = [name for name in visible if holds_records(folder, name) or _is_plain(name)]
        if not names:
            raise FileNotFoundError(
                f"--data {path} holds no text; expected files of JSON lines, parquet, {', '.join(_PLAIN)}, "
                "or MDS folders."
            )
        if len(names) < len(visible):
            logger.warning("%s: %d files that are not text are skipped", path, len(visible) - len(names))
    for index in order(len(names)):
        name = names[index]
        if holds_records(folder, name) and not _is_plain(name):
            reader = DocumentReader(folder, "text", _MAX_BROKEN)
            yield (document.text for document in reader.read_file(name))
        else:
            root = path if path.is_dir() else path.parent
            yield _plain(root / name)


def _is_plain(name: str) -> bool:
    return name.lower().endswith(_PLAIN)


def _plain(path: Path) -> Iterator[str]:
    """A plain text file in pieces of about 128 KiB, cut between lines.

    Raises:
        ValueError: when it is not text in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while lines := file.readlines(_PIECE):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); convert it, or take it out.") from error


def _interleaved(streams: Iterable[Iterator[str]]) -> Iterator[str]:
    """One document of each stream in turn, of so many streams at once."""
    waiting = iter(streams)
    running = deque(itertools.islice(waiting, _FILES_AT_ONCE))
    while running:
        stream = running.popleft()
        text = next(stream, None)
        if text is not None:
            yield text
            running.append(stream)
        else:
            running.extend(itertools.islice(waiting, 1))


def _packed(texts: Iterator[str], tokenizer: TextTokenizer, length: int, path: Path) -> Iterator[np.ndarray]:
    """Sequences [S] of documents one after the other; what is left of the last is dropped."""
    held: list[int] = []
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        for ids in encoded(tokenizer, batch, path):
            held += [*tokenizer.prefix, *ids, *tokenizer.suffix]
        whole = len(held) // length * length
        yield from np.asarray(held[:whole], dtype=np.int64).reshape(-1, length)
        held = held[whole:]
