"""Mistakes and faults: inputs to the commands, and the message that each must get.

`test_errors.py` makes every one of them; `docs/errors.md` is what the commands answered.
"""

from mistakes import models, settings, work
from mistakes.case import TRAIN, Case

__all__ = ["CASES", "TRAIN", "Case"]

CASES = settings.CASES | models.CASES | work.CASES
