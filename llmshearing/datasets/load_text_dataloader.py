"""From the YAML sections `train_loader` and `eval_loader` to the DataLoaders that Composer takes."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch.utils.data import DataLoader

from llmshearing.config.loader import DatasetConfig, LoaderConfig
from llmshearing.data.tokenizer import check_tokenizer, load_tokenizer
from llmshearing.datasets.manifest import MANIFEST, Manifest, read_manifest
from llmshearing.datasets.mixture import Mixture
from llmshearing.datasets.remote import Remote, check_apart, parse_cache_limit
from llmshearing.datasets.sequence_folder import TOKEN_DTYPES, SequenceFolder
from llmshearing.datasets.streaming_dataset import Sample, TextDynamicStreamingDataset, TextStreamingDataset
from llmshearing.files import LOCK, lock

logger = logging.getLogger(__name__)


def build_text_dataloader(
    cfg: LoaderConfig,
    device_batch_size: int,
    dynamic: bool = False,
    set_names: Sequence[str] | None = None,
    proportion: Sequence[float] | None = None,
    vocab_size: int | None = None,
) -> DataLoader:
    """A loader of token sequences.

    Args:
        cfg: the YAML section.
        device_batch_size: sequences of a batch on this rank.
        dynamic: True for training: an endless mixture of the domains `set_names`, one folder each
            below the split; False for evaluation: every sequence of the split's folder once.
        set_names: the domains. None with `dynamic`: the split itself is the only one.
        proportion: starting weights of the domains, needed with `set_names` and `dynamic`.
        vocab_size: the model's; data with larger token ids is refused.

    Raises FileNotFoundError and ValueError for data that is missing, broken, or other than configured.
    """
    if cfg.name != "text":
        raise ValueError(f"loader name is {cfg.name!r}: expected text")
    names = list(set_names) if dynamic and set_names is not None else [""]
    folders = _open_folders(cfg.dataset, names, vocab_size, "train_loader" if dynamic else "eval_loader")
    if dynamic:
        dataset = _build_mixture(cfg.dataset, device_batch_size, folders, set_names, proportion)
        return _loader(dataset, device_batch_size, drop_last=True)
    dataset = TextStreamingDataset(folders[0], set_names)
    sampler = dist.get_sampler(
        dataset, shuffle=cfg.dataset.shuffle, drop_last=cfg.drop_last, seed=cfg.dataset.shuffle_seed
    )
    return _loader(dataset, device_batch_size, drop_last=cfg.drop_last, sampler=sampler)


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Samples to a batch: input_ids and labels [B, S], the same tensor; set and idx [B]."""
    tokens = torch.stack([sample["input_ids"] for sample in samples])
    batch = {"input_ids": tokens, "labels": tokens}
    return batch | {key: torch.tensor([sample[key] for sample in samples]) for key in ("set", "idx")}


