"""The report of a run, written when it ends."""

import logging
from pathlib import Path

from composer.core import Callback
from composer.utils import dist

from llmshearing.report import write_report

logger = logging.getLogger(__name__)


class ReportCallback(Callback):
    """Writes `report.html` into the run's folder when the run has ended, well or not.

    It comes after everything else has been closed, when metrics and masks are complete. A report that
    cannot be written is no reason for a run to fail: the reason is logged.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def post_close(self) -> None:
        if dist.get_global_rank() != 0:
            return
        try:
            write_report([self.folder], self.folder / "report.html")
        except (OSError, ValueError) as error:
            logger.warning("There is no report of this run: %s", error)
        else:
            logger.info("Report: %s", self.folder / "report.html")
