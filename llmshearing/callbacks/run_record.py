"""The record that a run saves with its weights: its configuration and the source of its model and data."""

from typing import Any

from composer.core import Callback


class RunRecord(Callback):
    """Carries the run's record in every checkpoint, so that one file is enough to export a model.

    Args:
        record: `config`, the resolved configuration as YAML; `hf_files`, the texts of the HF config and
            tokenizer files of the model the run started from, by file name; `data`, the hash of the
            data's manifest, or None.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record

    def state_dict(self) -> dict[str, Any]:
        return self.record

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A resumed run keeps its own record."""
