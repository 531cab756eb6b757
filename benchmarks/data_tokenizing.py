"""Preparation beside a bare tokenizing loop: tokens a second over the same texts on the same cores.

The texts are the Python files of this installation. The bare loop holds them in memory and calls
`encode_batch` (and, as a second baseline, the faster `encode_batch_fast`); preparation reads them from
jsonl, hashes, tokenizes, splits, packs and writes them.

Takes no arguments. Writes `benchmarks/results/data_tokenizing.json`. Example:

    python -m benchmarks.data_tokenizing
"""

import json
import statistics
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.common import median_ratio, paired_seconds, write_result
from llmshearing import cli
from llmshearing.data import stages
from llmshearing.data.job import Job
from llmshearing.data.sources import list_tasks
from llmshearing.data.tokenizer import load_tokenizer

MEGABYTES = 24
VOCABULARY = 16_000
SEQ_LEN = 4096
BATCH = 1000  # documents of the bare loop
ROUNDS = 5


def collect_texts() -> list[str]:
    """About MEGABYTES of source code, a file a document."""
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        texts.append(text)
        size += len(text)
        if size > MEGABYTES * 10**6:
            break
    return [text for text in texts if text]


def train_tokenizer(texts: list[str], folder: Path) -> Tokenizer:
    """A byte-level BPE, saved as an HF tokenizer folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts[::10], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return tokenizer


def bare_pass(encode: Callable[..., Any], texts: list[str]) -> Callable[[], int]:
    """Tokenizes all texts and counts."""

    def run() -> int:
        return sum(
            len(encoding.ids)
            for at in range(0, len(texts), BATCH)
            for encoding in encode(texts[at : at + BATCH], add_special_tokens=False)
        )

    return run


class Preparation:
    """The stages over one domain, each run in a folder of its own."""

    def __init__(self, root: Path, texts: list[str]):
        self.root = root
        (root / "text" / "code").mkdir(parents=True)
        with (root / "text" / "code" / "all.jsonl").open("w") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        self.runs = 0

    def tokenize(self) -> Job:
        """Up to the tokens of every document."""
        self.runs += 1
        job = Job(
            input=str(self.root / "text"),
            output=str(self.root / "out"),
            work=str(self.root / f"work{self.runs}"),
            tokenizer=load_tokenizer(str(self.root / "tokenizer")),
            seq_length=SEQ_LEN,
            text_field="text",
            eval_tokens=100_000,
            prune_tokens=1_000_000,
            ft_tokens=None,
            proportion=None,
            seed=17,
            max_broken=0,
            tasks=tuple(list_tasks(str(self.root / "text"), None)),
        )
        stages.tokenize(job, 0)
        return job

    def all(self) -> None:
        """Up to the MDS folders."""
        job = self.tokenize()
        stages.plan(job)
        for number in range(len(stages.pack_tasks(job))):
            stages.pack(job, number)


def measure() -> dict[str, Any]:
    """Rates, and ratios of passes run side by side."""
    texts = collect_texts()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, Path(folder, "tokenizer"))
        preparation = Preparation(Path(folder), texts)
        bare = bare_pass(tokenizer.encode_batch, texts)
        passes = {
            "encode_batch": bare,
            "encode_batch_fast": bare_pass(tokenizer.encode_batch_fast, texts),
            "tokenizing": preparation.tokenize,
            "tokenizing, packing, writing": preparation.all,
        }
        seconds = paired_seconds(passes, ROUNDS)
        tokens = bare()
    values: dict[str, Any] = {
        f"million tokens/s, {name}": tokens / statistics.median(taken) / 1e6
        for name, taken in seconds.items()
    }
    for name in ("tokenizing", "tokenizing, packing, writing"):
        for base in ("encode_batch", "encode_batch_fast"):
            values[f"rate of {name} / {base}"] = 1 / median_ratio(seconds, name, base)
    return values | {"tokens": tokens, "documents": len(texts)}


def main() -> None:
    cli.parser("benchmarks.data_tokenizing", __doc__).parse_args()
    config = {"megabytes": MEGABYTES, "vocabulary": VOCABULARY, "sequence": SEQ_LEN, "rounds": ROUNDS}
    write_result("data_tokenizing", config, measure())


if __name__ == "__main__":
    main()
