"""The tokens that begin, end and fill a text, as the files of a tokenizer tell them."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer


def special_token_ids(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as there are such tokens.

    Args:
        config: of tokenizer_config.json: a token's text, or a description with the text as `content`.
    """
    found = {}
    for kind in ("bos", "eos", "pad"):
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if text is not None else None
        if number is not None:
            found[f"{kind}_token_id"] = number
    return found
