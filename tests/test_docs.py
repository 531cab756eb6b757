"""What README and docs tell people to type exists, what they point to is there, what is generated is new.

Here each command's module, script, options and configuration keys must exist; `test_docs_commands.py` runs
them.
"""

import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import status
from llmshearing.__main__ import COMMANDS
from llmshearing.commands import config_reference
from llmshearing.config.reading import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = [
    f"benchmarks.{path.stem}"
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text() and path.stem not in ("evidence", "smollm2")
]  # those two measure nothing
CHOICES = ("save_hf_to_composer", "save_composer_to_hf", "prune_and_save_model", "measure", "fit")


@pytest.fixture
def no_benchmark(monkeypatch) -> None:
    """Fail where a benchmark gets past its arguments: only what reads arguments may run."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("measures or writes")

    for module in map(importlib.import_module, BENCHMARKS):
        for name, _ in inspect.getmembers(module, inspect.isfunction):
            if name not in ("main", "positive", "asked_rounds", "calibration_arguments"):
                monkeypatch.setattr(module, name, refuse)


def commands(page: Path) -> list[str]:
    """The commands of a page's bash blocks, one a line, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def all_commands() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in commands(page)]


def help_of(module: str, monkeypatch, capsys) -> str:
    """What `python -m module --help` prints, for a benchmark."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main()
    assert stop.value.code == 0
    return capsys.readouterr().out


def help_of_script(name: str, words: list[str], folder: Path) -> str:
    """What `bash name words` prints with nothing set, in a copy where nothing can be set up or started."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("setup.sh"))
    command, path = ["bash", name, *words], {"PATH": "/usr/bin:/bin"}
    run = subprocess.run(command, cwd=folder / "scripts", env=path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize(("page", "command"), all_commands())
def test_every_command_exists(page: str, command: str, monkeypatch, capsys) -> None:
    words = shlex.split(command)
    while words and re.fullmatch(r"export|\w+=\S*", words[0]):
        words.pop(0)  # settings of the environment
    if not words:
        return
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        text = help_of(words[2], monkeypatch, capsys)
        assert all(option in text for option in options)
    elif words[0] == "llmshearing" or words[:2] == ["python", "-m"]:
        subcommand = [word for word in words[2:4] if word in CHOICES]
        program = words[:2] if words[0] == "llmshearing" else words[:3]
        named = program if "--help" in program else [*program, *subcommand, "--help"]
        assert status(named) == 0
        text = capsys.readouterr().out
        assert all(option in text for option in options)
    elif words[0] in ("bash", "sbatch"):
        assert (ROOT / words[1]).is_file()
    if "train.py" in words or words[:2] == ["llmshearing", "plan"]:
        start = 1 + words.index("train.py" if "train.py" in words else "plan")
        path = ROOT / words[start]
        if not path.exists():  # a copy that the page had made
            path = ROOT / "configs" / "any" / words[start]
        load_config(path, [word for word in words[start + 1 :] if re.match(r"\w[\w.]*=", word)])


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize("module", BENCHMARKS)
def test_help_of_a_benchmark_shows_how_to_run_it(module: str, monkeypatch, capsys) -> None:
    text = help_of(module, monkeypatch, capsys)
    assert text.startswith(f"usage: python -m {module}")
    example = " ".join(text.split("Example:")[1].split("\n\noptions")[0].split())
    assert f"python -m {module} " in f"{example} "
    assert "--debug" in text


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize("module", BENCHMARKS)
def test_a_benchmark_says_what_it_measures_and_where_it_writes(module: str, monkeypatch, capsys) -> None:
    text = help_of(module, monkeypatch, capsys)
    assert (sys.modules[module].__doc__ or "").splitlines()[0] in text
    name = "NAME" if module == "benchmarks.run_all" else module.split(".")[1]
    assert f"rites `benchmarks/results/{name}.json`" in text


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize(
    ("module", "words", "reason"),
    [
        *((module, ["--unknown"], "unrecognized arguments: --unknown") for module in BENCHMARKS),
        ("benchmarks.steps", ["0"], "'0' is not a whole number of at least 1"),
        ("benchmarks.steps", ["many"], "'many' is not a whole number of at least 1"),
        ("benchmarks.gpu", ["--tiny", "--sequences", "-1"], "'-1' is not a whole number of at least 1"),
        ("benchmarks.gpu", ["--tiny", "--steps", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_a_benchmark_rejects_unknown_arguments(
    module: str, words: list[str], reason: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(SystemExit) as stop:
        sys.modules[module].main()
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["max_seq_len=64", "-h"]])
@pytest.mark.parametrize("script", ["pruning", "continue_pretraining"])
def test_a_recipe_prints_every_setting_with_its_default(
    script: str, words: list[str], tmp_path: Path
) -> None:
    text = help_of_script(f"{script}.sh", words, tmp_path)
    assert "MODEL (required): " in text
    assert "DATA (required): " in text
    assert "\n  TARGET=1.3b # 2.7b | 1.3b | 370m\n" in text
    settings = re.findall(r"\$\{([A-Z_]+):[-?]", (ROOT / "scripts" / f"{script}.sh").read_text())
    assert settings == re.findall(
        r"^  ([A-Z_]+)(?:=| \(required\)).*", text.split("\n\n", 1)[1], re.MULTILINE
    )
    assert all(f"{name}=" in text for name in ("LAUNCHER", "DRY_RUN"))


def test_the_quickstart_says_what_it_does(tmp_path: Path) -> None:
    assert help_of_script("quickstart.sh", ["--help"], tmp_path).startswith("The whole method on")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_named_exists(page: Path) -> None:
    for name in re.findall(r"python -m ((?:llmshearing|benchmarks)[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")) is not None, name
    for name in re.findall(r"`llmshearing (\w+)", page.read_text()):
        assert name in COMMANDS
    for path in re.findall(
        r"`((?:llmshearing|scripts|configs|tests|benchmarks)/[\w./-]*)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_configuration_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == config_reference.reference() + "\n", (
        "run: llmshearing config_reference > docs/configuration.md"
    )
