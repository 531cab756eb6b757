"""Any model that can be named on a command line, as an HF folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llmshearing import cli
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.hf_files import download
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.travelling import CONFIG
from llmshearing.checkpoints.weights import check_finite
from llmshearing.commands.convert import export
from llmshearing.commands.prune import prune_checkpoint
from llmshearing.files import scratch


@dataclass(frozen=True)
class Named:
    """A model as it was named, found.

    Attributes:
        name: as it was named.
        place: HF folder, file or folder of a checkpoint; links followed.
        stamp: changes when a file of it does.
    """

    name: str
    place: Path
    stamp: str


def find(name: str) -> Named:
    """Find an HF folder, a checkpoint, the last checkpoint of a run's folder, or a model on the hub.

    Raises:
        FileNotFoundError: when it is none of these.
    """
    path = Path(name)
    if not path.exists() and not path.is_symlink():
        path = download(name)
    elif path.is_dir() and (path / run_folder.LATEST).exists():
        path = path / run_folder.LATEST
    place = run_folder.follow(path).resolve()
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if _counts(file)]
    return Named(name, place, sha256(repr(states).encode()).hexdigest()[:16])


def _counts(file: Path) -> bool:
    """Whether a model depends on a file: not on results that were written beside it."""
    return file.suffix != ".json" or file.name.startswith(("config", "tokenizer", "vocab", "special"))


@contextmanager
def as_hf_folder(model: Named) -> Iterator[Path]:
    """The model as an HF folder; a checkpoint is exported to a temporary one.

    The checkpoint of a pruning run is cut first, as `llmshearing prune` does.

    Raises:
        ValueError: when the checkpoint cannot be cut or exported.
    """
    if (model.place / CONFIG).is_file():
        yield model.place
        return
    checkpoint = read_checkpoint(model.place)
    with scratch() as temporary:
        out = temporary / "model"
        if checkpoint.section:
            pruned = prune_checkpoint(checkpoint, {})
            export(pruned.weights, pruned.arch, pruned.config, checkpoint.hf_files, out)
            cli.say(f"{model.name}: cut to its target")
        else:
            arch, config = describe(checkpoint)
            check_finite(checkpoint.weights, model.place)
            export(checkpoint.weights, arch, config, checkpoint.hf_files, out)
        yield out
