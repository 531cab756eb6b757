"""The YAML sections `train_loader` and `eval_loader`, typed."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class DatasetConfig:
    """Where tokenized sequences lie and in which order they are read."""

    local: str
    """Folder of the data (`data_local`); with `remote`, where what was downloaded is kept."""
    max_seq_len: int
    """Tokens of a sequence, as the data was prepared."""
    split: str = ""
    """Folder below `local`: `for_prune` or `for_ft` with a folder for each domain, or `eval_merge`."""
    remote: str | None = None
    """The same folders elsewhere: a path or a URL of mosaicml-streaming (`s3://`, `gs://`, ...)."""
    shuffle: bool = False
    """True reads in random order: another one each pass when training, each time when evaluating."""
    shuffle_seed: int = 9176
    """Seed of the order and of the draws of domains, 0 or more."""
    exhausted: str = "repeat"
    """When a domain of the training data was read to its end: `repeat`, `stop` or `renormalize`."""
    tokenizer_name: str | None = None
    """Tokenizer the data was made with; where it is a folder, it is compared with the data's manifest."""
    is_uint16: bool | None = None
    """True: two bytes a token. Found out from the data when left out, and always checked."""
    download_retry: int = 2
    """How often a failed download is tried again."""
    download_timeout: float = 60.0
    """Seconds a download may take."""
    cache_limit: str | int | None = None
    """Bytes of downloaded data kept on a node ("200gb"); the least recently read goes first."""

    accepted_without_effect: ClassVar[tuple[str, ...]] = (
        "keep_raw",
        "keep_zip",
        "num_canonical_nodes",
        "partition_algo",
        "predownload",
        "shuffle_algo",
    )
    """Keys of mosaicml-streaming's own loader, which is not used here."""


@dataclass
class LoaderConfig:
    """One data loader."""

    dataset: DatasetConfig
    """What is read."""
    name: str = "text"
    """Kind of loader; `text` is the only one."""
    drop_last: bool = False
    """Evaluation: True leaves out the last, smaller batch. Training batches are always whole."""

    accepted_without_effect: ClassVar[tuple[str, ...]] = (
        "num_workers",
        "persistent_workers",
        "pin_memory",
        "prefetch_factor",
        "timeout",
    )
    """Keys about worker processes; one thread of the training process prefetches instead."""
