"""Tokenizers read from folders, files and names on the hub: each as a `TextTokenizer`."""

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from llmshearing.data import mistral
from llmshearing.data.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.", "vocab", "spiece")  # how the names of those begin that hold a vocabulary

_ITS_FOLDER = "give the folder that holds it"
_FOLDER_OF = {
    ".gguf": "convert the model with `llmshearing convert` and `llmshearing export`, and give the "
    "folder that comes out"
}


def load_tokenizer(name: str, fix_mistral_regex: bool | None = None) -> TextTokenizer:
    """A tokenizer as transformers loads it, from a folder or by its name, or a SentencePiece `.model` file.

    Every document is put between BOS and EOS, as far as the tokenizer has them. Where both are
    the same token (GPT-NeoX), it stands after the document only, as such models were trained.

    Args:
        name: folder, file or name.
        fix_mistral_regex: whether to replace the faulty pre-tokenizer of Mistral's converted tokenizers;
            None: where it is one of them.

    Raises:
        ValueError: if there is no such tokenizer, or it cannot be read.
    """
    path = Path(name)
    if path.is_file() and path.suffix != ".model":
        raise ValueError(f"tokenizer {name} is a file: {_FOLDER_OF.get(path.suffix, _ITS_FOLDER)}")
    if _is_name(path):
        logger.info("no folder %s here: asking the Hugging Face hub for a tokenizer of that name", name)
    try:
        if path.suffix == ".model":
            if fix_mistral_regex:
                raise ValueError("--fix_mistral_regex is true, but it has no regular expression")
            loaded = _from_sentencepiece(name)
        else:
            loaded = _from_transformers(name, fix_mistral_regex)
        if not loaded.vocabulary:
            raise ValueError("its vocabulary is empty")
        return loaded
    except Exception as error:  # each library has its own exceptions for what is not a tokenizer
        raise ValueError(
            f"cannot load tokenizer {name!r} ({_reason(path, error)}): expected a folder with "
            "tokenizer.json, a SentencePiece .model file, or a name on the Hugging Face hub"
        ) from error


def _is_name(path: Path) -> bool:
    """Whether nothing of this name exists here, so that it may be a name on the hub."""
    return not path.exists() and path.suffix != ".model"


def _reason(path: Path, error: Exception) -> str:
    """Why it cannot be loaded, where what transformers says of a folder is no help."""
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    if _is_name(path):
        return f"there is no such folder here, and as a name on the hub: {reason}"
    if not path.is_dir():
        return reason
    files = sorted(path.iterdir())
    if not any(file.name.startswith(_TOKENIZER_FILES) for file in files):
        return "the folder holds no tokenizer.json, tokenizer.model or vocab file"
    for file in files:
        if file.suffix == ".json" and (problem := _json_problem(file)):
            return f"{file.name} is not JSON: {problem}"
    models = [file for file in files if file.suffix == ".model"]
    if models and not any(file.suffix == ".json" for file in files):
        return f"the folder has no configuration of its {models[0].name}: give that file, {models[0]}"
    return reason


def _json_problem(file: Path) -> str | None:
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _from_transformers(name: str, fix_mistral_regex: bool | None) -> TextTokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.json")):  # transformers 5 would guess a class
        raise ValueError("nothing in the folder names the class of its tokenizer")
    # Where a folder does not name its class, transformers guesses one from the folder's name.
    chosen = PreTrainedTokenizerFast if _has_no_class(folder) else AutoTokenizer
    # Without trust_remote_code, it would ask on the terminal whether to run code of the folder. Its own
    # test for Mistral's pre-tokenizer warns of most sound folders, and misses those without a config.json.
    options = {"trust_remote_code": False, "fix_mistral_regex": False, **_in_both_versions(folder)}
    tokenizer = chosen.from_pretrained(name, **options)
    tokenizer.init_kwargs.pop("fix_mistral_regex", None)
    around = _around(tokenizer.bos_token_id, tokenizer.eos_token_id)
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        # A class without rules of its own takes those of the file.
        stored = None if type(tokenizer) is PreTrainedTokenizerFast else _tokenizer_json(name)
        if stored is not None and _rules(backend) != _rules(Tokenizer.from_file(str(stored))):
            logger.warning(
                "tokenizer %s: %s of transformers %s replaces the rules of its tokenizer.json, which the "
                "model was trained with. The ids are those of tokenizer.json, as PreTrainedTokenizerFast "
                "gives them",
                name,
                type(tokenizer).__name__,
                version("transformers"),
            )
            backend = _plainly(name, options)
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            logger.warning("tokenizer %s drops merges at random (dropout): data is made without", name)
            backend.model.dropout = None
        fixed = mistral.fix(backend, folder, fix_mistral_regex)
        return TextTokenizer(
            name,
            partial(_encode_fast, backend),
            partial(_decode_fast, backend),
            backend.get_vocab(),
            **around,
            definition=backend.to_str().encode(),
            fix_mistral_regex=fixed,
        )
    logger.warning("tokenizer %s has no fast version: tokenizing will be slow", name)
    return TextTokenizer(
        name,
        partial(_encode_slow, tokenizer),
        tokenizer.decode,
        tokenizer.get_vocab(),
        **around,
        definition=_all_files(tokenizer),
    )


