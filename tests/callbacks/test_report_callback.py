"""When a run's report is written."""

import pytest
from composer.utils import dist

from llmshearing.callbacks.report_callback import ReportCallback
from stubs import NO_LOGGER, state


@pytest.fixture
def written():
    """The reports that are asked for, as (folders, file)."""
    return []


def noting(calls):
    return lambda *arguments: calls.append(arguments)


def test_the_report_is_written_once_into_the_folder_of_the_run(tmp_path, written):
    callback = ReportCallback(tmp_path, noting(written))
    callback.fit_start(state(), NO_LOGGER)
    assert not written
    callback.post_close()
    callback.post_close()  # a trainer closes again at the end of the process
    assert written == [([tmp_path], tmp_path / "report.html")]


def test_a_run_that_never_started_has_no_report(tmp_path, written):
    ReportCallback(tmp_path, noting(written)).post_close()
    assert not written


def test_one_rank_writes(tmp_path, written, monkeypatch):
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    callback = ReportCallback(tmp_path, noting(written))
    callback.fit_start(state(), NO_LOGGER)
    callback.post_close()
    assert not written


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("line 1 is no JSON")])
def test_a_report_that_fails_is_logged_and_ends_no_run(tmp_path, caplog, error):
    def fail(*arguments):
        raise error

    callback = ReportCallback(tmp_path, fail)
    callback.fit_start(state(), NO_LOGGER)
    callback.post_close()
    assert str(error) in caplog.text
