"""The sections about data: `train_loader`, `eval_loader` and `callbacks.data_loading`."""

from dataclasses import dataclass

from llmshearing.config.key import FREE, REQUIRED, SAME, key


@dataclass
class DatasetConfig:
    """Where tokenized sequences lie and in which order they are read."""

    local: str = key(
        REQUIRED,
        "Folder of the data (`data_local`); with `remote`, where what was downloaded is kept.",
        resume=FREE,
    )
    max_seq_len: int = key(REQUIRED, "Tokens of a sequence, as the data was prepared.")
    split: str = key(
        "",
        "Folder below `local`: `for_prune` or `for_ft` with a folder for each domain, or one folder of all "
        "domains, such as `eval_merge`; null: the domains' folders lie in `local` itself.",
    )
    remote: str | None = key(
        None,
        "The same folders elsewhere: a path or a URL of mosaicml-streaming (`s3://`, `gs://`, ...).",
        resume=FREE,
    )
    shuffle: bool = key(
        False,
        "Read in random order: a new one for each pass when training, for each evaluation when evaluating.",
    )
    shuffle_seed: int = key(9176, "Seed of the order and of the draws of domains.", least=0, most=2**63 - 1)
    exhausted: str = key(
        "repeat",
        "What to do when all data of a training domain has been read: read it again, stop the run, or "
        "renormalize the weights of the others.",
    )
    tokenizer_name: str | None = key(
        None,
        "Tokenizer the data was made with; a folder is compared with the data's manifest.",
    )
    is_uint16: bool | None = key(
        None, "True: two bytes a token. Default: read from the data, against which it is always checked."
    )
    download_retry: int = key(2, "How often a failed download is tried again.", least=0)
    download_timeout: float = key(60.0, "Seconds a download may take.", least=1)
    cache_limit: str | int | None = key(
        None, 'Bytes of downloaded data kept on a node ("200gb"); the least recently read is removed first.'
    )


@dataclass
class LoaderConfig:
    """One data loader."""

    dataset: DatasetConfig = key(REQUIRED, "What is read.")
    name: str = key("text", "Kind of loader; `text` is the only one.")
    drop_last: bool = key(
        False, "Evaluation: skip the last, smaller batch. Training batches are always whole."
    )


@dataclass
class DataLoadingConfig:
    """Domains and their weights."""

    dynamic: bool = key(False, "Update the weights after every evaluation; false: keep `proportion`.")
    set_names: list[str] | None = key(
        None, "Domains: folders below the training split.", distinct=True, resume=SAME
    )
    proportion: list[float] | None = key(
        None, "Weight of each domain at the start; they sum to 1.", least=0, total=1, resume=SAME
    )
    update_type: str = key("doremi", "How the weights are updated.", choices=("doremi", "bandit", "constant"))
    target_loss: list[float] | None = key(None, "Reference loss of each domain, in nats a token.", least=0)
    clip_excess: bool = key(
        False, "Count losses below their reference as equal to it (the paper; the released code does not)."
    )
    smoothing: float = key(
        1e-4, "Part of every new weight that is spread evenly over domains.", least=0, most=1
    )
    step_size: float = key(1.0, "Factor of the excess loss in the exponent.", above=0)
    max_weight: float | None = key(None, "Largest weight a domain may get; null: no limit.", above=0, most=1)

    @property
    def updates(self) -> bool:
        """Whether weights ever change."""
        return self.dynamic and self.update_type != "constant"
