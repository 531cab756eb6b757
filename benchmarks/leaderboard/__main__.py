"""Compare methods on the same sources, shapes, data, budgets and seeds, as one YAML file names them.

    python -m benchmarks.leaderboard CONFIG [--define KEY=VALUE ...] [--name NAME] [--jobs N]
        [--only METHOD ...] [--finished]

Runs every cell (method x target x trial or seed) through the public commands. A finished cell is kept;
started again, it repeats the others. Writes `benchmarks/results/leaderboard-NAME.json`, where NAME is
that of the file if no other is given, and its part of docs/evidence.md where that has one. `--define`
changes what the file defines, such as the number of steps where there is a GPU.

Example:

    python -m benchmarks.leaderboard benchmarks/leaderboard/small.yaml
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import RESULTS, positive, write_result
from benchmarks.evidence import EVIDENCE, filled, parts
from benchmarks.leaderboard.cells import finished, run_all
from benchmarks.leaderboard.page import block, draw
from benchmarks.leaderboard.plan import read_leaderboard
from llmshearing import cli


def definition(word: str) -> tuple[str, str]:
    """`KEY=VALUE` on the command line."""
    key, equals, value = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not KEY=VALUE")
    return key, value


def main() -> None:
    parser = cli.parser("benchmarks.leaderboard", __doc__)
    parser.add_argument("config", type=Path, help="the leaderboard's file")
    parser.add_argument(
        "--define",
        nargs="+",
        type=definition,
        default=[],
        metavar="KEY=VALUE",
        help="in place of the file's definitions",
    )
    parser.add_argument("--name", help="of the result, in place of the file's name")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="cells at a time (default: 1; with more, seconds of training mean nothing and are left out)",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="run these methods alone")
    parser.add_argument(
        "--finished", action="store_true", help="run nothing; make the result of the cells that are finished"
    )
    arguments = parser.parse_args()
    board = read_leaderboard(arguments.config, dict(arguments.define))
    name = arguments.name or arguments.config.stem
    if unknown := [each for each in arguments.only if each not in [m.name for m in board.methods]]:
        known = ", ".join(method.name for method in board.methods)
        raise ValueError(f"--only {unknown[0]}: no such method in {arguments.config}; known: {known}.")
    file = RESULTS / f"leaderboard-{name}.json"
    if arguments.finished:
        cells = finished(board, arguments.only)
    else:
        cells = run_all(board, arguments.jobs, arguments.only)
    config = {
        "title": board.title,
        "seeds": board.seeds,
        "targets": board.targets,
        "trials": board.trials,
        "domains": board.domains,
        "define": board.define,
        "methods": [asdict(method) for method in board.methods],
    }
    write_result(file.stem, config, {"cells": cells}, on={})
    result = json.loads(file.read_text())
    if file.stem in parts(EVIDENCE.read_text()):
        draw(file.stem, result, EVIDENCE.parent)
        EVIDENCE.write_text(filled(EVIDENCE.read_text()))
    cli.say(block(file.stem, result))


if __name__ == "__main__":
    cli.run(main)
