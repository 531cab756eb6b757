"""What the help of a sub-command says."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("composer_to_hf", "save_hf_to_composer"),
        ("composer_to_hf", "save_composer_to_hf"),
        ("reference_loss", "measure"),
        ("reference_loss", "fit"),
    ],
)
def test_help_says_what_it_does_and_shows_one(module: str, command: str, monkeypatch, capsys) -> None:
    name = f"llmshearing.utils.{module}"
    monkeypatch.setattr(sys, "argv", [name, command, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert stop.value.code == 0
    description, example = capsys.readouterr().out.split("\n\n", 1)[1].split("\n\nExample:\n\n")
    assert description.endswith(".")
    assert example.startswith(f"    python -m {name} {command} ")
