"""Write a report of one run, or of several that belong together, as one HTML file.

    llmshearing report RUN_FOLDER [RUN_FOLDER ...] [--out FILE]

A run's folder is its save_folder: config.yaml, metrics.jsonl and masks. The run need not have ended.

Example:

    llmshearing report runs/prune runs/continue runs/scratch --out report.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmshearing import cli
from llmshearing.report.page import write_report


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("llmshearing.report", __doc__)
    parser.add_argument("folders", metavar="RUN_FOLDER", nargs="+", type=Path, help="save_folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: report.html in the folder, or beside the first of several)",
    )
    return parser.parse_args(words)


def main() -> None:
    """Write the report and say where it is."""
    arguments = parse(sys.argv[1:])
    first = arguments.folders[0]
    beside = first if len(arguments.folders) == 1 else first.parent
    path = arguments.out or beside / "report.html"
    write_report(arguments.folders, path)
    cli.say(f"Report: {path} ({path.stat().st_size / 1e3:,.0f} kB)")


if __name__ == "__main__":
    cli.run(main)
