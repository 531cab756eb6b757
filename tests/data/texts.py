"""Random text whose every document can be recognized by its tokens."""

import json
from pathlib import Path

import numpy as np

WORDS = [f"w{i}" for i in range(500)]


def documents(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Random documents of up to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    """One record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_text(folder: Path) -> Path:
    """`book` is one file; `wiki` is three, with copies of each other's documents."""
    wiki = documents(300, seed=2)
    write_jsonl(folder / "book" / "all.jsonl", documents(250, seed=1))
    write_jsonl(folder / "wiki" / "0.jsonl", wiki[:150])
    write_jsonl(folder / "wiki" / "1.jsonl", wiki[100:250])
    write_jsonl(folder / "wiki" / "2.jsonl", wiki[250:] + wiki[:20])
    return folder
