"""What README and docs tell people to type exists, what they point to is there, what is generated is new.

Here each command's module, script, options and configuration keys must exist; `test_docs_commands.py` runs
them.
"""

import importlib
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmshearing.config_file import load_config
from llmshearing.utils import config_reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    *(f"llmshearing.data.{name}" for name in ("prepare", "merge_data", "inspect")),
    *(
        f"llmshearing.utils.{path.stem}"
        for path in sorted((ROOT / "llmshearing" / "utils").glob("*.py"))
        if "def main()" in path.read_text()
    ),
    "llmshearing.report",
]
CHOICES = {"save_hf_to_composer", "save_composer_to_hf", "prune_and_save_model", "measure", "fit"}


@dataclass
class Undocumented:
    first: int = 1
    """Documented."""
    second: int = 2


def commands(page: Path) -> list[str]:
    """The commands of a page's bash blocks, one a line, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def all_commands() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in commands(page)]


def help_of(module: str, words: list[str], monkeypatch, capsys) -> str:
    """What `python -m module words --help` prints."""
    loaded = importlib.import_module(module)
    if not hasattr(loaded, "main"):
        loaded = importlib.import_module(f"{module}.__main__")
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit) as stop:
        loaded.main()
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_every_command_exists(page: str, command: str, monkeypatch, capsys) -> None:
    words = shlex.split(command)
    while words and re.fullmatch(r"export|\w+=\S*", words[0]):
        words.pop(0)  # settings of the environment
    if not words:
        return
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] == "llmshearing":
        subcommand = [word for word in words[3:4] if word in CHOICES]
        text = help_of(words[2], subcommand, monkeypatch, capsys)
        options = [word.split("=")[0] for word in words[3:] if word.startswith("--")]
        assert all(option in text for option in options)
    elif words[0] in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file()
    if "train.py" in words or "llmshearing.utils.plan" in words:
        start = 1 + words.index("train.py" if "train.py" in words else "llmshearing.utils.plan")
        load_config(
            ROOT / words[start], [word for word in words[start + 1 :] if re.match(r"\w[\w.]*=", word)]
        )


@pytest.mark.parametrize("module", COMMANDS)
def test_help_says_what_a_command_does_and_shows_one(module: str, monkeypatch, capsys) -> None:
    text = help_of(module, [], monkeypatch, capsys)
    assert text.startswith(f"usage: python -m {module}")
    example = " ".join(text.split("Example:")[1].split("\n\noptions")[0].split())
    assert f"python -m {module} " in example


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_named_exists(page: Path) -> None:
    for name in re.findall(r"python -m (llmshearing[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")) is not None, name
    for path in re.findall(
        r"`((?:llmshearing|scripts|configs|tests|benchmarks)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_configuration_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == config_reference.reference() + "\n", (
        "run: python -m llmshearing.utils.config_reference > docs/configuration.md"
    )


def test_a_field_without_documentation_is_refused() -> None:
    with pytest.raises(ValueError, match="Undocumented has fields without a line of documentation: second"):
        config_reference.documented_fields(Undocumented)
