"""The four stages of preparation, each a function of a job and a task number.

    tokenize  each group of input files  -> work/tokens/N/{tokens,lengths,bins}.bin, summary.json
    plan      all                        -> work/plan.json: which documents go to which split
    pack      each (split, domain)       -> work/mds/SPLIT/DOMAIN, sequences as MDS
    finish    all                        -> the output folder, eval_merge, manifest.json

A task writes beside its place and renames its folder when it is complete: a killed task is
repeated and a complete one is kept. Nothing depends on the number of workers.
"""

import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing.data.job import Job, Progress, whole
from llmshearing.data.patience import TokenizerPanicError, not_tokenized, patience, within
from llmshearing.data.records import DocumentReader
from llmshearing.data.sources import open_folder, sha256
from llmshearing.data.splits import BINS, SPLITS, SplitPlan, cut_bins, document_bin, plan_budgets
from llmshearing.datasets.manifest import Manifest

EVAL_MERGE = "eval_merge"
_BUDGETS = {"eval": "--eval_tokens", "for_prune": "--prune_tokens", "for_ft": "--ft_tokens"}
_BATCH_BYTES = 4 << 20  # of text that is tokenized at a time
LEFT_OVER_SHARE = 0.02  # of a domain's tokens that may be left over without a warning
_CHUNK_TOKENS = 1 << 22  # that packing holds in memory
_LIBRARIES = (
    "tokenizers",
    "transformers",
    "sentencepiece",
    "mosaicml-streaming",
    "numpy",
    "orjson",
    "pyarrow",
)


# Tokenize


def tokenize(job: Job, number: int) -> None:
    """Token ids, lengths and bins of all documents of one task, and what its files held."""
    folder = job.token_folder(number)
    if folder.exists():
        return
    with whole(folder) as partial:
        writer = _TokenWriter(job, number, partial)
        files = [writer.add_file(source.name, source.size) for source in job.tasks[number].files]
        writer.finish()
        summary = {"domain": job.tasks[number].domain, "tokens": sum(writer.lengths), "files": files}
        (partial / "summary.json").write_text(json.dumps(summary))


class _TokenWriter:
    """Collects documents into batches, tokenizes them and appends them to a folder."""

    def __init__(self, job: Job, number: int, folder: Path):
        self.lengths: list[int] = []
        self._bins: list[int] = []
        self._job, self._tokenizer, self._folder = job, job.tokenizer, folder
        self._reader = DocumentReader(open_folder(job.input), job.text_field, job.max_broken)
        self._stream = (folder / "tokens.bin").open("wb")
        self._texts: list[str] = []
        self._text_bytes = 0
        self._progress = Progress(job.work, number)

    def add_file(self, name: str, size: int) -> dict[str, Any]:
        """Tokenize a file; returns its entry of the manifest."""
        job, done = self._job, 0
        for document in self._reader.read_file(name):
            data = document.text.encode()
            self._bins.append(document_bin(data, job.seed))
            self._texts.append(document.text)
            self._text_bytes += len(data)
            if self._text_bytes >= _BATCH_BYTES:
                done = min(done + self._text_bytes, size)
                self._flush(name)
                self._progress.report(done)
        self._flush(name)
        self._progress.file_done(size)
        counts = {key: getattr(self._reader, key) for key in ("documents", "empty", "broken")}
        if self._reader.reasons:
            counts["reasons"] = self._reader.reasons
        return {"name": name, "bytes": size, "sha256": sha256(self._reader.data_folder, name), **counts}

    def _flush(self, name: str) -> None:
        prefix, suffix = self._tokenizer.prefix, self._tokenizer.suffix
        flat: list[int] = []
        for ids in self._encode(name):
            flat += prefix
            flat += ids
            flat += suffix
            self.lengths.append(len(prefix) + len(ids) + len(suffix))
        self._stream.write(np.array(flat, self._tokenizer.dtype).tobytes())
        self._progress.tokens += len(flat)
        self._texts, self._text_bytes = [], 0

    def _encode(self, name: str) -> Iterable[Sequence[int]]:
        """The ids of the collected texts of a file, from a tokenizer that may fail or never end."""
        try:
            return self._encode_within(self._texts)
        except (TimeoutError, TokenizerPanicError) as failure:
            first = self._reader.documents - len(self._texts) + 1
            where = f"{name}, documents {first:,} to {self._reader.documents:,}"
            if isinstance(failure, TokenizerPanicError):
                where = f"{name}, document {first + self._first_panic():,}"
            raise ValueError(not_tokenized(where, self._tokenizer.name, failure)) from None

    def _encode_within(self, texts: list[str]) -> Iterable[Sequence[int]]:
        return within(lambda: self._tokenizer.encode(texts), patience(self._text_bytes))

    def _first_panic(self) -> int:
        """Which of the collected texts fails first."""
        for number, text in enumerate(self._texts):
            try:
                self._encode_within([text])
            except (TimeoutError, TokenizerPanicError):
                return number
        return 0

    def finish(self) -> None:
        """Write what goes beside the tokens."""
        self._stream.close()
        (self._folder / "lengths.bin").write_bytes(np.array(self.lengths, np.int64).tobytes())
        (self._folder / "bins.bin").write_bytes(np.array(self._bins, np.uint16).tobytes())


