"""Time and memory of our training step on one stack beside the same step on another, in turn.

    python -m benchmarks.stacks [OTHER_PYTHON [ROUNDS]]

OTHER_PYTHON is the interpreter of the other stack's environment (`bash scripts/setup.sh`).
Each stack has a process of its own; they take turns, one step each. Writes `benchmarks/results/stacks.json`:
this stack over the other.

Example:

    python -m benchmarks.stacks .venv/bin/python 15
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BODY_25M,
    measured_on,
    positive,
    shearing_model,
    token_batch,
    write_result,
)
from benchmarks.distillation import KINDS
from benchmarks.memory import measured
from benchmarks.steps import LENGTH, ROUNDS, SEQUENCES, VOCABULARY, our_step
from llmshearing import cli


def work() -> None:
    """Take steps as stdin asks for them, and answer with their seconds, or with what a step needs."""
    batch = token_batch(VOCABULARY, SEQUENCES, LENGTH, 7)
    steps = {
        kind: our_step(shearing_model(BODY_25M, VOCABULARY, LENGTH, 7, prune=prunes), batch)
        for kind, prunes in KINDS.items()
    }
    for line in sys.stdin:
        word = line.strip()
        if word == "versions":
            answer: Any = measured_on()["versions"]
        elif word.startswith("memory "):
            answer = measured(word.removeprefix("memory "), VOCABULARY, BODY_25M)
        else:
            start = time.perf_counter()
            steps[word]()
            answer = time.perf_counter() - start
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Stack:
    """A process of one stack's interpreter."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.stacks", "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def ask(self, word: str) -> Any:
        """The answer to a line.

        Raises:
            RuntimeError: when the process has ended.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} has ended; see its message above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(other: str, rounds: int) -> dict[str, Any]:
    """Ratios of this interpreter's stack to that of `other`."""
    stacks = [Stack(sys.executable), Stack(other)]
    values: dict[str, Any] = {"versions": [stack.ask("versions") for stack in stacks]}
    for kind in KINDS:
        pairs = [[stack.ask(kind) for stack in stacks] for _ in range(rounds + 1)][1:]
        values[f"{kind} step, this / other"] = statistics.median(ours / theirs for ours, theirs in pairs)
    for kind in KINDS:
        here, there = (stack.ask(f"memory {kind}") for stack in stacks)
        values[f"memory of a {kind} step, this / other"] = here / there
    for stack in stacks:
        stack.close()
    return values


def main() -> None:
    if sys.argv[1:] == ["--work"]:
        work()
        return
    parser = cli.parser("benchmarks.stacks", __doc__)
    parser.add_argument(
        "other",
        metavar="OTHER_PYTHON",
        nargs="?",
        default=".venv/bin/python",
        help="interpreter of the other stack (.venv/bin/python)",
    )
    parser.add_argument(
        "rounds", metavar="ROUNDS", nargs="?", type=positive, default=ROUNDS, help="pairs (15)"
    )
    arguments = parser.parse_args()
    values = measure(arguments.other, arguments.rounds)
    config = {**BODY_25M, "vocabulary": VOCABULARY, "tokens": SEQUENCES * LENGTH, "rounds": arguments.rounds}
    write_result("stacks", config, values)
    for name, value in values.items():
        sys.stdout.write(f"{name:40} {value}\n")


if __name__ == "__main__":
    cli.run(main)
