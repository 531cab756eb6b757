"""Any tokenizer as what preparation needs: text to ids in batches, the ids around a document, its hash."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmshearing.data.manifest import Manifest
from llmshearing.utils.special_tokens import special_token_ids

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.", "vocab", "spiece")  # how the names of those begin that hold a vocabulary

_ITS_FOLDER = "give the folder that holds it"
_FOLDER_OF = {
    ".gguf": "convert the model with save_hf_to_composer and save_composer_to_hf of "
    "llmshearing.utils.composer_to_hf, and give the folder that comes out"
}

Encode = Callable[[list[str]], Iterable[Sequence[int]]]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, however it was stored."""

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
        """What a manifest tells of it."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "vocabulary_sha256": self.vocabulary_sha256,
            "sha256": self.sha256,
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
        }

    @property
    def vocabulary_sha256(self) -> str:
        """Hash of all (id, token) pairs, the same for the same vocabulary wherever it is stored."""
        return _sha256(self.vocabulary)


def load_tokenizer(name: str) -> TextTokenizer:
    """A tokenizer from a folder with tokenizer.json, a SentencePiece `.model` file, or by its name.

    Every document is put between BOS and EOS, as far as the tokenizer has them. Where both are
    the same token (GPT-NeoX), it stands after the document only, as such models were trained.

    Raises ValueError if there is no such tokenizer, or it cannot be read.
    """
    path = Path(name)
    if path.is_file() and path.suffix != ".model":
        raise ValueError(f"tokenizer {name} is a file: {_FOLDER_OF.get(path.suffix, _ITS_FOLDER)}")
    try:
        if path.suffix == ".model":
            return _from_sentencepiece(name)
        return _from_folder(name, path) or _from_transformers(name)
    except Exception as error:  # each library has its own exceptions for what is no tokenizer
        raise ValueError(
            f"cannot load tokenizer {name!r} ({_reason(path, error)}): expected a folder with "
            "tokenizer.json, a SentencePiece .model file, or a name on the Hugging Face hub"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    """Why it cannot be loaded; what transformers says of a folder without a tokenizer is no help."""
    if path.is_dir() and not any(file.name.startswith(_TOKENIZER_FILES) for file in path.iterdir()):
        return "the folder holds no tokenizer.json, tokenizer.model or vocab file"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def check_tokenizer(manifest: Manifest, tokenizer: TextTokenizer) -> None:
    """Raise ValueError unless the data was made with this tokenizer's vocabulary."""
    made_with = manifest.tokenizer
    if made_with["vocabulary_sha256"] != tokenizer.vocabulary_sha256:
        raise ValueError(
            f"tokenizer {tokenizer.name} ({tokenizer.vocab_size} ids) has another vocabulary than the one "
            f"the data was made with, {made_with['name']} ({made_with['vocab_size']} ids): use that one, or "
            "prepare the data again"
        )


def is_made_with(manifest: Manifest, tokenizer_json: str) -> bool:
    """Whether the data was made with the vocabulary of a tokenizer.json, given as its text."""
    vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab()
    return manifest.tokenizer["vocabulary_sha256"] == _sha256(vocabulary)


def _sha256(vocabulary: dict[str, int]) -> str:
    pairs = sorted((number, token) for token, number in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _around(bos: int | None, eos: int | None) -> dict[str, tuple[int, ...]]:
    return {
        "prefix": () if bos is None or bos == eos else (bos,),
        "suffix": () if eos is None else (eos,),
    }


def _from_folder(name: str, folder: Path) -> TextTokenizer | None:
    """A tokenizer whose files say all that transformers would find out, which takes seconds to import.

    None where they do not: a special token that is the default of a class, or new to the vocabulary.
    """
    files = [folder / file for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
    if not (files[0].is_file() and files[1].is_file()):
        return None
    config = json.loads(files[1].read_text(encoding="utf-8"))
    more = json.loads(files[2].read_text(encoding="utf-8")) if files[2].is_file() else {}
    backend = Tokenizer.from_file(str(files[0]))
    ids = special_token_ids(backend, config)
    for kind in ("bos_token", "eos_token"):
        told = kind in config or (_is_generic(config) and not (folder / "config.json").exists())
        named = config.get(kind) is not None
        if not told or named != (f"{kind}_id" in ids) or more.get(kind, config.get(kind)) != config.get(kind):
            return None
    return _from_backend(name, backend, ids.get("bos_token_id"), ids.get("eos_token_id"))


def _is_generic(config: dict[str, Any]) -> bool:
    """Whether a tokenizer is of no class that has special tokens of its own."""
    return config.get("tokenizer_class") in (None, "PreTrainedTokenizerFast")


def _from_backend(name: str, backend: Tokenizer, bos: int | None, eos: int | None) -> TextTokenizer:
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: list[str]) -> Iterable[Sequence[int]]:
        return (encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))

    def decode(ids: Sequence[int]) -> str:
        return backend.decode(list(ids), skip_special_tokens=False)

    definition = backend.to_str().encode()
    return TextTokenizer(
        name, encode, decode, backend.get_vocab(), **_around(bos, eos), definition=definition
    )


def _from_transformers(name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.is_fast:
        return _from_backend(
            name, tokenizer.backend_tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id
        )
    logger.warning("tokenizer %s has no fast version: tokenizing will be slow", name)

    def encode(texts: list[str]) -> Iterable[Sequence[int]]:
        return tokenizer(texts, add_special_tokens=False).input_ids

    around = _around(tokenizer.bos_token_id, tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    definition = json.dumps([type(tokenizer).__name__, vocabulary], sort_keys=True).encode()
    return TextTokenizer(name, encode, tokenizer.decode, vocabulary, **around, definition=definition)


def _from_sentencepiece(name: str) -> TextTokenizer:
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor(model_file=name)
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    bos, eos = (i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id()))
    definition = Path(name).read_bytes()
    around = _around(bos, eos)
    return TextTokenizer(
        name, processor.encode, processor.decode, vocabulary, **around, definition=definition
    )
