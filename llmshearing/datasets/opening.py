"""From the YAML sections `train_loader` and `eval_loader` to opened folders of sequences."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.datasets.manifest import MANIFEST, Manifest, read_manifest
from llmshearing.datasets.places import note_ignored_split, places_of
from llmshearing.datasets.ranks import Ranks
from llmshearing.datasets.remote import Remote, check_apart, parse_cache_limit
from llmshearing.datasets.sequence_folder import TOKEN_DTYPES, DomainSequences, SequenceFolder
from llmshearing.files import LOCK, lock

logger = logging.getLogger(__name__)


class DataSection:
    """The data that one section of the configuration names; its folders share a manifest and a remote.

    Args:
        loader: the section, which `check_section` has passed.
        name: the section's name, for messages: train_loader or eval_loader.
        manifest: that of the section's data (`dataset_manifest`), None where there is none.
        vocab_size: the model's; data with larger token ids is rejected. None accepts all.
        ranks: this process; those of a node share the cache limit.

    Raises:
        ValueError: where the manifest does not match the configuration, with every difference, one a line.
    """

    def __init__(
        self,
        loader: LoaderConfig,
        name: str,
        manifest: Manifest | None,
        vocab_size: int | None,
        ranks: Ranks,
    ):
        self._cfg = cfg = loader.dataset
        self._manifest = manifest
        self._vocab_size = vocab_size
        self._mixed: dict[Path, SequenceFolder] = {}
        if manifest is not None and (problems := _manifest_problems(manifest, cfg, vocab_size)):
            raise ValueError("\n".join(problems))
        self._remote = _open_remote(cfg, name, ranks) if cfg.remote else None

    def open_domain(self, name: str, dynamic: bool = True) -> SequenceFolder | DomainSequences:
        """The training sequences of a domain, wherever they lie (`places.py`); "" is the split as a whole.

        Args:
            dynamic: whether the weights of the domains change.

        Raises:
            FileNotFoundError: as `open`.
            ValueError: as `open`, and where a folder of several domains has none of this one.
        """
        missing: OSError | None = None
        for place, domain in places_of(self._cfg, name, dynamic):
            try:
                found = self._open(place) if domain is None else self._of_domain(place, domain)
            except OSError as error:
                if not _is_missing(error):
                    raise
                missing = missing or error
            else:
                note_ignored_split(self._cfg, name, place)
                return found
        assert missing is not None  # there is at least one place
        raise missing

    def _of_domain(self, place: Path, domain: str) -> DomainSequences:
        """The sequences of a domain in a folder that holds several, which is opened once for all of them."""
        if place not in self._mixed:
            self._mixed[place] = self._open(place)
        found = self._mixed[place].only(domain)
        if not self._mixed[place].names_domains:
            raise ValueError(
                f"{found.path} has no column `set`, which tells the domain of each sequence: write one, put "
                "each domain in a folder of its own below it, or set no callbacks.data_loading.set_names"
            )
        if not len(found):
            raise ValueError(
                f"{found.path} holds no sequences of domain {domain}: prepare more text of it, or omit it"
            )
        return found

    def open(self, name: str = "") -> SequenceFolder:
        """The folder of this name below the split; "" is the split itself.

        Raises:
            FileNotFoundError: for a missing folder, index or shard.
            ValueError: for one that is empty or broken, or holds other data than configured.
        """
        return self._open(Path(self._cfg.split, name))

    def _open(self, place: Path) -> SequenceFolder:
        cfg = self._cfg
        path = Path(cfg.local) / place
        if cfg.remote:
            check_apart(f"{cfg.remote.rstrip('/')}/{place.as_posix()}", path)
        folder = SequenceFolder(
            path,
            cfg.max_seq_len,
            _allowed_dtypes(cfg, self._manifest),
            self._vocab_size,
            self._remote,
            place.as_posix(),
            length_is_known=self._manifest is not None,
        )
        if not len(folder):
            raise ValueError(f"{path} holds no sequences: prepare more text of it, or omit it")
        return folder


def check_section(loader: LoaderConfig, name: str) -> None:
    """Check what a section says, before anything of its data is touched.

    Raises:
        ValueError: with every problem, one a line.
    """
    cfg = loader.dataset
    problems = [] if loader.name == "text" else [f"{name}.name is {loader.name!r}: expected text"]
    limit, remote = cfg.cache_limit, cfg.remote
    if limit is not None:
        problems += _problems_of(lambda: parse_cache_limit(limit, f"{name}.dataset.cache_limit"))
    if remote:
        problems += _problems_of(lambda: check_apart(remote, Path(cfg.local)))
    if problems:
        raise ValueError("\n".join(problems))


def dataset_manifest(cfg: DatasetConfig) -> Manifest | None:
    """The manifest of the data that a section reads, fetched where it is remote and not here yet.

    None where there is none: data of the original has none.

    Raises:
        ValueError: for a file that is not a manifest.
    """
    path = Path(cfg.local) / MANIFEST
    if cfg.remote and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.parent / LOCK, wait=True):
            if not path.is_file():
                _fetch_manifest(cfg.remote, cfg.download_timeout, path)
    return read_manifest(cfg.local)


def _fetch_manifest(url: str, timeout: float, path: Path) -> None:
    """Download the manifest of a remote that has one; tried once, as most failures mean that it has none."""
    try:
        Remote(url, 0, timeout, None).download(MANIFEST, path, lambda file, called: None)
        read_manifest(path.parent)
    except ValueError:
        path.unlink()  # so that it is fetched again once it is repaired there
        raise
    except OSError as error:
        if not _is_missing(error):
            logger.warning("the data is read without its manifest: %s", error)


def _is_missing(error: OSError) -> bool:
    """Whether a file is not there; clients of some kinds of storage have no exception of their own for it."""
    return (
        isinstance(error, FileNotFoundError)
        or isinstance(error.__cause__, FileNotFoundError)
        or "not found" in str(error).lower()
    )


def _open_remote(cfg: DatasetConfig, name: str, ranks: Ranks) -> Remote:
    assert cfg.remote is not None
    limit = cfg.cache_limit
    if limit is not None:
        limit = parse_cache_limit(limit, f"{name}.dataset.cache_limit")
    local = ranks.local_rank, ranks.local_world_size
    return Remote(cfg.remote, cfg.download_retry, cfg.download_timeout, limit, *local)


def _allowed_dtypes(cfg: DatasetConfig, manifest: Manifest | None) -> Sequence[str]:
    """What the tokens may be stored as, by the manifest or else by the config."""
    if manifest is not None:
        return [manifest.dtype]
    if cfg.is_uint16 is None:
        return TOKEN_DTYPES
    return [name for name in TOKEN_DTYPES if (name == "uint16") == cfg.is_uint16]


def _manifest_problems(manifest: Manifest, cfg: DatasetConfig, vocab_size: int | None) -> list[str]:
    """Where the data was made for another model or is configured wrongly."""
    problems = []
    if manifest.seq_length != cfg.max_seq_len:
        problems.append(
            f"{cfg.local} was prepared with seq_length {manifest.seq_length}, max_seq_len is "
            f"{cfg.max_seq_len}: set max_seq_len: {manifest.seq_length} or prepare the data again"
        )
    made_with = manifest.tokenizer["vocab_size"]
    if vocab_size is not None and made_with > vocab_size:
        problems.append(
            f"{cfg.local} was made with tokenizer {manifest.tokenizer['name']} of {made_with} tokens, the "
            f"model's vocab_size is {vocab_size}: prepare the data with the model's tokenizer"
        )
    if cfg.is_uint16 is not None and cfg.is_uint16 != (manifest.dtype == "uint16"):
        problems.append(
            f"is_uint16 is {cfg.is_uint16}, but the tokens of {cfg.local} are {manifest.dtype}: omit "
            "is_uint16, the data determines it"
        )
    return problems


def _problems_of(check: Callable[[], object]) -> list[str]:
    """The problems that a check raises, as a list."""
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []
