"""Perplexity over non-overlapping full windows of a text, or over prepared data by domain.

The protocol of the papers: a text is tokenized whole and cut into windows of S tokens; a last one that is not
full is dropped, and the loss is the mean over windows of the mean cross entropy of the S - 1 tokens that have
one before them. All windows are full, so that is the mean over tokens; perplexity is its exponential. On
prepared data a window is a sequence, and the losses are those of `llmshearing reference_loss measure`.

B windows in a batch, S tokens in a window, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.data.patience import tokenized
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.manifest import read_manifest
from llmshearing.evaluation.results import Score
from llmshearing.progress import bar

_IGNORED = -100
_TOKENS = 4096  # of a batch: its logits are B S V numbers


@dataclass(frozen=True)
class Text:
    """Windows to measure on.

    Attributes:
        path: a text file, or a folder of prepared data.
        length: tokens of a window; None: the data's own, and 2,048 or the model's limit for a text.
        split: folder of the evaluation data in prepared data.
        limit: windows of each domain; None: all.
    """

    path: Path
    length: int | None = None
    split: str = "eval_merge"
    limit: int | None = None


def names(text: Text) -> list[str]:
    """Domains of prepared data, by its manifest; the file's name for a text.

    Raises:
        FileNotFoundError: when there is nothing.
        ValueError: for a folder without a manifest.
    """
    if text.path.is_file():
        return [text.path.name]
    if not text.path.is_dir():
        raise FileNotFoundError(f"{text.path} does not exist; --data takes a text file or prepared data.")
    manifest = read_manifest(text.path)
    if manifest is None:
        raise ValueError(
            f"{text.path} is a folder without a manifest; --data takes a text file, or a folder that "
            "`llmshearing prepare` wrote."
        )
    return list(manifest.domains)


def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, text: Text, settings: dict[str, Any]
) -> list[Score]:
    """The perplexity of each domain, and of all together where there are several.

    Args:
        tokenizer: needed for a text file.
        settings: of the scores.

    Raises:
        ValueError: when the text is shorter than a window, or prepared data lacks a domain.
    """
    domains = names(text)
    if text.path.is_file():
        assert tokenizer is not None
        batches = text_batches(text, tokenizer, model.config.max_position_embeddings)
    else:
        batches = data_batches(text, domains, model.config.vocab_size)
    losses = window_losses(model, batches, len(domains), text.limit)
    found = {
        name: torch.tensor(each, dtype=torch.float64) for name, each in zip(domains, losses, strict=True)
    }
    if missing := [name for name, each in found.items() if not len(each)]:
        raise ValueError(f"{text.path} has no sequences of {', '.join(missing)}.")
    if len(found) > 1:
        found["all domains"] = torch.cat(list(found.values()))
    return [_score(f"{_PREFIX}{name}", each, settings) for name, each in found.items()]


_PREFIX = "text: "


def task_names(text: Text) -> list[str]:
    """The names of the scores that `scores` gives."""
    domains = names(text)
    return [f"{_PREFIX}{name}" for name in [*domains, *(["all domains"] if len(domains) > 1 else [])]]


def text_batches(text: Text, tokenizer: PreTrainedTokenizerBase, limit: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the windows of a text file: input_ids and labels [B, S], set [B].

    Raises:
        ValueError: when the text is not UTF-8 or shorter than a window.
    """
    length = text.length or min(2048, limit)
    try:
        content = text.path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text.path} is not UTF-8 text ({error}).") from error
    ids = torch.tensor(
        tokenized(
            lambda: tokenizer(content, verbose=False)["input_ids"],
            len(content),
            str(text.path),
            "of the model",
        )
    )
    count = len(ids) // length
    if not count:
        raise ValueError(
            f"{text.path} has {len(ids):,} tokens, less than a window of {length:,}: give --seq_length."
        )
    windows = ids[: count * length].view(count, length)
    size = max(1, _TOKENS // length)
    for start in bar("perplexity", range(0, count, size), unit="batch"):
        rows = windows[start : start + size]
        yield {"input_ids": rows, "labels": rows, "set": torch.zeros(len(rows), dtype=torch.long)}


def data_batches(text: Text, domains: Sequence[str], vocab_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the sequences of prepared data: input_ids and labels [B, S], set [B].

    Raises:
        ValueError: when the data does not fit the model, or --seq_length the data.
    """
    manifest = read_manifest(text.path)
    assert manifest is not None
    length = manifest.seq_length
    if text.length not in (None, length):
        raise ValueError(
            f"--seq_length is {text.length}, but the sequences of {text.path} have {length} tokens: "
            "leave it out."
        )
    config = LoaderConfig(DatasetConfig(local=str(text.path), split=text.split, max_seq_len=length))
    size = max(1, _TOKENS // length)
    yield from bar(
        "perplexity",
        build_text_dataloader(config, size, set_names=list(domains), vocab_size=vocab_size),
        unit="batch",
    )


@torch.no_grad()
def window_losses(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], domains: int, limit: int | None
) -> list[list[float]]:
    """The mean loss of each window in nats a token, by domain.

    Args:
        limit: windows of each domain; None: all.
    """
    found: list[list[float]] = [[] for _ in range(domains)]
    for batch in batches:
        ids, labels = (batch[key].to(model.device, torch.long) for key in ("input_ids", "labels"))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = cross_entropy(
            logits.float().transpose(1, 2), labels[:, 1:], ignore_index=_IGNORED, reduction="none"
        )
        counted = (labels[:, 1:] != _IGNORED).sum(1)
        for domain, loss in zip(batch["set"].tolist(), (losses.sum(1) / counted).tolist(), strict=True):
            if limit is None or len(found[domain]) < limit:
                found[domain].append(loss)
        if limit is not None and all(len(each) >= limit for each in found):
            break
    return found


def _score(name: str, losses: Tensor, settings: dict[str, Any]) -> Score:
    """Perplexity of windows, its standard error by the delta method."""
    mean = float(losses.mean())
    error = float(losses.std() / math.sqrt(len(losses))) if len(losses) > 1 else math.nan
    value = float(losses.mean().exp())  # infinity where a float has no room for it
    metrics = {"perplexity": value, "loss": mean, "loss_stderr": error}
    return Score(name, "perplexity", value, value * error, len(losses), settings, metrics)
