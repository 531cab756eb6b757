"""A tokenizer.json with fewer tokens, whose output still has the same text: pure functions.

A text that the old tokenizer encoded with kept tokens alone is encoded with the same tokens; any other text
is encoded with more of them. For that, everything that a text may fall back to stays (bytes, or single
characters), and with a token of BPE all that it is merged from.
"""

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_KINDS = ("BPE", "Unigram")


class Trimmable:
    """A tokenizer.json whose vocabulary can be trimmed.

    Args:
        text: the file.
        source: where it comes from, for messages.

    Attributes:
        tokens: token by id, of the vocabulary and of added tokens.
        required: ids that stay in any case: added tokens, those around a text, the unknown one, and what
            every text falls back to.

    Raises:
        ValueError: for a kind of tokenizer that is not supported, or what is not a tokenizer.
    """

    def __init__(self, text: str, source: str) -> None:
        try:
            kind = type(Tokenizer.from_str(text).model).__name__
        except Exception as error:  # the library has no narrower exception
            raise ValueError(f"The tokenizer.json of {source} is not a tokenizer: {error}.") from error
        self._json = json.loads(text)
        self._model = model = self._json["model"]
        self._kind = kind
        odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
        if kind not in _KINDS or odd:
            found = f"with {odd[0]}" if odd else f"of kind {kind}"
            raise ValueError(
                f"The tokenizer of {source} is one {found}; a vocabulary of {' or '.join(_KINDS)} can be "
                "trimmed."
            )
        if kind == "BPE":
            vocabulary = dict(model["vocab"])
            pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
            self._merges = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
        else:
            vocabulary = {token: number for number, (token, _) in enumerate(model["vocab"])}
            self._merges = {}
        added = {token["content"]: token["id"] for token in self._json.get("added_tokens") or []}
        self.tokens = {number: token for token, number in (vocabulary | added).items()}
        self._numbers = vocabulary | added
        self._vocabulary = vocabulary
        self.required = set(added.values()) | {self._numbers[token] for token in self._fallbacks()}
        self.required |= set(_ids_around(self._json))
        if strange := sorted(self.required - set(self.tokens)):
            raise ValueError(
                f"The tokenizer of {source} puts id {strange[0]} around or behind a text, which no token has."
            )

    def _fallbacks(self) -> list[str]:
        """Tokens of which every text can be made, and the unknown token."""
        alone = _BYTE.fullmatch if self._model.get("byte_fallback") else lambda token: len(token) == 1
        unknown = self._model.get("unk_token")
        if self._model.get("unk_id") is not None:
            unknown = self._model["vocab"][self._model["unk_id"]][0]
        found = [token for token in self._vocabulary if alone(token)]
        return [*found, *([unknown] if unknown in self._numbers else [])]

    def parts(self, number: int) -> set[int]:
        """The ids that token `number` needs: its own and, of BPE, those that it is merged from."""
        token = self.tokens[number]
        if not self._merges or token not in self._vocabulary:
            return {number}
        symbols = list(token)
        needed = {token, *symbols}
        while len(symbols) > 1:
            ranks = [self._merges.get(pair, len(self._merges)) for pair in itertools.pairwise(symbols)]
            place = int(np.argmin(ranks))
            if ranks[place] == len(self._merges):
                break  # no merges lead to it: it is only found whole
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            needed.add(symbols[place])
        return {self._vocabulary[part] for part in needed if part in self._vocabulary}

    def check(self, keep: int) -> None:
        """Check that `keep` tokens can stay.

        Raises:
            ValueError: when fewer are to be kept than are required, or as many as there are.
        """
        if keep < len(self.required):
            raise ValueError(
                f"--keep is {keep}, fewer than the {len(self.required)} special, byte and single-character "
                f"tokens that must stay; give at least {len(self.required)}."
            )
        if keep >= len(self.tokens):
            raise ValueError(
                f"--keep is {keep}; the tokenizer has {len(self.tokens)} tokens: nothing would go."
            )

    def choose(self, counts: NDArray[np.int64], keep: int) -> list[int]:
        """The ids of `keep` tokens, ascending: those required, then those used most, then those of lowest id.

        Args:
            counts: how often each id is used.
            keep: a number that `check` accepts.
        """
        kept = set(self.required)
        used = counts.tolist() + [0] * (max(self.tokens) + 1 - len(counts))
        for number in sorted(self.tokens, key=lambda number: (-used[number], number)):
            if len(kept) == keep:
                break
            needed = kept | (self.parts(number) if number not in kept else set())
            if len(needed) <= keep:
                kept = needed
        return sorted(kept)

    def trimmed(self, kept: Sequence[int]) -> str:
        """The tokenizer.json of the kept tokens, which are numbered anew in their order."""
        number_of = {old: new for new, old in enumerate(kept)}
        result = copy.deepcopy(self._json)
        model = result["model"]
        stay = {token: number_of[old] for token, old in self._vocabulary.items() if old in number_of}
        if self._kind == "BPE":
            model["vocab"] = stay
            model["merges"] = [
                [left, right]
                for left, right in self._merges
                if left in stay and right in stay and left + right in stay
            ]
        else:
            model["vocab"] = [entry for entry in model["vocab"] if entry[0] in stay]
            if model.get("unk_id") is not None:
                model["unk_id"] = number_of[model["unk_id"]]
        result["added_tokens"] = [
            {**token, "id": number_of[token["id"]]} for token in result.get("added_tokens") or []
        ]
        if result.get("padding"):
            result["padding"]["pad_id"] = number_of[result["padding"]["pad_id"]]
        _renumber_processor(result.get("post_processor"), number_of)
        return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def count_tokens(
    texts: Iterable[str], encode: Callable[[list[str]], Iterable[Sequence[int]]]
) -> NDArray[np.int64]:
    """How often each id is used in texts; as long as the highest id needs."""
    counts = np.zeros(0, dtype=np.int64)
    for text in texts:
        for ids in encode([text]):
            found = np.bincount(np.asarray(ids, dtype=np.int64))
            if len(found) > len(counts):
                counts, found = found, counts
            counts[: len(found)] += found
    return counts


