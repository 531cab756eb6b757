"""What becomes of a command line's words when fire calls a function with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing import cli, fired


def export(
    source: str | Path, out: str | Path | None = None, *, hf: str | None = None, sizes: Mapping[str, Any] = {}
) -> None:
    """Write a model.

    Example:

        export a b

    Args:
        source: a file.
        out: another.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{source!r}, {out!r}, {hf!r}, {sizes!r}")


def merge(folder: str, names: Sequence[str], *, shuffle: bool = False, rows: int | None = None) -> None: ...


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "d_model=2048", "rate=5e5", "name=x/y=z"],
        ["a", "b", "--d_model=2048", "--rate", "5e5", "--name=x/y=z"],
        ["--out", "b", "d_model=2048", "--rate=5e5", "a", "name=x/y=z"],
        ["--d-model", "2048", "--source=a", "rate=5e5", "--out", "b", "name=x/y=z"],
        ["out=b", "a", "--d_model", "2048", "rate=5e5", "--name", "x/y=z"],
    ],
)
def test_values_by_position_by_name_and_as_key_and_value_are_the_same(words: list[str]) -> None:
    sizes = {"d_model": 2048, "rate": 5e5, "name": "x/y=z"}
    assert fired.bind(export, words) == (["a", "b"], {"sizes": sizes})


TEXT = st.one_of(
    st.sampled_from(
        ["1e5", "[a]", "007", "None", "True", "{'a': 1}", "(1,)", "0x10", "a b", "", "-", "-5", "'x'"]
    ),
    st.text("aN01e-=_.,:~'\"[](){}/\\ \nλ", max_size=8),
)


@given(TEXT, TEXT, TEXT)
def test_text_arrives_as_it_was_typed(source: str, out: str, hf: str) -> None:
    by_name = [f"--source={source}", f"--out={out}", f"--hf={hf}"]
    assert fired.bind(export, by_name) == ([source, out], {"hf": hf, "sizes": {}})
    if not any(word.startswith("-") or "=" in word for word in (source, out, hf)):
        assert fired.bind(export, ["--hf", hf, source, out]) == ([source, out], {"hf": hf, "sizes": {}})


@given(
    st.lists(st.one_of(TEXT, st.sampled_from(["--", "--hf", "--sizes=1", "--trace", "-i", "__doc__", "a=1"])))
)
def test_whatever_is_typed_is_bound_or_rejected_and_fire_says_nothing(words: list[str]) -> None:
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: printed.append(str(text)))
        try:
            fired.bind(export, words)
        except ValueError as error:
            assert str(error)  # noqa: PT017
    assert not printed


@pytest.mark.parametrize(
    "words",
    [
        ["--names", "a", "b", "1e5", "--folder", "f"],
        ["f", "--names=[a,b,1e5]"],
        ["f", "--names", "['a', \"b\", 1e5]"],
        ["f", "a,b,1e5"],
        ["f", "a", "b", "1e5"],
        ["f", "[a,", "b,", "1e5]"],
    ],
)
def test_a_list_is_several_words_or_one(words: list[str]) -> None:
    assert fired.bind(merge, words)[0] == ["f", ["a", "b", "1e5"]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], {}),
        (["--shuffle"], {"shuffle": True}),
        (["--shuffle=false", "--rows", "007"], {"shuffle": False, "rows": 7}),
        (["--shuffle", "--rows=3"], {"shuffle": True, "rows": 3}),
    ],
)
def test_switches_and_numbers_are_read(words: list[str], named: dict[str, object]) -> None:
    assert fired.bind(merge, ["f", "a", *words])[1] == named


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (export, [], "missing: source"),
        (merge, ["--names", "a"], "missing: folder"),
        (merge, ["f"], "missing: names"),
        (export, ["a", "b", "c"], "Argument 'c' is not of the form key=value, such as hidden_size=2048."),
        (merge, ["f", "a", "--nams", "b"], r"unknown argument --nams; did you mean --names\?"),
        (merge, ["f", "a", "--zzz"], "unknown argument --zzz\n"),
        (export, ["a", "-o", "b"], "unknown argument -o"),
        (export, ["a", "--sourc=b"], r"unknown argument --sourc=b; did you mean --source\?"),
        (export, ["a", "--hf"], "--hf needs a value"),
        (export, ["a", "--d_model", "--hf=x"], "--d_model needs a value"),
        (export, ["a", "--hf=b", "--hf=c"], "Argument hf is given twice."),
        (export, ["a", "d_model=1", "--d-model=1"], "Argument d-model is given twice."),
        (export, ["a", "--", "--interactive"], "unknown argument --\n"),
        (merge, ["f", "a", "--rows=many"], "--rows is 'many'; expected a whole number"),
        (merge, ["f", "a", "--shuffle=7"], "--shuffle is '7'; expected true or false"),
        (export, ["a", "x=[1"], r"The value '\[1' is not plain YAML"),
    ],
)
def test_what_does_not_fit_is_rejected_with_the_usage(
    command: fired.Command, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}(.|\n)*usage: llmshearing it "):
        fired.call(command, "llmshearing it", words)


def test_help_is_the_docstring(capsys) -> None:
    fired.call(export, "llmshearing export", ["a", "--help"])
    said = capsys.readouterr().out
    assert said.startswith(
        "usage: llmshearing export SOURCE [OUT] [--hf HF] [key=value ...]\n\nWrite a model.\n\nExample:"
    )
    assert "\narguments:\n    source: a file.\n    out: another.\n\n" in said
    assert "Raises" not in said
    assert said.rstrip().endswith(cli.DEBUG_HELP)


def test_a_command_is_chosen_by_its_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["it", "--help"])
    fired.choose("python -m it", "Two commands.", export, merge_with_help)
    assert (
        "\n  export                 Write a model.\n  merge_with_help        Merge.\n"
        in capsys.readouterr().out
    )
    monkeypatch.setattr("sys.argv", ["it", "expert"])
    with pytest.raises(
        ValueError, match=r"unknown command expert; did you mean export\? expected export or merge"
    ):
        fired.choose("python -m it", "Two commands.", export, merge_with_help)
    monkeypatch.setattr("sys.argv", ["it"])
    with pytest.raises(ValueError, match="no command is given; expected export or merge_with_help"):
        fired.choose("python -m it", "Two commands.", export, merge_with_help)
    monkeypatch.setattr("sys.argv", ["it", "export", "1e5"])
    with pytest.raises(ValueError, match=r"^'1e5', None, None, \{\}$"):
        fired.choose("python -m it", "Two commands.", export, merge_with_help)


def merge_with_help(folder: str) -> None:
    """Merge."""
