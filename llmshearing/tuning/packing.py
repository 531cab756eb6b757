"""Several conversations in a row of tokens, best fit decreasing."""

import bisect
from collections.abc import Sequence
from typing import Any

from llmshearing.tuning.templates import IGNORED, Example


def pack(examples: Sequence[Example], length: int) -> list[dict[str, Any]]:
    """Rows of at most `length` tokens: input_ids, labels, and seq_lengths, the tokens of each conversation.

    The first token of a conversation has no label: the one before it is another's.
    """
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # tokens left in a row, and its number; sorted
    for example in sorted(examples, key=lambda each: len(each.input_ids), reverse=True):
        size = len(example.input_ids)
        place = bisect.bisect_left(room, (size, -1))
        left, number = room.pop(place) if place < len(room) else (length, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(example)
        bisect.insort(room, (left - size, number))
    return [_row(row) for row in rows]


def unpacked(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """A row for each conversation, in the same form."""
    return [_row([example]) for example in examples]


def _row(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "input_ids": [token for each in examples for token in each.input_ids],
        "labels": [label for each in examples for label in [IGNORED, *each.labels[1:]]],
        "seq_lengths": [len(each.input_ids) for each in examples],
    }