def renumbered_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """An HF config or generation config with its token ids renumbered; ids that are not kept become None."""
    number_of = {old: new for new, old in enumerate(kept)}

    def new(value: Any) -> Any:
        if isinstance(value, list):
            return [number_of[item] for item in value if isinstance(item, int) and item in number_of]
        return number_of.get(value) if isinstance(value, int) else value

    is_id = re.compile(r".*_token_ids?")
    return {key: new(value) if is_id.fullmatch(key) else value for key, value in config.items()}


def renumbered_tokenizer_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A tokenizer_config.json with the ids of its added tokens renumbered."""
    number_of = {str(old): str(new) for new, old in enumerate(kept)}
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        return dict(config)
    renumbered = {number_of[number]: token for number, token in decoder.items() if number in number_of}
    return {**config, "added_tokens_decoder": renumbered}


def _ids_around(tokenizer: Mapping[str, Any]) -> Iterator[int]:
    """The ids that padding and the post-processor add to a text."""
    if tokenizer.get("padding"):
        yield tokenizer["padding"]["pad_id"]
    waiting = [tokenizer.get("post_processor")]
    while waiting:
        processor = waiting.pop() or {}
        waiting += processor.get("processors") or []
        if isinstance(processor.get("special_tokens"), dict):
            yield from (number for token in processor["special_tokens"].values() for number in token["ids"])
        yield from (processor[key][1] for key in ("sep", "cls") if key in processor)


def _renumber_processor(processor: Any, number_of: Mapping[int, int]) -> None:
    """Renumber the ids in a post-processor, in place."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors") or []:
        _renumber_processor(inner, number_of)
    if isinstance(processor.get("special_tokens"), dict):
        for token in processor["special_tokens"].values():
            token["ids"] = [number_of[number] for number in token["ids"]]
    for key in ("sep", "cls"):
        if key in processor:
            processor[key] = [processor[key][0], number_of[processor[key][1]]]
