"""Commands that are plain functions: `fire` hands the words of a command line to their parameters.

A value is given by position or by name: `OUT`, `--out OUT` and `--out=OUT` are the same. The annotation of a
parameter says what becomes of its word:

    str, Path           the text as it was typed; fire alone would make a number of 1e5 and a list of [a]
    Sequence[str]       several words, or one: a b c, a,b,c, [a,b,c]
    bool, int           read; --shuffle alone is true
    Mapping             every key=value word and every --key value that no other parameter has

The help of a command is its docstring.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import fire
from fire.decorators import SetParseFn, SetParseFns

from llmshearing import cli

Command = Callable[..., object]

_HELP = {"-h", "--help"}
_PAIR = re.compile(r"[A-Za-z_]\w*=")
_NUMBER = re.compile(r"-[\d.]")


def choose(program: str, doc: str | None, *commands: Command) -> None:
    """Call the command that the first word of the command line names, with the other words.

    Raises:
        ValueError: for a command that is not there, and as `call` does.
    """
    known = {command.__name__: command for command in commands}
    words = sys.argv[1:]
    if words and words[0] in known:
        call(known[words[0]], f"{program} {words[0]}", words[1:])
    elif words and words[0] in _HELP:
        lines = [f"  {name:<22} {_parts(command)[0].splitlines()[0]}" for name, command in known.items()]
        cli.say("\n".join([f"usage: {program} COMMAND ...\n", f"{doc}\n", "commands:", *lines, _FOOT]))
    else:
        found = f"unknown command {words[0]}" if words else "no command is given"
        near = cli.nearest(words[0], known) if words else ""
        raise ValueError(f"{found}{near or ';'} expected {' or '.join(known)}.")


def call(command: Command, program: str, words: Sequence[str]) -> None:
    """Call a command with the words of a command line, or print its help.

    Raises:
        ValueError: for words that do not fit, and whatever the command raises.
    """
    if _HELP & set(words):
        text, arguments = _parts(command)
        cli.say(f"{_usage(command, program)}\n\n{text}\n\narguments:\n{arguments}{_FOOT}")
        return
    try:
        values, named = bind(command, words)
    except ValueError as error:
        raise ValueError(f"{error}\n{_usage(command, program)}") from error
    command(*values, **named)


def bind(command: Command, words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the named values that the words of a command line are for a command.

    Raises:
        ValueError: for a word without a parameter, a parameter without a value, a value of another type.
    """
    meanings, pairs = _meanings(command)
    bound: list[tuple[list[Any], dict[str, Any]]] = []

    def stub(*values: Any, **named: Any) -> None:
        bound.append((list(values), named))

    parameters = inspect.signature(command).parameters.values()
    stub.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.VAR_KEYWORD, default=p.empty) if p.name == pairs else p for p in parameters]
    )
    SetParseFns(**{name: _reader(name, meaning) for name, meaning in meanings.items()})(stub)
    SetParseFn(cli.scalar)(stub)
    # The separator is by default a word that a user may type.
    fire.Fire(stub, [*_unambiguous(command, words), "--", "--separator=\0"], name=command.__name__)
    values, named = bound[0]
    if pairs:
        named = {
            **{name: value for name, value in named.items() if name in meanings},
            pairs: {name: value for name, value in named.items() if name not in meanings},
        }
    return values, named


def _unambiguous(command: Command, words: Sequence[str]) -> list[str]:
    """Words in the form in which fire guesses nothing: values by position, then `--name=value`."""
    meanings, pairs = _meanings(command)
    placed, named, rest = [], {}, list(words)
    while rest:
        word = rest.pop(0)
        if not _is_name(word) and not (pairs and _PAIR.match(word)):
            placed.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        name = key.replace("-", "_")
        near = cli.nearest(name, meanings, "--")
        may_be_pair = pairs and name and ((word.startswith("--") and not near) or not _is_name(word))
        if name not in meanings and not may_be_pair:
            raise ValueError(f"unknown argument {word}{near}")
        meaning = meanings.get(name)
        found = [value] if equals else []
        while rest and not _is_name(rest[0]) and (meaning is Sequence or not (found or meaning is bool)):
            if meaning is Sequence and pairs and _PAIR.match(rest[0]):
                break
            found.append(rest.pop(0))
        if not found and meaning is not bool:
            raise ValueError(f"{word} needs a value")
        if name in named:
            raise ValueError(f"Argument {key} is given twice.")
        named[name] = ",".join(found or ["true"])
    parameters = inspect.signature(command).parameters
    free = [
        n for n in meanings if n not in named and parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if free and meanings[free[-1]] is Sequence and len(placed) > len(free):
        placed[len(free) - 1 :] = [",".join(placed[len(free) - 1 :])]
    if len(placed) > len(free):
        word = placed[len(free)]
        raise ValueError(cli.not_a_pair(word) if pairs else f"unexpected argument {word!r}")
    left = [*free[len(placed) :], *(n for n in meanings if n not in free and n not in named)]
    if missing := [name for name in left if parameters[name].default is inspect.Parameter.empty]:
        raise ValueError(f"missing: {', '.join(missing)}")
    return [*placed, *(f"--{name}={value}" for name, value in named.items())]


def _is_name(word: str) -> bool:
    """Whether a word names a parameter, as `--out` and `-o` do."""
    return word.startswith("-") and word != "-" and not _NUMBER.match(word)


def _meanings(command: Command) -> tuple[dict[str, type], str | None]:
    """What each parameter takes, and the name of the one that takes `key=value`."""
    hints = get_type_hints(command)
    found: dict[str, type] = {}
    for name in inspect.signature(command).parameters:
        kinds = {get_origin(hint) or hint for hint in (hints[name], *get_args(hints[name]))}
        found[name] = next((kind for kind in (Mapping, Sequence, bool, int) if kind in kinds), str)
    pairs = next((name for name, meaning in found.items() if meaning is Mapping), None)
    return {name: meaning for name, meaning in found.items() if name != pairs}, pairs


def _reader(name: str, meaning: type) -> Callable[[str], Any]:
    """What makes a value of a word."""
    if meaning is Sequence:
        return lambda text: [item for word in text.split(",") if (item := word.strip(" []'\""))]
    if meaning is str:
        return str

    def read(text: str) -> Any:
        if type(value := cli.scalar(text)) is not meaning:
            expected = "true or false" if meaning is bool else "a whole number"
            raise ValueError(f"--{name} is {text!r}; expected {expected}")
        return value

    return read


def _usage(command: Command, program: str) -> str:
    """`usage: PROGRAM HF [OUT] [--split N] [key=value ...]`."""
    words = []
    for name, parameter in inspect.signature(command).parameters.items():
        shown = name.upper() + " ..." * (_meanings(command)[0].get(name) is Sequence)
        if name == _meanings(command)[1]:
            shown = "key=value ..."
        elif parameter.kind is parameter.KEYWORD_ONLY:
            flag = _meanings(command)[0].get(name) is bool
            shown = f"--{name}" if flag else f"--{name} {name.upper()}"
        words.append(shown if parameter.default is parameter.empty else f"[{shown}]")
    return f"usage: {program} {' '.join(words)}"


def _parts(command: Command) -> tuple[str, str]:
    """What a command's docstring says before and in its block `Args:`."""
    text, _, rest = (inspect.getdoc(command) or "").partition("\n\nArgs:\n")
    return text, re.split(r"\n\n(?=\w+:\n)", rest)[0]


_FOOT = f"\n\nValues by position or by name (--out FILE, --out=FILE). {cli.DEBUG_HELP}"
