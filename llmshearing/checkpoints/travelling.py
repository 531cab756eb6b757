"""The files that travel with weights: config and tokenizer, from a folder or from a checkpoint's record.

A record may come from anywhere, and an export writes its content to disk again. This is the only door: it
accepts known names, valid text, JSON objects, and nothing that points to code.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.shapes.families import FAMILIES, hf_class_name

logger = logging.getLogger(__name__)

CONFIG = "config.json"
_TOKENIZER = "tokenizer_config.json"
_OBJECTS = (  # JSON objects
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    _TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
)
_BINARY = ("tokenizer.model",)
TRAVELLING = (*_OBJECTS, *_BINARY, "merges.txt", "chat_template.jinja")
_CONFIGS = (CONFIG, "generation_config.json", _TOKENIZER)
PLAIN_CLASS = {  # reads any tokenizer.json; its default inputs include token types, which no decoder takes
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
}
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
_KERNELS = ("attn_implementation", "_attn_implementation")  # a name with a slash is code on the hub


def read_travelling(folder: Path) -> dict[str, str | bytes]:
    """Config and tokenizer files of an HF folder, by name; bytes for binary formats, else text.

    Raises:
        ValueError: when the content of one does not match its name.
    """
    names = [name for name in TRAVELLING if (folder / name).is_file()]
    return checked({name: (folder / name).read_bytes() for name in names}, folder)


def checked(files: Any, source: str | Path) -> dict[str, str | bytes]:
    """`files` as they may be passed on: known names, valid contents, without pointers to code.

    Args:
        files: contents by name; text may be given as bytes.
        source: where they come from, for messages.

    Raises:
        ValueError: for an unknown name, or content that does not match the name.
    """
    if not isinstance(files, Mapping):
        raise ValueError(f"{source} carries a {type(files).__name__} as hf_files; expected files by name.")
    for name in files:
        if name not in TRAVELLING:
            raise ValueError(
                f"{source} carries a file named {str(name)[:100]!r}; only {', '.join(TRAVELLING)} are "
                "accepted. Nothing was written: do not use it if you do not know where it comes from."
            )
    texts = {name: _content(name, content, source) for name, content in files.items()}
    for name in _CONFIGS:
        if name in texts:
            texts[name] = _without_code(name, texts, source)
    if _TOKENIZER in texts:
        texts[_TOKENIZER] = _in_older_spelling(texts, source)
    return texts


def parse_config(text: str | bytes, source: str | Path) -> dict[str, Any]:
    """The dict that a config.json holds.

    Raises:
        ValueError: when it is not a JSON object.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{source} holds a {type(config).__name__}; expected an object.")
    return config


def with_config(files: Mapping[str, str | bytes], config: Mapping[str, Any]) -> dict[str, str | bytes]:
    """`files` with `config` as their HF config."""
    return {**files, CONFIG: json.dumps(dict(config), indent=2) + "\n"}


def _content(name: str, content: Any, source: str | Path) -> str | bytes:
    where = f"{source}: {name}"
    if not isinstance(content, str | bytes):
        raise ValueError(f"{where} is a {type(content).__name__}; expected the content of a file.")
    if name in _BINARY:
        return content if isinstance(content, bytes) else content.encode("utf-8")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        text.encode("utf-8")  # fails for lone surrogates, which a text may hold and a file may not
    except UnicodeError as error:
        raise ValueError(f"{where} is not text in UTF-8 ({error}).") from error
    if name in _OBJECTS:
        parse_config(text, where)
    return text


def _without_code(name: str, files: Mapping[str, str | bytes], source: str | Path) -> str | bytes:
    """One of the configs without the keys that make a reader look for code that is not there."""
    config = parse_config(files[name], f"{source}: {name}")
    if not isinstance(config.get("model_type"), str | None):
        raise ValueError(
            f"{source}: {name}: model_type is {str(config['model_type'])[:100]}; expected a text, such as "
            "'llama': correct it there."
        )
    kernels = [key for key in _KERNELS if "/" in str(config.get(key))]
    dropped = [key for key in (*_CODE, *kernels) if key in config]
    kept = {key: value for key, value in config.items() if key not in dropped}
    if _unknown(kept.get("architectures")) and kept.get("model_type") in FAMILIES:
        dropped.append("architectures")
        kept["architectures"] = [hf_class_name(kept["model_type"])]
    foreign = _unknown(kept.get("tokenizer_class"), also="TokenizersBackend")
    if foreign and "tokenizer.json" in files:
        dropped.append("tokenizer_class")
        kept = {**kept, **PLAIN_CLASS}
    elif foreign:
        logger.warning(
            "%s: %s: tokenizer_class %s is code that does not travel with the weights, and there is no "
            "tokenizer.json: transformers will load no tokenizer from the result; set tokenizer_name",
            source,
            name,
            json.dumps(kept["tokenizer_class"])[:100],
        )
    if not dropped:
        return files[name]
    logger.warning(
        "%s: %s: %s pointed to code that does not travel with the weights: removed, or replaced by the class "
        "of transformers",
        source,
        name,
        ", ".join(f"{key} ({json.dumps(config[key])[:100]})" for key in dropped),
    )
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


def _in_older_spelling(files: Mapping[str, str | bytes], source: str | Path) -> str | bytes:
    """tokenizer_config.json with what transformers 5 alone reads spelt as both versions read it."""
    config = parse_config(files[_TOKENIZER], f"{source}: {_TOKENIZER}")
    changed = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend" and "tokenizer.json" in files:
        changed = {**changed, **PLAIN_CLASS}
    if isinstance(config.get("extra_special_tokens"), list):
        changed.setdefault("additional_special_tokens", changed.pop("extra_special_tokens"))
    return (
        files[_TOKENIZER] if changed == config else json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    )


def _unknown(classes: Any, also: str | None = None) -> bool:
    """Whether class names are given of which transformers lacks one; `also` counts as one that it has."""
    import transformers

    names = [classes] if isinstance(classes, str) else classes
    return isinstance(names, list) and any(name not in (*dir(transformers), also) for name in names)