def _has_no_class(folder: Path) -> bool:
    """Whether a folder holds a tokenizer.json and nothing that names a class with rules of its own.

    TokenizersBackend, as transformers 5 calls the class that takes all from tokenizer.json, is unknown to 4.
    """
    if not (folder / "tokenizer.json").is_file():
        return False
    named = _tokenizer_config(folder).get("tokenizer_class")
    return named == "TokenizersBackend" or (named is None and not (folder / "config.json").exists())


def _in_both_versions(folder: Path) -> dict[str, Any]:
    """Arguments that replace what transformers 5 writes into a tokenizer_config.json and 4 cannot read."""
    tokens = _tokenizer_config(folder).get("extra_special_tokens")
    if not isinstance(tokens, list):
        return {}
    return {"extra_special_tokens": {}, "additional_special_tokens": tokens}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    config = folder / "tokenizer_config.json"
    held = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return held if isinstance(held, dict) else {}


def _tokenizer_json(name: str) -> Path | None:
    """The tokenizer.json of a folder, or of a name on the hub that has been loaded."""
    if Path(name).exists():
        file = Path(name) / "tokenizer.json"
    else:
        cached = try_to_load_from_cache(name, "tokenizer.json")
        file = Path(cached) if isinstance(cached, str) else None
    return file if file is not None and file.is_file() else None


def _rules(backend: Tokenizer) -> dict[str, Any]:
    """What the ids of a text depend on beside the vocabulary.

    Without `add_prefix_space`, which tokenizer_config.json may decide.
    """
    held = json.loads(backend.to_str())
    # What is not set may be null, false or "".
    model = {k: v for k, v in held["model"].items() if v and k not in ("vocab", "merges", "dropout")}
    splits = held["pre_tokenizer"]
    if splits and splits["type"] == "ByteLevel":
        splits = {key: value for key, value in splits.items() if key != "add_prefix_space"}
    return {"model": model, "normalizer": held["normalizer"], "pre_tokenizer": splits}


def _plainly(name: str, options: dict[str, Any]) -> Tokenizer:
    """The tokenizer with the rules of its tokenizer.json, and the tokens that its configuration adds."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging as messages

    verbosity = messages.get_verbosity()
    messages.set_verbosity_error()  # it warns that this is not the class that the folder names
    try:
        return PreTrainedTokenizerFast.from_pretrained(name, **options).backend_tokenizer
    finally:
        messages.set_verbosity(verbosity)


def _encode_fast(backend: Tokenizer, texts: list[str]) -> Iterable[Sequence[int]]:
    return (encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))


def _decode_fast(backend: Tokenizer, ids: Sequence[int]) -> str:
    return backend.decode(list(ids), skip_special_tokens=False)


def _encode_slow(tokenizer: Any, texts: list[str]) -> Iterable[Sequence[int]]:
    return tokenizer(texts, add_special_tokens=False).input_ids


def _all_files(tokenizer: Any) -> bytes:
    """What transformers saves of a tokenizer that is not one file."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return b"".join(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() for path in files)


def _from_sentencepiece(name: str) -> TextTokenizer:
    from sentencepiece import SentencePieceProcessor

    load: Any = SentencePieceProcessor  # some releases have no type of its arguments
    processor = load(model_file=name)
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    bos, eos = (i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id()))
    definition = Path(name).read_bytes()
    around = _around(bos, eos)
    return TextTokenizer(
        name, processor.encode, processor.decode, vocabulary, **around, definition=definition
    )


def _around(bos: int | None, eos: int | None) -> dict[str, Any]:
    return {
        "prefix": () if bos is None or bos == eos else (bos,),
        "suffix": () if eos is None else (eos,),
    }
