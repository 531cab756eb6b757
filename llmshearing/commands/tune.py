"""Make a model that follows instructions out of a base model: `llmshearing tune`."""

import math
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmshearing import cli
from llmshearing.checkpoints.travelling import read_travelling
from llmshearing.checkpoints.weights import check_finite
from llmshearing.commands.hf_folder import as_hf_folder, find
from llmshearing.config.strict import build
from llmshearing.evaluation.models import check_tokenizer, load_model, load_tokenizer
from llmshearing.files import check_new_folder, replacing_folder, scratch
from llmshearing.tuning import conversations
from llmshearing.tuning.conversations import Conversation
from llmshearing.tuning.packing import pack, unpacked
from llmshearing.tuning.settings import TuneConfig
from llmshearing.tuning.templates import Example, encode, last_token, prompt_ids, with_template


def tune(
    model: str,
    out: str,
    *,
    data: Sequence[str],
    tokenizer: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Fine-tune a model on conversations; the loss is that of the assistant's turns alone.

    Reads ShareGPT files and files of `messages`, one record a line or one JSON list. What comes out is an HF
    folder with its chat template, which transformers and vLLM serve. For several GPUs:
    scripts/instruction_tuning.sh. Every key with its default: docs/evaluation.md.

    Example:

        llmshearing tune runs/continue models/chat --data sharegpt.json template=sheared epochs=2

    Args:
        model: HF folder, hub name, checkpoint or run folder.
        out: folder to write.
        data: files of conversations.
        tokenizer: folder, for a model that carries none.
        overrides: settings, such as epochs=2 or learning_rate=2e-5.

    Raises:
        ImportError: when trl is not installed.
        ValueError: for settings out of range, too many bad conversations, a chat template that is missing or
            fails, or a training that diverges.
        OSError: when a file is missing or something cannot be written.
    """
    cfg = build(TuneConfig, dict(overrides or {}), "tune")
    if find_spec("trl") is None:
        raise ImportError(
            "Tuning needs trl, which is not installed: EXTRAS=tune bash scripts/setup.sh does that."
        )
    from llmshearing.tuning import training

    first = training.is_first()
    if first:
        check_new_folder(Path(out))
    read = conversations.read([Path(path) for path in data], cfg.turns)
    _say(first, read.in_words())
    read.check(cfg.max_bad)
    named = find(model)
    with as_hf_folder(named) as folder, scratch() as unused:
        words = with_template(load_tokenizer(Path(tokenizer) if tokenizer else folder, model), cfg.template)
        questions, held_out, train = split(read.conversations, words, cfg)
        end = last_token(train)
        loaded: Any = load_model(folder, "float32", training.attention())
        check_tokenizer(words, loaded, model)
        check_finite(loaded.state_dict(), model)
        limit = loaded.config.max_position_embeddings
        if cfg.max_length > limit:
            raise ValueError(f"max_length is {cfg.max_length}, but {model} reads at most {limit} tokens.")
        rows = pack(train, cfg.max_length) if cfg.packing else unpacked(train)
        _say(first, f"{len(train):,} conversations in {len(rows):,} rows, {len(held_out):,} held out")
        made = training.trainer(loaded, words, rows, cfg, unused)
        before = _state(training, made.model, words, questions, held_out, end, cfg)
        made.train()
        after = _state(training, made.model, words, questions, held_out, end, cfg)
        if not math.isfinite(after[0]):
            raise ValueError(
                f"The held-out loss was {before[0]:.4f} before and is {after[0]} after: the training has "
                "diverged, and nothing is written. Lower learning_rate, or raise warmup."
            )
        if first:
            report(questions, before, after)
            loaded.generation_config.eos_token_id = end
            loaded.generation_config.pad_token_id = end
            with replacing_folder(Path(out)) as draft:
                loaded.to(training.dtype_of(folder)).save_pretrained(draft)
                words.save_pretrained(draft)
                for name, content in read_travelling(draft).items():  # without pointers to code
                    (draft / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            cli.say(f"saved   {out}")


def split(
    found: Sequence[Conversation], tokenizer: Any, cfg: TuneConfig
) -> tuple[list[Conversation], list[Example], list[Example]]:
    """Questions to answer, conversations to hold out, and conversations to train on, drawn by `seed`.

    Raises:
        ValueError: when too few are left to hold some out and train on others.
    """
    drawn = list(found)
    random.Random(cfg.seed).shuffle(drawn)
    drawn = drawn[: cfg.conversations + cfg.held_out]
    encoded = [(turns, encode(tokenizer, turns, cfg.max_length)) for turns in drawn]
    kept = [(turns, example) for turns, example in encoded if example is not None]
    if len(kept) <= cfg.held_out:
        raise ValueError(
            f"{len(kept):,} conversations have a token of the assistant within max_length={cfg.max_length}, "
            f"and held_out={cfg.held_out} of them are not trained on: give more, or hold out fewer."
        )
    held_out, train = kept[: cfg.held_out], kept[cfg.held_out :]
    questions = [turns[: _first_answer(turns)] for turns, _ in held_out[: cfg.answers]]
    return questions, [example for _, example in held_out], [example for _, example in train]


def _first_answer(turns: Conversation) -> int:
    return next(index for index, turn in enumerate(turns) if turn["role"] == "assistant")


def _state(
    training: Any,
    model: Any,
    tokenizer: Any,
    questions: Sequence[Conversation],
    held_out: Any,
    end: int,
    cfg: Any,
) -> tuple[float, list[str]]:
    """The loss of what is held out, and answers to the questions."""
    prompts = [prompt_ids(tokenizer, turns) for turns in questions]
    answers = [training.answer(model, tokenizer, ids, end, cfg.answer_tokens) for ids in prompts]
    return training.assistant_loss(model, held_out), answers


def report(
    questions: Sequence[Conversation], before: tuple[float, list[str]], after: tuple[float, list[str]]
) -> None:
    """Print losses and answers, before and after."""
    cli.say(f"held-out loss of the assistant's tokens: {before[0]:.4f} before, {after[0]:.4f} after")
    for turns, old, new in zip(questions, before[1], after[1], strict=True):
        cli.say(f"\nuser    {_short(turns[-1]['content'])}\nbefore  {_short(old)}\nafter   {_short(new)}")
    cli.say()


def _short(text: str, most: int = 400) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} ..."


def _say(first: bool, text: str) -> None:
    if first:
        cli.say(text)
