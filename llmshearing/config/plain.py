"""YAML whose scalars stay as they were written until it is known what they are to be.

YAML 1.1 takes `no` for false, `1e5` for a number, `2024_11` for 202411 and `2024-11-01` for a date. Here
every scalar without quotes is read as a `Plain` text. The type of its key decides what it is (`strict.py`);
where a key may hold anything, `typed` says what YAML would take it for.
"""

import re
from typing import Any

import yaml

MOST_VALUES = 100_000
"""Values that a configuration may hold, whatever its aliases and references repeat."""

_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.[\d_]+([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN)"
)
_RESOLVER = yaml.resolver.Resolver()


class Plain(str):
    """A scalar of a YAML file without quotes, as it was written."""

    __slots__ = ()


def parse(text: str) -> Any:
    """What YAML text holds: dicts with text keys, lists, None, `Plain` texts, and `str` for quoted ones.

    Raises:
        yaml.YAMLError: when it is not YAML, holds more than data or a key twice.
        ValueError: when it holds more than `MOST_VALUES` values, aliases counted as often as they are used.
    """
    try:
        return copied(yaml.load(text, _Loader))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OverflowError:
        raise ValueError("it names a character that there is not") from None


def dump(values: Any) -> str:
    """YAML that `parse` reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def typed(value: Any) -> Any:
    """What YAML takes a plain scalar for; other values as they are, all through lists and dicts."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    if not isinstance(value, Plain):
        return value
    if _FLOAT.fullmatch(value):
        return _float(value)
    tag = _RESOLVER.resolve(yaml.ScalarNode, value, (True, False))
    if not tag.endswith((":bool", ":int")):
        return str(value)
    try:
        return yaml.safe_load(value)
    except ValueError:  # such as 0b_, which has the form of a number and no digits
        return str(value)


def copied(value: Any) -> Any:
    """A copy in which nothing is shared, so that changing one place changes no other.

    Raises:
        ValueError: when it holds more than `MOST_VALUES` values.
    """
    count = 0

    def copy(value: Any) -> Any:
        nonlocal count
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            return {str(key): copy(inner) for key, inner in value.items()}
        return [copy(inner) for inner in value] if isinstance(value, list) else value

    return copy(value)


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Loader(yaml.SafeLoader):
    """Reads scalars as texts, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key.value, str) else id(key)
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value} is there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = yaml.constructor.BaseConstructor.construct_scalar(self, node)  # rejects lists and mappings
        return Plain(text) if node.style is None else str(text)


for _tag in ("bool", "int", "float", "timestamp", "str", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_text)
for _tag in ("binary", "omap", "pairs", "set"):  # no configuration holds these
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_undefined)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `typed` would take for numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^({_FLOAT.pattern})$"), list("-+0123456789.")
)
_Dumper.add_representer(Plain, lambda dumper, text: dumper.represent_str(str(text)))
