"""What a callback sees of a trainer, for tests of one callback alone."""

from types import SimpleNamespace
from typing import Any, cast

from composer.core import Timestamp

NO_LOGGER: Any = None


class Logged(dict[str, float]):
    """A logger that keeps the last value of each metric."""

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.update(metrics)

    @property
    def logger(self) -> Any:
        """Itself, where a Composer logger is expected."""
        return self


def state(step: int = 0, **parts: Any) -> Any:
    """A trainer's state after `step` steps, with `parts` of it."""
    return cast(Any, SimpleNamespace(timestamp=Timestamp(batch=step), **parts))
