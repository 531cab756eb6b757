"""What the commands say to mistakes and faults: one table (`mistakes/`) from an input to its message.

Each row runs a command as a user would, in this process. It must end with status 2 and `error: ...` that
holds every fragment of the row, without a traceback, and leave nothing half-made behind; with `--debug` the
error itself comes. `docs/errors.md` shows the messages; to write it anew:

    WRITE_ERRORS=1 python -m pytest tests/test_errors.py
"""

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from llmshearing import training
from llmshearing.cli import run
from mistakes import CASES, TRAIN, Case
from processes import Ranks, write_config
from reliability import faults
from runs import run_config, run_values, write_data
from tests.data.conftest import tokenizer_folder

assert tokenizer_folder  # a fixture

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
NAMES = {"f": "", "y": "run.yaml", "t": "tokenizer", "d": "callbacks.data_loading", "l": "model.l0_module"}
FAULTS = {
    "SIGTERM or SIGUSR1 (status 75)": "`python train.py run.yaml`",
    "a process that dies": "`composer --nproc 2 train.py run.yaml`",
    "a process that hangs": "`composer --nproc 2 train.py run.yaml`",
}
INTRODUCTION = """# Every error message

What the commands answer to mistakes and to faults, as tests make and check them (`tests/mistakes`).
A command then ends with status 2, without a traceback (`--debug` shows it) and with nothing half-written.
[troubleshooting.md](troubleshooting.md) has the background.
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 4 steps, with checkpoints of the steps 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    config = run_config(write_data(folder / "data", sequences=16), folder / "run", max_duration="4ba")
    config.save_interval, config.eval_interval = "2ba", "0ba"
    training.train(config)
    return folder / "run"


@pytest.fixture
def place(
    tmp_path: Path, tokenizer_folder: Path, request: pytest.FixtureRequest
) -> Iterator[SimpleNamespace]:
    """A folder with data and a good configuration, to be spoilt."""
    data = write_data(tmp_path / "data", sequences=16)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values(data, tmp_path / "run")))
    place = SimpleNamespace(
        folder=tmp_path, yaml=tmp_path / "run.yaml", tokenizer=tokenizer_folder, mounted=[]
    )
    place.finished = lambda: request.getfixturevalue("finished")
    yield place
    for folder in place.mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # what failed may still hold a file


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, str]]:
    """Messages by the name of their row, for the page; rows that did not run keep what is there."""
    said: dict[str, str] = {}
    yield said
    if "WRITE_ERRORS" in os.environ:
        PAGE.write_text(page({**rows_of_the_page(), **said}))


@pytest.mark.parametrize("case", [c for cases in CASES.values() for c in cases], ids=lambda case: case.name)
def test_mistakes_get_their_message(
    case: Case,
    place: SimpleNamespace,
    answers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if case.before is not None:
        case.before(place)
    before = sorted(place.folder.rglob("*"))
    monkeypatch.setattr(sys, "argv", [case.module, *arguments(case, place)])
    with pytest.raises(SystemExit) as stop:
        run(command(case.module).main)
    said = capfd.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    for part in case.message:
        assert part in message
    made = [path for path in place.folder.rglob("*") if path not in before and path.is_file()]
    allowed = (str(place.folder / case.leaves), str(place.folder / "out" / ".prepare-"))
    assert not [path for path in made if not str(path).startswith(allowed) or ".incomplete" in str(path)]
    answers[case.name] = without_places(message, place)


def test_debug_shows_the_traceback(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", str(place.folder / "none.yaml"), "--debug"])
    with pytest.raises(FileNotFoundError):
        run(command(TRAIN).main)


# --------------------------------------------------------- faults that are no command line's


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_signal_is_answered(
    number: signal.Signals,
    place: SimpleNamespace,
    answers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(training, "build_callbacks", training.build_callbacks)  # `add` replaces it
    faults.add(faults.At("batch_start", 2, lambda _: signal.raise_signal(number)))
    monkeypatch.setattr(sys, "argv", ["train", str(place.yaml)])
    with pytest.raises(SystemExit) as stop:
        run(command(TRAIN).main)
    assert stop.value.code == 75
    message = next(text for text in caplog.messages if "ending after" in text)
    assert message == f"{number.name}: ending after step 3; start again to resume"
    assert (place.folder / "run" / "ep0-ba3-rank0.pt").exists()
    answers.setdefault("SIGTERM or SIGUSR1 (status 75)", message)


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize(
    ("name", "fault", "status", "fragments"),
    [
        (
            "a process that dies",
            partial(faults.kill_at, "after_forward", 3, 1, after=6),
            None,
            (
                "rank 0 failed. The ranks:",
                "DEAD or out of reach; when last heard of: after_forward of step 3",
            ),
        ),
        (
            "a process that hangs",
            partial(faults.hang_at, "after_backward", 3, 1),
            70,
            ("No progress for", "(dist_timeout is 15): the run ends.", "after_backward of step 3"),
        ),
    ],
    ids=["dies", "hangs"],
)
def test_what_the_other_rank_says(name, fault, status, fragments, place, answers) -> None:
    path = write_config(place.folder, place.folder / "data")
    ranks = Ranks([path, "dist_timeout=15"], 2, fault)
    statuses = ranks.wait(200)
    assert statuses[0] == status if status else statuses[0] > 0
    said = (ranks.log / "0.txt").read_text()
    for part in fragments:
        assert part in said
    start = said.index(fragments[0])
    answers[name] = without_places("\n".join(said[start:].splitlines()[:3]), place)


# ------------------------------------------------------------------------------- the page


@pytest.mark.skipif("WRITE_ERRORS" in os.environ, reason="the page is being written")
def test_the_page_shows_every_message() -> None:
    """Its rows are the table's, and hold what the table asks for."""
    text = PAGE.read_text()
    shown = rows_of_the_page()
    assert page(shown) == text, "run: WRITE_ERRORS=1 python -m pytest tests/test_errors.py"
    for cases in CASES.values():
        for case in cases:
            assert all(cell(part) in shown[case.name] for part in case.message), case.name
    assert shown.keys() >= FAULTS.keys()