def _loader(dataset: Any, batch_size: int, drop_last: bool, sampler: Any = None) -> DataLoader:
    """No worker processes: reading takes microseconds a sequence, and the dataset has a thread of its own."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=collate,
        num_workers=0,
        pin_memory=torch.cuda.is_available(),
    )


def _build_mixture(
    cfg: DatasetConfig,
    device_batch_size: int,
    folders: list[SequenceFolder],
    set_names: Sequence[str] | None,
    proportion: Sequence[float] | None,
) -> TextDynamicStreamingDataset:
    names = list(set_names) if set_names is not None else [cfg.split]
    if proportion is None:
        if len(names) > 1:
            raise ValueError(f"domains {', '.join(names)} without proportion: give one weight for each")
        proportion = [1.0]
    sizes = [len(folder) for folder in folders]
    mixture = Mixture(names, sizes, proportion, cfg.shuffle_seed, cfg.exhausted, cfg.shuffle)
    return TextDynamicStreamingDataset(
        folders, mixture, device_batch_size, dist.get_global_rank(), dist.get_world_size()
    )


def _open_folders(
    cfg: DatasetConfig, names: Sequence[str], vocab_size: int | None, section: str
) -> list[SequenceFolder]:
    """The folders of these names below the split, all sharing one remote and its cache.

    `section` is the configuration's that `cfg` belongs to, for messages.
    """
    places = [Path(cfg.split, name) for name in names]
    remote = _open_remote(cfg, places, section)
    manifest = dataset_manifest(cfg)
    if manifest is not None:
        _check_manifest(manifest, cfg, vocab_size)
    open_folder = partial(
        SequenceFolder,
        seq_len=cfg.max_seq_len,
        dtypes=_allowed_dtypes(cfg, manifest),
        vocab_size=vocab_size,
        remote=remote,
        length_is_known=manifest is not None,
    )
    folders = []
    for place in places:
        folder = open_folder(Path(cfg.local) / place, folder=place.as_posix())
        if not len(folder):
            raise ValueError(f"{folder.path} holds no sequences: prepare more text of it, or leave it out")
        folders.append(folder)
    return folders


def _open_remote(cfg: DatasetConfig, places: Sequence[Path], section: str) -> Remote | None:
    """Where the folders at these places come from, None for local data.

    Raises ValueError where one of them is the local folder itself, and for a wrong limit.
    """
    limit = cfg.cache_limit
    if limit is not None:
        limit = parse_cache_limit(limit, f"{section}.dataset.cache_limit")
    if not cfg.remote:
        return None
    for place in (Path(), *places):
        check_apart(f"{cfg.remote.rstrip('/')}/{place.as_posix()}", Path(cfg.local) / place)
    ranks = dist.get_local_rank(), dist.get_local_world_size()
    return Remote(cfg.remote, cfg.download_retry, cfg.download_timeout, limit, *ranks)


def dataset_manifest(cfg: DatasetConfig) -> Manifest | None:
    """The manifest of the data that a section reads, fetched where it is remote and not here yet.

    None where there is none: data of the original has none.

    Raises ValueError for a file that is no manifest.
    """
    path = Path(cfg.local) / MANIFEST
    if cfg.remote and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.parent / LOCK, wait=True):
            if not path.is_file():
                _fetch_manifest(cfg.remote, cfg.download_timeout, path)
    return read_manifest(cfg.local)


def _fetch_manifest(url: str, timeout: float, path: Path) -> None:
    """Download the manifest of a remote that has one: tried once, as most that fail have none."""
    try:
        Remote(url, 0, timeout, None).download(MANIFEST, path, lambda file, called: None)
        read_manifest(path.parent)
    except ValueError:
        path.unlink()  # so that it is fetched again once it is put right there
        raise
    except OSError as error:
        # The clients of some kinds of storage have no type of their own for what is not there.
        if not isinstance(error.__cause__, FileNotFoundError) and "not found" not in str(error).lower():
            logger.warning("the data is read without its manifest: %s", error)


def _allowed_dtypes(cfg: DatasetConfig, manifest: Manifest | None) -> Sequence[str]:
    """What the tokens may be stored as, by the manifest or else by the config."""
    if manifest is not None:
        return [manifest.dtype]
    if cfg.is_uint16 is None:
        return TOKEN_DTYPES
    return [name for name in TOKEN_DTYPES if (name == "uint16") == cfg.is_uint16]


def _check_manifest(manifest: Manifest, cfg: DatasetConfig, vocab_size: int | None) -> None:
    """Raise ValueError where the data was made for another model or is configured wrongly."""
    if manifest.seq_length != cfg.max_seq_len:
        raise ValueError(
            f"{cfg.local} was prepared with seq_length {manifest.seq_length}, max_seq_len is "
            f"{cfg.max_seq_len}: set max_seq_len: {manifest.seq_length} or prepare the data again"
        )
    if cfg.tokenizer_name is not None and Path(cfg.tokenizer_name).exists():
        check_tokenizer(manifest, load_tokenizer(cfg.tokenizer_name))
    made_with = manifest.tokenizer["vocab_size"]
    if vocab_size is not None and made_with > vocab_size:
        raise ValueError(
            f"{cfg.local} was made with tokenizer {manifest.tokenizer['name']} of {made_with} tokens, the "
            f"model's vocab_size is {vocab_size}: prepare the data with the model's tokenizer"
        )
    if cfg.is_uint16 is not None and cfg.is_uint16 != (manifest.dtype == "uint16"):
        raise ValueError(
            f"is_uint16 is {cfg.is_uint16}, but the tokens of {cfg.local} are {manifest.dtype}: leave "
            "is_uint16 out, it is found out from the data"
        )
