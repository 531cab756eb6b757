"""Collects what was done to runs, for the table that `pytest -m reliability` ends with."""

from pathlib import Path

import pytest

from runs import write_data

_TABLE: dict[str, tuple[int, str]] = {}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def table():
    """`table(fault, outcome, times=1)` notes that a fault was tried and what came of it."""

    def note(fault: str, outcome: str, times: int = 1) -> None:
        _TABLE[fault] = (_TABLE.get(fault, (0, ""))[0] + times, outcome)

    return note


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.reliability)
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    if not _TABLE:
        return
    width = max(map(len, _TABLE))
    terminalreporter.section("faults")
    terminalreporter.line(f"{'fault':{width}}  times  outcome")
    for fault, (times, outcome) in _TABLE.items():
        terminalreporter.line(f"{fault:{width}}  {times:5}  {outcome}")
