"""Conversations from files: ShareGPT's form and `messages`, read leniently and counted.

    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

A file holds one record a line, or one JSON list of records.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_FORMS = (("conversations", "from", "value"), ("messages", "role", "content"))
_HALF = re.compile("[\ud800-\udfff]")  # which JSON can hold and no text in UTF-8
Turn = dict[str, str]
Conversation = list[Turn]


@dataclass
class Read:
    """Conversations that were read, and how many records were bad, by reason.

    Attributes:
        examples: for each reason, where the first such record is.
    """

    conversations: list[Conversation] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        """Count a bad record."""
        self.bad[reason] += 1
        self.examples.setdefault(reason, where)

    def in_words(self) -> str:
        """How many were read and how many are bad, with reasons and places."""
        total = len(self.conversations) + self.bad.total()
        said = f"{len(self.conversations):,} of {total:,} conversations can be used"
        reasons = [
            f"{count:,} {reason} (first: {self.examples[reason]})" for reason, count in self.bad.items()
        ]
        return said + ("; skipped: " + ", ".join(reasons) if reasons else "")

    def check(self, max_bad: float) -> None:
        """Check that not too many are bad, and that there are any.

        Raises:
            ValueError: otherwise.
        """
        total = len(self.conversations) + self.bad.total()
        if not self.conversations or self.bad.total() > max_bad * total:
            raise ValueError(
                f"{self.in_words()}; at most {max_bad:.0%} may be bad: correct the files, or set max_bad."
            )


def read(paths: Sequence[Path], turns: int) -> Read:
    """Read files.

    Args:
        turns: rounds of user and assistant to keep of each; 0: all.

    Raises:
        OSError: when a file cannot be read.
        ValueError: when a file is a JSON text but no list.
    """
    found = Read()
    for path in paths:
        for where, record in _records(path, found):
            try:
                found.conversations.append(first_rounds(conversation(record), turns))
            except ValueError as error:
                found.skip(str(error), where)
    return found


def conversation(record: Any) -> Conversation:
    """The turns of a record: an optional system turn, then user and assistant in turn, the assistant last.

    What the user says after the last answer is left out.

    Raises:
        ValueError: with the reason, when there is no such conversation.
    """
    turns = _turns(record)
    rest = turns[1:] if turns and turns[0]["role"] == "system" else turns
    for index, turn in enumerate(rest):
        expected = ("user", "assistant")[index % 2]
        if turn["role"] != expected:
            raise ValueError("in which user and assistant do not take turns, the user first")
        if not turn["content"].strip():
            raise ValueError(f"with an empty turn of the {turn['role']}")
    if len(rest) < 2:
        raise ValueError("without a turn of the assistant")
    return turns[: len(turns) - len(rest) % 2]


def first_rounds(turns: Conversation, rounds: int) -> Conversation:
    """The system turn and the first rounds of user and assistant; all for 0."""
    system = int(turns[0]["role"] == "system")
    return turns[: system + 2 * rounds] if rounds else turns


def _turns(record: Any) -> Conversation:
    for key, role_key, text_key in _FORMS:
        turns = record.get(key) if isinstance(record, dict) else None
        if not isinstance(turns, list):
            continue
        found = []
        for turn in turns:
            role = turn.get(role_key) if isinstance(turn, dict) else None
            text = turn.get(text_key) if isinstance(turn, dict) else None
            if not isinstance(text, str) or not isinstance(role, str):
                raise ValueError(f"with a turn that is not {role_key} and {text_key}")
            if role not in ROLES:
                raise ValueError("with a role other than user, assistant and system")
            if _HALF.search(text):
                raise ValueError("with half a character (a lone surrogate)")
            found.append({"role": ROLES[role], "content": text})
        return found
    raise ValueError("with neither conversations nor messages")


def _records(path: Path, found: Read) -> Iterator[tuple[str, Any]]:
    """Records of a file and where each is; lines that are not JSON are counted."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("["):
        try:
            yield from (
                (f"{path}, record {number}", record) for number, record in _numbered(json.loads(text))
            )
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} begins as a JSON list but is not one ({error}).") from error
        return
    for number, line in _numbered(text.splitlines()):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                found.skip("that are not JSON", f"{path}, line {number}")
                continue
            yield f"{path}, line {number}", record


def _numbered(items: Iterable[Any]) -> Iterable[tuple[int, Any]]:
    return enumerate(items, 1)