def _read_documents(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Lengths in tokens and bins of the documents of a task."""
    return np.fromfile(folder / "lengths.bin", np.int64), np.fromfile(folder / "bins.bin", np.uint16)


# Plan


def plan(job: Job, number: int = 0) -> None:
    """Which bins of every domain make up which split.

    Raises:
        ValueError: for a domain that cannot give every split a sequence.
    """
    histograms = {domain: _histogram(job, domain) for domain in job.domains}
    tokens = {domain: int(histogram.sum()) for domain, histogram in histograms.items()}
    for domain, count in tokens.items():
        if not count:
            raise ValueError(_no_text(job, domain))
    lost = [warning for domain in job.domains for warning in _lost_records(job, domain)]
    budgets, warnings = plan_budgets(tokens, job.eval_tokens, job.prune_tokens, job.ft_tokens, job.proportion)
    warnings = [*filter(None, [job.tokenizer.chat_warning]), *lost, *warnings]
    cuts = {domain: cut_bins(histograms[domain], budgets[domain], job.seq_length) for domain in job.domains}
    for domain, splits in cuts.items():
        _check_splits(job, domain, histograms[domain], splits)
        warnings += _left_over(job, domain, histograms[domain], splits)
    text = {domain: {split: asdict(cut) for split, cut in splits.items()} for domain, splits in cuts.items()}
    partial = Path(job.work) / "plan.partial"
    partial.write_text(json.dumps({"cuts": text, "warnings": warnings}))
    partial.rename(Path(job.work) / "plan.json")


def _no_text(job: Job, domain: str) -> str:
    files = _files(job, domain)
    broken, empty = (sum(file[key] for file in files) for key in ("broken", "empty"))
    return (
        f"domain {domain} has no documents with text in the field {job.text_field!r}: {empty:,} records are "
        f"empty, {broken:,} broken or without that field{_reasons(files)}; set --text_field, add text or "
        "take it out"
    )


def _lost_records(job: Job, domain: str) -> list[str]:
    """A warning for a domain's broken records, and one for its empty ones where they are many.

    Raises:
        ValueError: where more than `max_broken_share` of a domain's records are broken.
    """
    files = _files(job, domain)
    documents, empty, broken = (sum(file[key] for file in files) for key in ("documents", "empty", "broken"))
    total, warnings = documents + empty + broken, []
    if broken:
        counts = f"{broken:,} of {total:,} records ({broken / total:.2%})"
        lost = f"domain {domain}: {counts} are broken{_reasons(files)}"
        if broken > job.max_broken_share * total:
            raise ValueError(
                f"{lost}: more than --max_broken_share {job.max_broken_share:g}; set --text_field, mend "
                "them, or run the same command with a larger share (what is complete is kept)"
            )
        warnings.append(f"{lost}: skipped")
    if empty > job.max_broken_share * total:
        warnings.append(
            f"domain {domain}: {empty:,} of {total:,} records ({empty / total:.2%}) have no text in the "
            f"field {job.text_field!r}: it is empty or null there"
        )
    return warnings


def _reasons(files: list[dict[str, Any]]) -> str:
    """Why records of these files are broken: how many for each reason, and where the first is."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for file in files:
        for reason, found in file.get("reasons", {}).items():
            counts[reason] += found["records"]
            first.setdefault(reason, found["first"])
    parts = [f"{count:,} {reason} (first: {first[reason]})" for reason, count in counts.most_common()]
    return f" ({', '.join(parts)})" if parts else ""


def _files(job: Job, domain: str) -> list[dict[str, Any]]:
    """The entries of a domain's files."""
    return [file for summary in _summaries(job) if summary["domain"] == domain for file in summary["files"]]


def _summaries(job: Job) -> list[dict[str, Any]]:
    """What each tokenizing task noted."""
    return [json.loads((job.token_folder(i) / "summary.json").read_text()) for i in range(len(job.tasks))]


def _histogram(job: Job, domain: str) -> NDArray[np.int64]:
    """Tokens of a domain in each bin, [BINS]."""
    histogram = np.zeros(BINS, np.int64)
    for number, task in enumerate(job.tasks):
        if task.domain == domain:
            lengths, bins = _read_documents(job.token_folder(number))
            histogram += np.bincount(bins, lengths, BINS).astype(np.int64)
    return histogram


def _check_splits(job: Job, domain: str, histogram: NDArray[np.int64], splits: dict[str, SplitPlan]) -> None:
    for split, cut in splits.items():
        has = int(histogram[cut.first_bin : cut.end_bin].sum())
        if has < job.seq_length:
            raise ValueError(
                f"domain {domain}: {split} gets {has:,} of {histogram.sum():,} tokens in "
                f"{np.count_nonzero(histogram):,} different documents, too few for a sequence of "
                f"{job.seq_length}: add text, lower --seq_length, or lower the budgets of the other splits"
                f"{_sharing(job)}"
            )
        if cut.max_sequences == 0:
            raise ValueError(
                f"domain {domain}: its share of {split} is less than a sequence of {job.seq_length} tokens: "
                f"raise {_BUDGETS[split]} or its --proportion, add text, or lower --seq_length"
                f"{_sharing(job)}"
            )


def _sharing(job: Job) -> str:
    """The reason why a split may have few tokens, where both budgets are given."""
    if not (job.prune_tokens and job.ft_tokens):
        return ""
    return (
        f"; a domain too small for both is shared in the ratio of --prune_tokens {job.prune_tokens:,} and "
        f"--ft_tokens {job.ft_tokens:,}: lower --ft_tokens, or leave it out for the rest"
    )


def _left_over(
    job: Job, domain: str, histogram: NDArray[np.int64], splits: dict[str, SplitPlan]
) -> list[str]:
    """A warning for each split whose documents hold far more tokens than it uses."""
    warnings = []
    for split, cut in splits.items():
        has = int(histogram[cut.first_bin : cut.end_bin].sum())
        takes = has if cut.max_sequences is None else min(has, cut.max_sequences * job.seq_length)
        if has - takes > LEFT_OVER_SHARE * int(histogram.sum()):
            warnings.append(
                f"domain {domain}: {split} takes {takes:,} of the {has:,} tokens of its documents; the "
                "rest is left out: a document is long beside the budget, and no other split may have a part"
            )
    return warnings


# Pack


def pack_tasks(job: Job) -> list[tuple[str, str]]:
    """Every (split, domain) that gets a folder."""
    wanted = {"eval": job.eval_tokens, "for_prune": job.prune_tokens, "for_ft": job.ft_tokens}
    return [(split, domain) for split in SPLITS if wanted[split] != 0 for domain in job.domains]


def pack(job: Job, number: int) -> None:
    """Cut the documents of one split of one domain, end to end, into sequences."""
    from streaming.base.format.mds import MDSWriter

    split, domain = pack_tasks(job)[number]
    folder = Path(job.work) / "mds" / split / domain
    cut = SplitPlan(**json.loads((Path(job.work) / "plan.json").read_text())["cuts"][domain][split])
    if folder.exists():
        return
    with whole(folder) as partial, MDSWriter(out=str(partial.absolute()), columns=MDS_COLUMNS) as writer:
        for sequence in _sequences(job, domain, cut):
            writer.write({"tokens": sequence.tobytes(), "set": domain})


MDS_COLUMNS = {"tokens": "bytes", "set": "str"}


def _sequences(job: Job, domain: str, cut: SplitPlan) -> Iterator[NDArray[Any]]:
    """Sequences of seq_length tokens; a file's remainder begins the next, the last one is dropped."""
    dtype = job.tokenizer.dtype
    rest = np.zeros(0, dtype)
    left = cut.max_sequences
    for number, task in enumerate(job.tasks):
        if task.domain != domain:
            continue
        for tokens in _chosen_tokens(job.token_folder(number), cut, dtype):
            tokens = np.concatenate([rest, tokens])
            rows = tokens[: tokens.size // job.seq_length * job.seq_length].reshape(-1, job.seq_length)
            rest = tokens[rows.size :]
            rows = rows[:left]
            yield from rows
            if left is not None and (left := left - len(rows)) == 0:
                return


def _chosen_tokens(folder: Path, cut: SplitPlan, dtype: str) -> Iterator[NDArray[Any]]:
    """The tokens of a task's documents whose bin lies in the cut, in pieces."""
    lengths, bins = _read_documents(folder)
    if not lengths.sum():
        return
    tokens = np.memmap(folder / "tokens.bin", dtype, "r")
    chosen = (bins >= cut.first_bin) & (bins < cut.end_bin)
    piece = (np.cumsum(lengths) - lengths) // _CHUNK_TOKENS  # documents of one piece are read together
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    at = 0
    for start, end in zip(starts, [*starts[1:], lengths.size], strict=True):
        size = int(lengths[start:end].sum())
        yield tokens[at : at + size][np.repeat(chosen[start:end], lengths[start:end])]
        at += size


# Finish


def finish(job: Job, number: int = 0) -> None:
    """Move everything to the output folder; the manifest comes last and says that it is complete."""
    from llmshearing.data.merge_data import merge

    output, work = Path(job.output), Path(job.work)
    for split, domain in pack_tasks(job):
        packed, place = work / "mds" / split / domain, output / split / domain
        if packed.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            packed.rename(place)
    evaluated = [output / "eval" / domain for domain in job.domains if (output / "eval" / domain).exists()]
    if evaluated:
        shutil.rmtree(output / EVAL_MERGE, ignore_errors=True)  # of a run that was interrupted here
        merge(evaluated, output / EVAL_MERGE)
    _manifest(job).write(output)
    for folder in ("tokens", "mds"):
        shutil.rmtree(work / folder)


def _manifest(job: Job) -> Manifest:
    summaries = _summaries(job)
    sources: dict[str, list[dict[str, Any]]] = {domain: [] for domain in job.domains}
    for summary in summaries:
        sources[summary["domain"]] += summary["files"]
    return Manifest(
        seq_length=job.seq_length,
        dtype=job.tokenizer.dtype,
        tokenizer=job.tokenizer.record,
        settings=job.settings
        | {"warnings": json.loads((Path(job.work) / "plan.json").read_text())["warnings"]},
        sources=sources,
        domains={domain: _domain_entry(job, domain, summaries) for domain in job.domains},
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
    )


def _domain_entry(job: Job, domain: str, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """What a domain held and what it gave."""
    mine = [summary for summary in summaries if summary["domain"] == domain]
    files = [file for summary in mine for file in summary["files"]]
    entry: dict[str, Any] = {
        key: sum(file[key] for file in files) for key in ("documents", "empty", "broken")
    }
    entry["tokens"] = sum(summary["tokens"] for summary in mine)
    entry["splits"] = {}
    for split in SPLITS:
        index = Path(job.output) / split / domain / "index.json"
        if index.exists():
            sequences = sum(shard["samples"] for shard in json.loads(index.read_text())["shards"])
            entry["splits"][split] = {"sequences": sequences, "tokens": sequences * job.seq_length}
    return entry
