"""What is wrong with a run, and what nobody can want, collected while it is prepared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Problems and warnings in the order in which they were found."""

    problems: list[str] = field(default_factory=list)
    """What stops the run, each with what to change."""
    warnings: list[str] = field(default_factory=list)
    """What the run would do, though nobody can want it."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note the problems for which the block ends, instead of raising them; each problem once."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.add(str(error).splitlines())

    def add(self, problems: list[str]) -> None:
        """Note problems that are new."""
        self.problems += [problem for problem in problems if problem not in self.problems]
