"""When a run's report is written."""

import os

import pytest
from composer.utils import dist

from llmshearing.callbacks.report_callback import ReportCallback
from llmshearing.checkpoints.run_folder import METRICS, REPORT
from stubs import NO_LOGGER, state


@pytest.fixture
def written():
    """The reports that were asked for, as (folders, file)."""
    return []


@pytest.fixture
def callback(tmp_path, written):
    return ReportCallback(tmp_path, lambda *arguments: written.append(arguments))


def test_the_report_is_written_once_into_the_folder_of_the_run(tmp_path, callback, written):
    callback.fit_start(state(), NO_LOGGER)
    assert not written
    callback.post_close()
    callback.post_close()  # a trainer closes again at the end of the process
    assert written == [([tmp_path], tmp_path / "report.html")]


@pytest.mark.parametrize(
    ("report", "metrics", "due"),
    [(None, None, False), (None, 1, True), (1, 2, True), (2, 1, False)],
    ids=["never started", "killed before its report", "went on since", "complete"],
)
def test_without_a_step_a_report_is_written_where_one_is_missing(
    tmp_path, callback, written, report, metrics, due
):
    for name, time in ((REPORT, report), (METRICS, metrics)):
        if time is not None:
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (time, time))
    callback.init(state(), NO_LOGGER)
    callback.post_close()
    assert bool(written) == due


@pytest.mark.parametrize("event", ["init", "fit_start"])
def test_one_rank_writes(tmp_path, callback, written, monkeypatch, event):
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    (tmp_path / METRICS).touch()
    getattr(callback, event)(state(), NO_LOGGER)
    callback.post_close()
    assert not written


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("line 1 is not JSON")])
def test_a_report_that_fails_is_logged_and_ends_no_run(tmp_path, caplog, error):
    def fail(*arguments):
        raise error

    callback = ReportCallback(tmp_path, fail)
    callback.fit_start(state(), NO_LOGGER)
    callback.post_close()
    assert str(error) in caplog.text
