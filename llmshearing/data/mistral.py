"""The faulty pre-tokenizer of Mistral's converted tokenizers, and its replacement.

Conversions of Mistral's Tekken tokenizers (Nemo, Small 3, Pixtral and others) carry the regular
expression of another family, which keeps words such as "NaOH" and "eBay" whole where Tekken splits
them (huggingface.co/mistralai/Mistral-Small-3.1-24B-Instruct-2503/discussions/84). The expression is
right for the family it belongs to, so it takes more than that to know a faulty one.
"""

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

logger = logging.getLogger(__name__)

_REST = r"\p{N}| ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
FAULTY = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_REST}[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
RIGHT = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|{_REST}[\r\n/]*|{_SPACES}"
_TEKKEN = ("[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]")  # control tokens of all its versions
_KINDS = ("mistral", "mixtral", "ministral", "voxtral", "pixtral")  # how their model types begin
_LARGE = 100_000  # tokens; the families' other tokenizers are smaller, and sound


def fix(tokenizer: Tokenizer, folder: Path, wanted: bool | None) -> bool:
    """Replace the faulty expression where it is there and wanted; returns whether that was done.

    Args:
        tokenizer: changed in place.
        folder: where it came from; its config.json, if any, names the model's type.
        wanted: None: where the tokenizer is one of Mistral's.

    Raises:
        ValueError: where it is wanted, and the tokenizer has no such expression.
    """
    splits = json.loads(tokenizer.to_str()).get("pre_tokenizer") or {}
    parts = splits.get("pretokenizers", [splits])
    at = [i for i, part in enumerate(parts) if part.get("pattern", {}).get("Regex") == FAULTY]
    if not at:
        if wanted and not any(part.get("pattern", {}).get("Regex") == RIGHT for part in parts):
            raise ValueError(
                "--fix_mistral_regex is true, but it has neither the faulty expression nor the right one"
            )
        return False
    if wanted is None:
        wanted = _is_tekken(tokenizer, folder)
        if wanted:
            logger.info(
                "tokenizer %s: the faulty regular expression of Mistral's conversions is replaced; "
                "--fix_mistral_regex false keeps it",
                folder,
            )
    if wanted:
        right = pre_tokenizers.Split(Regex(RIGHT), behavior="isolated")
        if "pretokenizers" in splits:
            tokenizer.pre_tokenizer[at[0]] = right  # type: ignore[index]
        else:
            tokenizer.pre_tokenizer = right  # type: ignore[assignment]
    return wanted


def _is_tekken(tokenizer: Tokenizer, folder: Path) -> bool:
    """Whether this is one of Mistral's to mend: by what transformers wrote into its configuration, else by
    its control tokens, else by the model beside it.
    """
    stated = _read(folder / "tokenizer_config.json").get("fix_mistral_regex")
    if isinstance(stated, bool):
        return stated
    if all(tokenizer.token_to_id(token) is not None for token in _TEKKEN):
        return True
    kind = _read(folder / "config.json").get("model_type")
    return tokenizer.get_vocab_size() > _LARGE and isinstance(kind, str) and kind.startswith(_KINDS)


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers reports what is damaged
    return held if isinstance(held, dict) else {}
