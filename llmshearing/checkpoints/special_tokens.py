"""The tokens that begin, end and pad a text, according to the files of a tokenizer."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer


def special_token_ids(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, of the tokens that exist.

    Args:
        config: tokenizer_config.json; a token is its text, or a mapping with the text as `content`.
    """
    found = {}
    for kind in ("bos", "eos", "pad"):
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if text is not None else None
        if number is not None:
            found[f"{kind}_token_id"] = number
    return found
