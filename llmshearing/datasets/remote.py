"""Prepared data that lies elsewhere, and the part of a local disk that downloads of it may take."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

from streaming.base.format.mds import MDSReader
from streaming.base.storage import CloudDownloader
from streaming.base.util import bytes_to_int, retry


def check_apart(url: str, local: Path) -> None:
    """Raise ValueError where a remote is the folder that its downloads go to.

    What is removed from there to keep within a cache limit would be the only copy.
    """
    parsed = urlparse(url)
    if parsed.scheme not in ("", "file"):
        return
    remote = Path(unquote(parsed.path) if parsed.scheme else url)
    exist = remote.exists() and local.exists()
    if remote.resolve() == local.resolve() or (exist and remote.samefile(local)):
        raise ValueError(
            f"remote {url} is the local folder {local} itself: leave data_remote out to read the data where "
            "it is, or set data_local to another folder for downloads"
        )


def parse_cache_limit(value: str | int, setting: str) -> int:
    """Bytes of a limit such as "200gb".

    Raises:
        ValueError: naming `setting` for anything but a size above 0.
    """
    try:
        limit = bytes_to_int(value)
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise ValueError(f"{setting} is {value!r}: expected a size above 0, in bytes or such as 200gb")
    return limit


class Remote:
    """A folder elsewhere, and the share of the local disk that its files may take.

    Args:
        url: the folder, as mosaicml-streaming names them.
        download_retry: how often a failed download is tried again.
        download_timeout: seconds a download may take.
        cache_limit: bytes of shards to keep on this node, None for all.
        local_rank: which of the node's processes this is.
        local_ranks: how many there are; each keeps its part of the limit.
    """

    def __init__(
        self,
        url: str,
        download_retry: int,
        download_timeout: float,
        cache_limit: int | None,
        local_rank: int = 0,
        local_ranks: int = 1,
    ):
        self.url = url.rstrip("/")
        self.download_retry = download_retry
        self.download_timeout = download_timeout
        self.cache_limit = cache_limit // local_ranks if cache_limit is not None else None
        self._ranks = (local_rank, local_ranks)
        self._kept: OrderedDict[MDSReader, int] = OrderedDict()
        self._bytes = 0

    def download(self, name: str, path: Path, check: Callable[[Path, str], object]) -> None:
        """Fetch the file `name` to `path`, which appears whole or not at all.

        Args:
            check: gets the file and its name for messages, and raises ValueError for a wrong one.

        Raises:
            OSError: with its cause where the file cannot be downloaded.
            ValueError: from `check`.
        """
        source, partial = f"{self.url}/{name}", path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)

        @retry(
            num_attempts=self.download_retry + 1, clean_up_fn=lambda: partial.unlink(missing_ok=True)
        )  # what a failed attempt left would count as downloaded
        def attempt() -> None:
            CloudDownloader.direct_download(source, str(partial), self.download_timeout)

        try:
            attempt()
        except Exception as error:  # whatever the client of this kind of storage raises
            raise OSError(
                f"cannot download {source} ({type(error).__name__}: {error}): check data_remote"
            ) from error
        try:
            check(partial, source)
        except ValueError:
            partial.unlink()  # so that it is fetched again once it is repaired there
            raise
        partial.replace(path)

    def present(self, shards: list[MDSReader]) -> None:
        """Count what is here of a folder; of several processes of a node each counts its part."""
        rank, ranks = self._ranks
        for shard in shards[rank::ranks]:
            self._keep(shard)

    def used(self, shard: MDSReader) -> None:
        """Note that a shard was read, and remove the least recently read ones beyond the limit."""
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return
        self._keep(shard)
        while self.cache_limit is not None and self._bytes > self.cache_limit and len(self._kept) > 1:
            oldest, size = self._kept.popitem(last=False)
            self._bytes -= size
            oldest.evict()

    def _keep(self, shard: MDSReader) -> None:
        self._kept[shard] = shard.get_max_size()
        self._bytes += self._kept[shard]