def page(answers: dict[str, str]) -> str:
    """The page for these messages, without rows for those that are missing."""
    lines = [INTRODUCTION]
    sections = {title: {case.name: typed(case) for case in cases} for title, cases in CASES.items()} | {
        "Signals and several processes": FAULTS
    }
    for title, rows in sections.items():
        lines += [f"## {title}\n", "| input | command | message |", "|---|---|---|"]
        lines += [
            f"| {name} | {words} | {answers[name]} |" for name, words in rows.items() if name in answers
        ]
        lines.append("")
    return "\n".join(lines)


def rows_of_the_page() -> dict[str, str]:
    """The messages on the page by the name of their row."""
    rows = re.findall(r"^\| (.+?) \| (?:.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: message for name, message in rows if name != "input"}


def typed(case: Case) -> str:
    """The command of a row as a user would type it."""
    start = "train.py" if case.module == TRAIN else f"-m {case.module.removesuffix('.__main__')}"
    words = case.words.replace("{f}/", "").replace("{f}", ".").format(**NAMES)
    return f"`python {start} {words}`"


def without_places(message: str, place: SimpleNamespace) -> str:
    """A message as a cell, as it would be in the run's own folder."""
    for path, name in (
        (f"{place.folder}/", ""),
        (str(place.folder), "."),
        (str(place.tokenizer), "tokenizer"),
    ):
        message = message.replace(path, name)
    message = re.sub(r"[\d,]+ bytes left", "N bytes left", message)
    message = re.sub(r"on \S+, process \d+:", "on HOST, process N:", message)
    return cell(re.sub(r"\d+ s\b", "N s", message).removeprefix("error: ").strip())


def cell(text: str) -> str:
    """Text as it is written in a cell of a Markdown table."""
    for mark in ("\\", "|", "*", "<"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", "<br>")


def command(name: str) -> ModuleType:
    """The module of a command; train.py is none of the package's."""
    if name != TRAIN:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(case: Case, place: SimpleNamespace) -> list[str]:
    named = {**NAMES, "f": place.folder, "y": place.yaml, "t": place.tokenizer}
    return case.words.format(**named).split()
