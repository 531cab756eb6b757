"""A model with a smaller vocabulary, and its tokenizer: `llmshearing trim_vocabulary`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.checkpoints.travelling import PLAIN_CLASS, parse_config
from llmshearing.commands.plain_models import check_place, read_model, write_model
from llmshearing.data.samples import encoded, model_tokenizer, read_texts
from llmshearing.data.trimming import (
    Trimmable,
    count_tokens,
    renumbered_config,
    renumbered_tokenizer_config,
)
from llmshearing.progress import bar
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.key_map import PREFIX

_ROWS = (f"{PREFIX}wte.weight", f"{PREFIX}output.weight")
_TOKENIZER, _SETTINGS, _GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_OTHER_FORMS = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def trim_vocabulary(model: str | Path, out: str | Path, *, data: str, keep: int) -> None:
    """Keep the tokens that a text uses most, cut the others out of embedding and head, and renumber the rest.

    Special, byte and single-character tokens always stay, so that every text can still be written: text that
    used kept tokens alone is encoded as before, other text with more tokens. Logits of kept tokens stay the
    same. Data that was prepared with the old tokenizer does not fit the new model.

    Example:

        llmshearing trim_vocabulary models/Llama-2-7b-hf models/trimmed --data text/wiki --keep 24000

    Args:
        model: Composer checkpoint, HF folder or GGUF file, with a tokenizer.json of BPE or Unigram.
        out: HF folder to write; with the suffix .pt a Composer checkpoint.
        data: text: a file or folder of JSON lines, parquet or plain text.
        keep: tokens of the new vocabulary.

    Raises:
        ValueError: when fewer tokens are to be kept than must be, or the tokenizer is not supported.
        OSError: when something is missing or cannot be written.
    """
    check_place(out, model)
    checkpoint = read_model(model)
    arch, config = describe(checkpoint)
    files = checkpoint.hf_files
    if _TOKENIZER not in files:
        raise ValueError(f"{model} has no {_TOKENIZER}, which is what would be trimmed.")
    tokenizer = Trimmable(str(files[_TOKENIZER]), str(model))
    if max(tokenizer.tokens) >= arch.vocab_size:
        raise ValueError(
            f"The tokenizer of {model} has ids up to {max(tokenizer.tokens)}, its model {arch.vocab_size} "
            "rows: it is the tokenizer of a different model."
        )
    tokenizer.check(keep)
    encoder = model_tokenizer(files, model)
    texts = bar("counting tokens", read_texts(data), unit="text")
    counts = count_tokens(texts, lambda batch: encoded(encoder, batch, data))
    if not counts.sum():
        raise ValueError(f"--data {data} holds no text: there is nothing to choose tokens by.")
    kept = tokenizer.choose(counts, keep)
    smaller = arch.resized(vocab_size=keep)
    hf = renumbered_config(architecture_to_hf(smaller, config), kept)
    trimmed = _trimmed_files(files, tokenizer, kept)
    source = replace(checkpoint, record={"hf_files": trimmed, "config": None})
    covered = counts[[number for number in kept if number < len(counts)]].sum() / counts.sum()
    cli.say(f"kept    {keep:,} of {len(tokenizer.tokens):,} tokens, {covered:.3%} of those in the text")
    write_model(out, _with_rows(checkpoint, kept), smaller, hf, source)


def _with_rows(checkpoint: Checkpoint, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights, those with a row for each token with the rows of the kept ones."""
    rows = torch.tensor(kept)
    return {
        name: weight.index_select(0, rows) if name in _ROWS else weight
        for name, weight in checkpoint.weights.items()
    }


def _trimmed_files(
    files: Mapping[str, str | bytes], tokenizer: Trimmable, kept: Sequence[int]
) -> dict[str, str | bytes]:
    """The files that travel, for the kept tokens; other forms of the vocabulary are left out.

    Raises:
        ValueError: when the new tokenizer.json numbers a token otherwise than the model.
    """
    trimmed = tokenizer.trimmed(kept)
    made = Tokenizer.from_str(trimmed)
    wrong = [old for new, old in enumerate(kept) if made.token_to_id(tokenizer.tokens[old]) != new]
    if wrong or made.get_vocab_size() != len(kept):
        shown = f" (such as {tokenizer.tokens[wrong[0]]!r})" if wrong else ""
        raise ValueError(
            f"The trimmed tokenizer has {made.get_vocab_size()} tokens, {len(wrong)} of them with another id "
            f"than expected{shown}: its ids have gaps, which is not supported."
        )
    result = {name: content for name, content in files.items() if name not in _OTHER_FORMS}
    result[_TOKENIZER] = trimmed
    settings = renumbered_tokenizer_config(_parsed(files, _SETTINGS), kept)
    result[_SETTINGS] = _as_json({**settings, **PLAIN_CLASS})
    if _GENERATION in files:
        result[_GENERATION] = _as_json(renumbered_config(_parsed(files, _GENERATION), kept))
    return result


def _parsed(files: Mapping[str, str | bytes], name: str) -> dict[str, Any]:
    return parse_config(files.get(name, "{}"), name)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n"
