"""From opened folders, or from the YAML sections that name them, to the DataLoaders that Composer takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.mixture import Mixture
from llmshearing.datasets.opening import DataSection, check_section, dataset_manifest
from llmshearing.datasets.ranks import Ranks, current_ranks
from llmshearing.datasets.sequence_folder import DomainSequences, SequenceFolder
from llmshearing.datasets.streaming_dataset import Sample, TextDynamicStreamingDataset, TextStreamingDataset


def build_text_dataloader(
    cfg: LoaderConfig,
    device_batch_size: int,
    dynamic: bool = False,
    set_names: Sequence[str] | None = None,
    proportion: Sequence[float] | None = None,
    vocab_size: int | None = None,
    weights_change: bool = True,
) -> DataLoader:
    """Open the data of a section and build a loader of its token sequences.

    Args:
        cfg: the YAML section.
        device_batch_size: sequences of a batch on this rank.
        dynamic: True for training: an endless mixture of the domains `set_names`, one folder each
            below the split; False for evaluation: every sequence of the split's folder once.
        set_names: the domains. None with `dynamic`: the split itself is the only one.
        proportion: starting weights of the domains, needed with `set_names` and `dynamic`.
        vocab_size: the model's; data with larger token ids is rejected.
        weights_change: whether the domains' weights do (`places.py`).

    Raises:
        FileNotFoundError: for missing data.
        ValueError: for data that is damaged or does not match the configuration.
    """
    ranks = current_ranks()
    section = "train_loader" if dynamic else "eval_loader"
    check_section(cfg, section)
    data = DataSection(cfg, section, dataset_manifest(cfg.dataset), vocab_size, ranks)
    if not dynamic:
        return evaluation_loader(cfg, TextStreamingDataset(data.open(), set_names), device_batch_size, ranks)
    names = set_names if set_names is not None else [""]
    folders = [data.open_domain(name, weights_change) for name in names]
    mixture = build_mixture(cfg.dataset, folders, set_names, proportion)
    return training_loader(folders, mixture, device_batch_size, ranks)


def build_mixture(
    cfg: DatasetConfig,
    folders: Sequence[SequenceFolder | DomainSequences],
    set_names: Sequence[str] | None,
    proportion: Sequence[float] | None,
) -> Mixture:
    """The order in which the sequences of these folders, one a domain, are trained on.

    Raises:
        ValueError: for settings or weights that are not valid for a mixture.
    """
    names = list(set_names) if set_names is not None else [cfg.split]
    if proportion is None:
        if len(names) > 1:
            raise ValueError(f"domains {', '.join(names)} without proportion: give one weight for each")
        proportion = [1.0]
    sizes = [len(folder) for folder in folders]
    return Mixture(names, sizes, proportion, cfg.shuffle_seed, cfg.exhausted, cfg.shuffle)


def training_loader(
    folders: Sequence[SequenceFolder | DomainSequences],
    mixture: Mixture,
    device_batch_size: int,
    ranks: Ranks,
) -> DataLoader:
    """Whole batches of a mixture of opened folders, without end."""
    dataset = TextDynamicStreamingDataset(folders, mixture, device_batch_size, ranks.rank, ranks.world_size)
    return _loader(dataset, device_batch_size, drop_last=True)


def evaluation_loader(
    cfg: LoaderConfig, dataset: TextStreamingDataset, device_batch_size: int, ranks: Ranks
) -> DataLoader:
    """Every sequence of an opened folder once, each rank its part."""
    sampler = DistributedSampler(
        dataset,
        num_replicas=ranks.world_size,
        rank=ranks.rank,
        shuffle=cfg.dataset.shuffle,
        seed=cfg.dataset.shuffle_seed,
        drop_last=cfg.drop_last,
    )
    return _loader(dataset, device_batch_size, drop_last=cfg.drop_last, sampler=sampler)


def evaluated_sequences(
    sequences: int, device_batch_size: int, world_size: int, batches: int = -1, drop_last: bool = False
) -> int:
    """How many of a folder's sequences an evaluation reads, over all ranks.

    Args:
        sequences: those of the folder.
        batches: of an evaluation on each rank; -1: all.
        drop_last: whether a rank drops its last batch if it is smaller.
    """
    step = device_batch_size * world_size
    reachable = sequences // step * step if drop_last else sequences
    return min(reachable, batches * step) if batches > 0 else reachable


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
