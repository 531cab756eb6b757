"""Conversations as tokens, and which of the tokens the assistant says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmshearing import cli
from llmshearing.data.patience import tokenized, within
from llmshearing.files import first_line
from llmshearing.tuning.conversations import Conversation

IGNORED = -100
RENDERING_SECONDS = 60.0  # that a template may take for a conversation
_SYSTEM = "{% set s = messages[0].role == 'system' %}"
# Templates for tokenizers that have none. Each ends an answer with the tokenizer's own end of text, so that a
# base model needs no new token.
TEMPLATES = {
    # The form in which the instruction-tuned Sheared-LLaMA models are asked.
    "sheared": _SYSTEM + "{{ (messages[0].content if s else 'You are a helpful assistant. Write a response "
    "that appropriately completes the request.') + '\n\n' }}{% for m in messages[(1 if s else 0):] %}"
    "{% if m.role == 'user' %}{{ '### Input:\n' + m.content + '\n\n### Response:\n' }}"
    "{% else %}{{ m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}",
    "vicuna": _SYSTEM + "{{ (messages[0].content if s else 'A chat between a curious user and an artificial "
    "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s "
    "questions.') }}{% for m in messages[(1 if s else 0):] %}"
    "{% if m.role == 'user' %}{{ ' USER: ' + m.content + ' ASSISTANT: ' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + "
    "(eos_token if m.role == 'assistant' and eos_token != '<|im_end|>' else '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


@dataclass(frozen=True)
class Example:
    """A conversation as tokens: `input_ids`, and `labels`, which are IGNORED where the user speaks."""

    input_ids: list[int]
    labels: list[int]


def with_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template.

    Args:
        name: of TEMPLATES, a file of Jinja, or None: its own.

    Raises:
        ValueError: when it has none and none is named, or there is no such template.
        FileNotFoundError: when the file is missing.
    """
    if name is None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer has no chat template: name one, template={next(iter(TEMPLATES))} "
                f"(there are {', '.join(TEMPLATES)}), or give a file of Jinja."
            )
    elif name in TEMPLATES:
        if not tokenizer.eos_token:
            raise ValueError(f"The tokenizer has no eos_token, with which template={name} ends an answer.")
        tokenizer.chat_template = TEMPLATES[name]
    elif Path(name).is_file():
        tokenizer.chat_template = _read(Path(name))
    else:
        raise ValueError(
            f"template is {name}, which is neither a file nor one of {', '.join(TEMPLATES)}"
            f"{cli.nearest(name, TEMPLATES)}"
        )
    return tokenizer


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"template is {path}, which is not text in UTF-8 ({error}).") from error


def encode(tokenizer: PreTrainedTokenizerBase, turns: Conversation, max_length: int) -> Example | None:
    """A conversation as tokens; None when no token of the assistant is among the first `max_length`.

    What the assistant says is what the template adds for its turn to the prompt for it, up to the end of its
    turn: its text and the token that ends it. A token counts if it lies in there whole.

    Raises:
        ValueError: when the template fails, or changes earlier turns as a conversation goes on.
    """
    text = _render(tokenizer, turns)
    spans = [
        _span(tokenizer, turns, index, text)
        for index, turn in enumerate(turns)
        if turn["role"] == "assistant"
    ]
    encoded = _tokens(tokenizer, text, return_offsets_mapping=True, truncation=True, max_length=max_length)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [
        token if any(begin <= first and last <= end and first < last for begin, end in spans) else IGNORED
        for token, (first, last) in zip(ids, offsets, strict=True)
    ]
    return Example(list(ids), labels) if any(label != IGNORED for label in labels) else None


def _render(tokenizer: PreTrainedTokenizerBase, turns: Conversation, prompt: bool = False) -> str:
    """A conversation as the template writes it.

    Raises:
        ValueError: when the template fails, or does not end.
    """

    def render() -> Any:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)

    try:
        return within(render, RENDERING_SECONDS)
    except Exception as error:  # a template is a program, which may raise anything
        said = " ".join(str(turns[-1]["content"]).split())[:60] if turns else ""
        raise ValueError(
            f"The chat template cannot write a conversation that ends with {said!r} "
            f"({type(error).__name__}: {first_line(error)[:200]}): name another with template=, or take such "
            "conversations out."
        ) from error


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
    """What the tokenizer makes of a conversation."""
    where = f"the conversation that begins with {text[:60]!r}"
    return tokenized(
        lambda: tokenizer(text, add_special_tokens=False, **options), len(text), where, "of the model"
    )


def _span(tokenizer: PreTrainedTokenizerBase, turns: Conversation, index: int, text: str) -> tuple[int, int]:
    """Where in `text` the assistant's turn `index` begins and ends."""
    before = _render(tokenizer, turns[:index], prompt=True)
    after = _render(tokenizer, turns[: index + 1])
    if not (after.startswith(before) and text.startswith(after)):
        raise ValueError(
            "The chat template writes earlier turns differently when a conversation goes on, so that what "
            "the assistant says cannot be told from the rest: name another with template=."
        )
    return len(before), len(after.rstrip())


def prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: Conversation) -> list[int]:
    """The tokens after which the model is to answer."""
    return _tokens(tokenizer, _render(tokenizer, turns, prompt=True))["input_ids"]


def last_token(examples: Sequence[Example]) -> int:
    """The token with which answers end: the last label of most examples."""
    ends = [next(label for label in reversed(each.labels) if label != IGNORED) for each in examples]
    return max(set(ends), key=ends.count)
