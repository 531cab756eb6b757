"""What the scripts say: their help, and the quickstart's last lines."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from llmshearing.evaluation import results
from llmshearing.evaluation.results import Measured

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the scripts where python does nothing but say that it was called."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in (
        "setup.py",
        "requirements.txt",
        "requirements-current.txt",
        "constraints.txt",
        "constraints-current.txt",
    ):
        (tmp_path / name).touch()
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "pyright"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho called\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def bash(place: Path, *words: str) -> str:
    env = {"PATH": f"{place / 'bin'}{os.pathsep}/usr/bin:/bin", "VIRTUAL_ENV": str(place)}
    done = subprocess.run(["bash", *words], cwd=place, env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize(("name", "says"), [("setup", "Make the environment"), ("test", "Set up, check")])
def test_help_is_said_and_nothing_is_done(place: Path, name: str, says: str, word: str) -> None:
    said = bash(place, f"scripts/{name}.sh", word)
    assert said.startswith(says)
    assert f"scripts/{name}.sh " in said
    assert "called" not in said
    assert "case" not in said


def test_set_up_leaves_the_words_of_a_script_that_sources_it(place: Path) -> None:
    (place / "other.sh").write_text("source scripts/setup.sh\necho and on\n")
    said = bash(place, "other.sh", "--help")
    assert "called" in said
    assert said.endswith("and on\n")


def test_a_stack_that_does_not_exist_is_rejected(place: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        bash(place, "-c", "STACK=newest; source scripts/setup.sh")
    assert failed.value.returncode == 2
    assert "STACK is 'newest'; expected declared or current" in failed.value.stderr


def test_the_current_stack_is_installed_without_what_composer_declares(place: Path) -> None:
    (place / "bin" / "python").write_text('#!/bin/sh\necho "called $*" >> calls\n')
    bash(place, "-c", "STACK=current; source scripts/setup.sh")
    calls = (place / "calls").read_text()
    assert "--no-deps mosaicml mosaicml-streaming" in calls
    assert "constraints-current.txt" in calls
    assert "constraints.txt" not in calls


def test_words_for_pytest_are_no_call_for_help(place: Path) -> None:
    assert "called" in bash(place, "scripts/test.sh", "-k", "help")


def test_the_quickstart_ends_with_what_to_do_next() -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "quickstart_table.py"))
    model, report, more = table["next_steps"](Path("runs/quickstart")).splitlines()
    assert model == "The Hugging Face model: runs/quickstart/hf"
    assert report == "The report of the runs, for a browser: runs/quickstart/report.html"
    assert "--out $out/report.html" in (ROOT / "scripts" / "quickstart.sh").read_text()
    section = more.split("README.md, ")[1].strip("'.")
    readme = (ROOT / "README.md").read_text().splitlines()
    assert f"## {section}" in readme
    assert "source .venv/bin/activate" in more
    assert any("source .venv/bin/activate" in line for line in readme)


def test_the_quickstart_says_sizes_and_speed(tmp_path: Path) -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "quickstart_table.py"))
    models = []
    for name, size, rate in (("source-hf", 4_000_000, 100.0), ("hf", 1_000_000, 250.0)):
        speed = {"weights": 4 * size, "prefill": rate, "decode": rate}
        models.append(Measured(name, f"/{name}", "1", size, {}, {"1 x 128": speed}))
    results.write(tmp_path / "continue" / "speed.json", models)
    source, result = table["sizes_and_speed"](tmp_path).strip().splitlines()
    assert source.startswith("source: 4,000,000 parameters, 16.0 MB; reads 100 tokens/s (1.00x), writes 100 ")
    assert result.startswith("result: 1,000,000 parameters, 4.0 MB; reads 250 tokens/s (2.50x), writes 250 ")
    assert "--out $out/continue" in (ROOT / "scripts" / "quickstart.sh").read_text()


def test_a_recipe_takes_the_environment_of_the_repository(place: Path) -> None:
    """Without an active one, it finds composer where setup.sh has put it."""
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    (place / ".venv" / "bin" / "composer").write_text("#!/bin/sh\necho composer of .venv\n")
    (place / ".venv" / "bin" / "composer").chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "MODEL": "m.pt", "DATA": "d"}
    done = subprocess.run(
        ["bash", "scripts/pruning.sh"], cwd=place, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "composer of .venv\n"


@pytest.mark.parametrize("script", ["pruning", "continue_pretraining"])
@pytest.mark.parametrize("teacher", ["", "models/the source.pt"])
def test_a_recipe_takes_a_teacher(place: Path, script: str, teacher: str) -> None:
    (place / "bin" / "composer").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (place / "bin" / "composer").chmod(0o755)
    env = {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "VIRTUAL_ENV": str(place), "MODEL": "m.pt", "DATA": "d"}
    command = ["bash", f"scripts/{script}.sh", "seed=3"]
    done = subprocess.run(
        command, cwd=place, env={**env, "TEACHER": teacher}, capture_output=True, text=True, check=True
    )
    *_, last_setting, seed = done.stdout.splitlines()
    assert seed == "seed=3"
    expected = f"distillation.teacher={teacher}" if teacher else "callbacks.data_loading.target_loss="
    assert last_setting.startswith(expected)
