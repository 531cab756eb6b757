"""The report of a run, written when it ends."""

import logging
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.report import write_report

log = logging.getLogger(__name__)


class ReportCallback(Callback):
    """Writes `report.html` into the run's folder when the run has ended, well or not.

    It comes after everything else has been closed, when metrics and masks are complete; a run that never
    began has none. A report that cannot be written is no reason for a run to fail: the reason is logged.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._due = False

    def fit_start(self, state: State, logger: Logger) -> None:
        self._due = dist.get_global_rank() == 0

    def post_close(self) -> None:
        if not self._due:
            return
        self._due = False  # the trainer closes once more at the end of the process
        try:
            write_report([self.folder], self.folder / "report.html")
        except (OSError, ValueError) as error:
            log.warning("There is no report of this run: %s", error)
        else:
            log.info("Report: %s", self.folder / "report.html")
