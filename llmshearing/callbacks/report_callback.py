"""The report of a run, written when it ends."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.checkpoints.run_folder import METRICS, REPORT

log = logging.getLogger(__name__)


class ReportCallback(Callback):
    """Writes `report.html` into the run's folder when the run has ended, successfully or not.

    The report is written after everything else has been closed, when metrics and masks are complete; a run
    that never started has none. A launch that finds the run complete writes the report that a killed launch
    did not. A report that cannot be written does not fail the run: the reason is logged.

    Args:
        folder: the run's folder.
        write: writes the report of some folders to a path.
    """

    def __init__(self, folder: str | Path, write: Callable[[Sequence[Path], Path], object]) -> None:
        self.folder = Path(folder)
        self.write = write
        self._due = False

    def init(self, state: State, logger: Logger) -> None:
        report, metrics = self.folder / REPORT, self.folder / METRICS
        if dist.get_global_rank() == 0 and metrics.is_file():
            self._due = not report.exists() or report.stat().st_mtime < metrics.stat().st_mtime

    def fit_start(self, state: State, logger: Logger) -> None:
        self._due = dist.get_global_rank() == 0

    def post_close(self) -> None:
        if not self._due:
            return
        self._due = False  # the trainer closes once more at the end of the process
        try:
            self.write([self.folder], self.folder / REPORT)
        except (OSError, ValueError) as error:
            log.warning("The report of this run could not be written: %s", error)
        else:
            log.info("Report: %s", self.folder / REPORT)
