"""The command in tests: small text, how it is run, and what it wrote."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from llmshearing.data import prepare
from llmshearing.datasets.sequence_folder import SequenceFolder

SEQ_LEN = 32
BOS, EOS = 0, 1


def run(monkeypatch, text: Path, output: Path, tokenizer: Path, *more: str) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments(text, output, tokenizer), *more])
    prepare.main()


def arguments(text: Path, output: Path, tokenizer: Path) -> list[str]:
    return [
        *("--input", str(text), "--output", str(output), "--tokenizer", str(tokenizer)),
        *("--seq_length", str(SEQ_LEN), "--eval_tokens", "640", "--prune_tokens", "4000", "--workers", "1"),
    ]


def start(text: Path, output: Path, tokenizer: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llmshearing.data.prepare", *arguments(text, output, tokenizer), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def tree_hash(folder: Path) -> dict[str, str]:
    """Hash of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_tokens(folder: Path) -> np.ndarray:
    """All tokens of a folder, end to end."""
    sequences = SequenceFolder(folder, SEQ_LEN)
    return np.concatenate([sequences[i].tokens for i in range(len(sequences))])


def read_documents(folder: Path) -> list[str]:
    """The complete documents in a folder: what stands between BOS and EOS."""
    joined = " ".join(
        "|" if token == EOS else f"w{token - 2}" for token in read_tokens(folder) if token != BOS
    )
    return [document.strip() for document in joined.split("|")[:-1]]


def other_words(tokenizer: Path, folder: Path) -> Path:
    """The tokenizer with another word in its vocabulary."""
    shutil.copytree(tokenizer, folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"w7"', '"seven"'))
    return folder
