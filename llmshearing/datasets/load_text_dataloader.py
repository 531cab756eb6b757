"""From the YAML sections `train_loader` and `eval_loader` to the DataLoaders that Composer takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from streaming.base.util import bytes_to_int
from torch.utils.data import DataLoader

from llmshearing.data.manifest import Manifest, read_manifest
from llmshearing.data.tokenizer import check_tokenizer, load_tokenizer
from llmshearing.datasets.loader_config import DatasetConfig, LoaderConfig
from llmshearing.datasets.mixture import Mixture
from llmshearing.datasets.sequence_folder import TOKEN_DTYPES, Remote, SequenceFolder
from llmshearing.datasets.streaming_dataset import Sample, TextDynamicStreamingDataset, TextStreamingDataset


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
    manifest = read_manifest(cfg.dataset.local)
    if manifest is not None:
        _check_manifest(manifest, cfg.dataset, vocab_size)
    if dynamic:
        dataset = _build_mixture(cfg.dataset, device_batch_size, set_names, proportion, vocab_size, manifest)
        return _loader(dataset, device_batch_size, drop_last=True)
    dataset = TextStreamingDataset(_open_folders(cfg.dataset, [""], vocab_size, manifest)[0], set_names)
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
    set_names: Sequence[str] | None,
    proportion: Sequence[float] | None,
    vocab_size: int | None,
    manifest: Manifest | None,
) -> TextDynamicStreamingDataset:
    names = list(set_names) if set_names is not None else [cfg.split]
    folders = _open_folders(cfg, names if set_names is not None else [""], vocab_size, manifest)
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
    cfg: DatasetConfig, names: Sequence[str], vocab_size: int | None, manifest: Manifest | None
) -> list[SequenceFolder]:
    """The folders of these names below the split, all sharing one remote and its cache."""
    dtypes = _allowed_dtypes(cfg, manifest)
    remote = None
    if cfg.remote:
        limit = cfg.cache_limit
        limit = bytes_to_int(limit) // dist.get_local_world_size() if limit is not None else None
        remote = Remote(cfg.remote, cfg.download_retry, cfg.download_timeout, limit)
    folders = []
    for name in names:
        below = Path(cfg.split, name)
        path = Path(cfg.local) / below
        folder = SequenceFolder(path, cfg.max_seq_len, dtypes, vocab_size, remote, below.as_posix())
        if not len(folder):
            raise ValueError(f"{path} holds no sequences: prepare more text of it, or leave it out")
        folders.append(folder)
    return folders


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
