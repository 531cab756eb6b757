"""A tokenizer as preparation needs it: text to ids in batches, the ids around a document, its hash."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from llmshearing.datasets.manifest import Manifest

_SEPARATORS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TEXT|>",
    "<｜end▁of▁sentence｜>",
    "<EOS_TOKEN>",
    "</s>",
    "<eos>",
)
_SPECIAL = re.compile(r"<.+>|\[[A-Z_/]+\]", re.DOTALL)
_CHAT = re.compile(
    r"\bim_[a-z]|\beo[ahmt]\b|\beo[mt]_id|header_id|(?:start|end)_of_(?:turn|role)|end_?of_?turn"
    r"|(?:turn|role)_end|\[/?INST\]"
    r"|<\|/?(?:user|assistant|system|start|end|return|call|message|observation)\|>",
    re.IGNORECASE,
)

Encode = Callable[[list[str]], Iterable[Sequence[int]]]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, however it was stored; it can be pickled and sent to workers."""

    name: str
    """As the user gave it."""
    encode: Encode
    """Texts to token ids, without the ids around a document."""
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens shown."""
    vocabulary: dict[str, int]
    """Token to id."""
    prefix: tuple[int, ...]
    """Ids before each document."""
    suffix: tuple[int, ...]
    """Ids after each document."""
    definition: bytes
    """All that the ids of a text depend on, as the tokenizer's library stores it."""
    fix_mistral_regex: bool = False
    """Whether a faulty pre-tokenizer was replaced."""
    chosen: tuple[int, ...] = ()
    """Those of the tokens around a document that the user chose."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self.vocabulary.values()) + 1

    @property
    def dtype(self) -> str:
        """The smallest integer type that holds every id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"

    @property
    def sha256(self) -> str:
        """Hash of all that the ids of a document depend on."""
        around = json.dumps([self.prefix, self.suffix]).encode()
        return hashlib.sha256(self.definition + around).hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest records of it."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "vocabulary_sha256": self.vocabulary_sha256,
            "sha256": self.sha256,
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "prefix_tokens": self._tokens(self.prefix),
            "suffix_tokens": self._tokens(self.suffix),
            "fix_mistral_regex": self.fix_mistral_regex,
        }

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        tokens = {number: token for token, number in self.vocabulary.items() if number in ids}
        return [tokens.get(number, str(number)) for number in ids]

    def between(self, bos: str | None, eos: str | None) -> "TextTokenizer":
        """The same with these tokens before and behind each document; "": none, None: as it is.

        Raises:
            ValueError: for what is not a token.
        """
        if bos is None and eos is None:
            return self
        before = None if bos is None else self._id(bos)
        behind = None if eos is None else self._id(eos)
        return replace(
            self,
            prefix=self.prefix if before is None else before,
            suffix=self.suffix if behind is None else behind,
            chosen=(*(before or ()), *(behind or ())),
        )

    def _id(self, token: str) -> tuple[int, ...]:
        if not token:
            return ()
        if token not in self.vocabulary:
            near = difflib.get_close_matches(token, filter(_SPECIAL.fullmatch, self.vocabulary), 3, 0.3)
            known = f", it has {', '.join(near)}" if near else ""
            raise ValueError(f"tokenizer {self.name} has no token {token!r}{known}")
        return (self.vocabulary[token],)

    @property
    def chat_warning(self) -> str | None:
        """A warning where the tokenizer's own BOS or EOS, which nobody chose, mark turns of a chat."""
        found = [token for token in (*self.prefix, *self.suffix) if token not in self.chosen]
        markers = [token for token in self._tokens(found) if _CHAT.search(token)]
        if not markers:
            return None
        known = next((token for token in _SEPARATORS if token in self.vocabulary), None)
        return (
            f"tokenizer {self.name} puts {', '.join(markers)} around documents, which mark turns of a chat: "
            "base models are trained with another separator; set --document_separator"
            + (f" '{known}', which it has" if known else "")
        )

    @property
    def vocabulary_sha256(self) -> str:
        """Hash of all (id, token) pairs, the same for the same vocabulary wherever it is stored."""
        return _sha256(self.vocabulary)


def check_tokenizer(manifest: Manifest, tokenizer: TextTokenizer) -> None:
    """Raise ValueError unless the data was made with the vocabulary of this tokenizer."""
    made_with = manifest.tokenizer
    if made_with["vocabulary_sha256"] != tokenizer.vocabulary_sha256:
        raise ValueError(
            f"tokenizer {tokenizer.name} ({tokenizer.vocab_size} ids) has another vocabulary than the one "
            f"the data was made with, {made_with['name']} ({made_with['vocab_size']} ids): use that one, or "
            "prepare the data again"
        )


def is_made_with(manifest: Manifest, tokenizer_json: str) -> bool:
    """Whether the data was made with the vocabulary of a tokenizer.json, given as its text."""
    return manifest.tokenizer["vocabulary_sha256"] == vocabulary_sha256(tokenizer_json, "the model")


def vocabulary_sha256(tokenizer_json: str, source: str) -> str:
    """`TextTokenizer.vocabulary_sha256` of a tokenizer.json, given as its text.

    Args:
        source: what carries it, for messages.

    Raises:
        ValueError: when it is not a tokenizer.
    """
    try:
        vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab()
    except Exception as error:  # the library has no narrower exception
        raise ValueError(f"The tokenizer.json that {source} carries is not a tokenizer: {error}") from error
    return _sha256(vocabulary)


def _sha256(vocabulary: dict[str, int]) -> str:
    pairs = sorted((number, token) for token, number in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
