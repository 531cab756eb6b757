"""The manifest: what a folder of prepared data was made of, with what, and what came out."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmshearing.files import replacing

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Written beside the splits by `llmshearing.data.prepare`."""

    seq_length: int
    """Tokens of every sequence."""
    dtype: str
    """Integer type of the stored tokens: uint16 or uint32."""
    tokenizer: dict[str, Any]
    """`name`, `vocab_size`, `vocabulary_sha256` over (token, id) pairs, `sha256` over all that ids depend on,
    the ids and tokens put before (`prefix`, `prefix_tokens`) and after (`suffix`, `suffix_tokens`) each
    document, and whether a faulty pre-tokenizer was replaced (`fix_mistral_regex`)."""
    settings: dict[str, Any]
    """Seed, budgets and shares the data was prepared with."""
    sources: dict[str, list[dict[str, Any]]]
    """For each domain its input files: `name`, `bytes`, `sha256`, counts of records, and the `reasons` for
    broken ones."""
    domains: dict[str, dict[str, Any]]
    """For each domain its documents, those that were skipped, and sequences and tokens by split."""
    versions: dict[str, str]
    """Of the libraries that the result depends on."""
    sha256: str = field(default="", init=False, compare=False)
    """Hash of the file that this was read from, which a run records; not a part of the file."""

    def write(self, root: Path) -> None:
        """Save as root/manifest.json."""
        contents = asdict(self)
        del contents["sha256"]
        text = json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        with replacing(root / MANIFEST) as partial:
            partial.write_text(text, encoding="utf-8")

    @property
    def around(self) -> str:
        """The tokens before and behind each document, with their ids, in words."""
        sides = []
        for side in ("prefix", "suffix"):
            ids = self.tokenizer.get(side, [])
            tokens = self.tokenizer.get(f"{side}_tokens", [])  # earlier releases wrote the ids only
            named = [f"{token} ({number})" for token, number in zip(tokens, ids, strict=False)]
            sides.append(", ".join(named or map(str, ids)) or "nothing")
        return " and ".join(sides)


def read_manifest(root: Path | str) -> Manifest | None:
    """The manifest of a data folder, None if it has none (data of the original has none).

    Raises:
        ValueError: if the file exists and is not a manifest.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
        manifest = Manifest(**json.loads(data.decode("utf-8")))
        object.__setattr__(manifest, "sha256", hashlib.sha256(data).hexdigest())
        _check(manifest)
        return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a manifest of prepared data ({type(error).__name__}: {error}): prepare the data "
            "again"
        ) from None


def _check(manifest: Manifest) -> None:
    """Raise a built-in exception for contents that `prepare` does not write."""
    _check_kinds(vars(manifest), {"seq_length": int, "dtype": str, "settings": dict})
    _check_kinds(manifest.tokenizer, {"name": str, "vocab_size": int, "vocabulary_sha256": str})
    for files in manifest.sources.values():
        for file in files:
            _check_kinds(file, {"name": str, "bytes": int, "sha256": str})
    for entry in filter(None, manifest.domains.values()):
        _check_kinds(entry, {"documents": int, "broken": int, "tokens": int})
        for split in entry["splits"].values():
            _check_kinds(split, {"sequences": int, "tokens": int})


def _check_kinds(held: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if not isinstance(held[key], kind):
            raise TypeError(f"{key} is {held[key]!r}, expected {kind.__name__}")
