"""What a process does with signals after its run."""

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llmshearing.callbacks.signals import SIGNALS, Interrupted, StopOnSignal
from llmshearing.callbacks.step_numbers import StepNumbers


@pytest.fixture
def before():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    yield handlers
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("interrupted", [False, True])
def test_handlers_are_given_back_unless_a_signal_ends_the_run(before: list[Any], interrupted: bool) -> None:
    """A launcher that ends the other ranks with a second signal must not cut the first one's exit short."""
    state = cast(
        Any,
        SimpleNamespace(
            device=SimpleNamespace(tensor_to_device=torch.Tensor.clone),
            timestamp=SimpleNamespace(batch=SimpleNamespace(value=3)),
        ),
    )
    stop = StopOnSignal(None)
    state.callbacks = [stop]

    def step_numbers(state: Any) -> None:
        StepNumbers().after_train_batch(state, cast(Any, None))

    stop.fit_start(state, cast(Any, None))
    if interrupted:
        signal.raise_signal(signal.SIGTERM)
        step_numbers(state)
        with pytest.raises(Interrupted):
            stop.batch_checkpoint(state, cast(Any, None))
    else:
        step_numbers(state)
        stop.batch_checkpoint(state, cast(Any, None))
    stop.close(state, cast(Any, None))
    assert ([signal.getsignal(number) for number in SIGNALS] == before) != interrupted
