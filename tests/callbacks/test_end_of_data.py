"""A run ends with its data, and only then."""

from types import SimpleNamespace

import pytest

from llmshearing.callbacks.end_of_data import EndOfData
from stubs import NO_LOGGER, state


@pytest.mark.parametrize("exhausted", [True, False])
def test_training_stops_where_the_stream_is_exhausted(caplog, exhausted):
    stops = []
    loader = SimpleNamespace(dataset=SimpleNamespace(exhausted=exhausted))
    EndOfData().epoch_end(state(7, train_dataloader=loader, stop_training=lambda: stops.append(7)), NO_LOGGER)
    assert stops == ([7] if exhausted else [])
    assert ("at batch 7" in caplog.text) == exhausted
