"""The tokenizer in a GGUF file, as tokenizer.json and tokenizer_config.json."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmshearing.checkpoints.travelling import PLAIN_CLASS

logger = logging.getLogger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPECIAL = {  # HF's names: GGUF's
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",  # spelt so in the format
    "cls": "cls",
    "mask": "mask",
}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN_2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is split before merges, by the name that the file gives (tokenizer.ggml.pre).
_GPT_2 = ("gpt-2", "default", "phi-2")
_GPT_2_NFC = ("olmo", "mpt")
_DIGITS = ("smollm", "starcoder", "refact")
_WHOLE_WORDS_FIRST = {"llama-bpe": _LLAMA_3, "llama3": _LLAMA_3, "llama-v3": _LLAMA_3, "tekken": _TEKKEN}
_BY_REGEX = {**_WHOLE_WORDS_FIRST, "qwen2": _QWEN_2, "deepseek-r1-qwen": _QWEN_2}
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "tekken")


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the special tokens that a file's metadata names, by `bos`, `eos`, `unk`, `pad` and so on.

    Raises:
        ValueError: when an id does not belong to a token.
    """
    count = len(fields.get("tokenizer.ggml.tokens") or [])
    found = {"bos": 1, "eos": 2, "unk": 0} if fields.get("tokenizer.ggml.model") == "llama" else {}
    for ours, theirs in _SPECIAL.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        number = fields.get(key, found.get(ours))
        if number is None:
            continue
        if not (isinstance(number, int) and 0 <= number < (count or 2**31)):
            raise ValueError(f"{key} is {number}; the file has {count} tokens.")
        found[ours] = number
    return found


def tokenizer_files(fields: Mapping[str, Any], source: Path) -> dict[str, str | bytes]:
    """tokenizer.json and tokenizer_config.json; {} with a warning for an unknown kind of tokenizer.

    Raises:
        ValueError: when the metadata of the tokenizer is inconsistent.
    """
    tokens, types = (fields.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    known = kind == "llama" or (kind == "gpt2" and pre in (*_GPT_2, *_GPT_2_NFC, *_DIGITS, *_BY_REGEX))
    if not tokens or not known or len(set(tokens)) < len(tokens):
        reason = (
            "holds no tokenizer"
            if not tokens
            else f"has a tokenizer of kind {kind!r} with splitting {pre!r}, which is not supported"
            if not known
            else "holds the same token more than once"
        )
        logger.warning(
            "%s %s: the model is converted without one; copy the tokenizer files of the source model to "
            "the folder that is exported",
            source,
            reason,
        )
        return {}
    if kind == "gpt2" and pre == "default":
        logger.warning("%s does not say how its text is split into words: GPT-2's rule is used", source)
    types = types or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"{source} has {len(tokens)} tokens and {len(types)} types of tokens.")
    try:
        tokenizer = _sentencepiece(fields, tokens, types) if kind == "llama" else _bytes(fields, tokens, pre)
    except Exception as error:  # the library has no narrower exception
        raise ValueError(f"{source} has an inconsistent tokenizer: {error}") from error
    for number, (token, of_type) in enumerate(zip(tokens, types, strict=True)):
        if of_type in (_CONTROL, _UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif of_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{source}: token {number} ({token!r}) became {tokenizer.token_to_id(token)}.")
    config = _config(fields, tokens)
    _put_around(tokenizer, config)
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def _config(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens of the file, by their texts."""
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    config: dict[str, Any] = dict(PLAIN_CLASS)
    config |= {f"{name}_token": tokens[number] for name, number in special_ids(fields).items()}
    bos = kind == "llama" or pre in _BOS_BY_DEFAULT
    config["add_bos_token"] = bool(fields.get("tokenizer.ggml.add_bos_token", bos))
    config["add_eos_token"] = bool(fields.get("tokenizer.ggml.add_eos_token", False))
    config["clean_up_tokenization_spaces"] = False
    context = fields.get(f"{fields.get('general.architecture')}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    templates = {
        key.removeprefix("tokenizer.chat_template").lstrip(".") or "default": text
        for key, text in fields.items()
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    }
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config


def _put_around(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Make the tokenizer add BOS and EOS where the file says so."""
    before = [config["bos_token"]] if config["add_bos_token"] and "bos_token" in config else []
    after = [config["eos_token"]] if config["add_eos_token"] and "eos_token" in config else []
    if not (before or after):
        return
    first, second = ([*before, f"${text}", *after] for text in "AB")
    around = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=first, pair=[*first, *(f"{part}:1" for part in second)], special_tokens=around
    )  # type: ignore[assignment]


def _bytes(fields: Mapping[str, Any], tokens: list[str], pre: str) -> Tokenizer:
    """Byte-level BPE: GPT-2 and its successors."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges") or []]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _BY_REGEX)
    steps: list[Any] = [to_bytes]
    if pre in _BY_REGEX:
        steps.insert(0, pre_tokenizers.Split(Regex(_BY_REGEX[pre]), "isolated"))
    elif pre in _DIGITS:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    if pre in _GPT_2_NFC or _BY_REGEX.get(pre) == _QWEN_2:
        tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE: pairs merge in the order of the scores of their results, highest first."""
    scores = fields.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ValueError(f"it has {len(tokens)} tokens and {len(scores)} scores")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    normal = {token for token, of_type in zip(tokens, types, strict=True) if of_type == _NORMAL}
    pairs = [
        (-scores[vocabulary[token]], vocabulary[token[:cut]], vocabulary[token[cut:]])
        for token in normal
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(pairs)]
    unknown = tokens[special_ids(fields)["unk"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    before = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])  # type: ignore[assignment]
    return tokenizer
