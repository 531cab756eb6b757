"""A training step reads the device once, and once a microbatch while pruning; it measures gradients once."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composer.core import Callback, Precision, State
from composer.loggers import Logger

from llmshearing import training
from llmshearing.callbacks.step_numbers import StepNumbers, StepReader
from reliability import faults
from runs import run_config, write_data

PACKAGE = Path(training.__file__).parent
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


class Steps(Callback):
    """Knows the step that is going on; None outside of `fit`."""

    now: int | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        self.now = state.timestamp.batch.value

    def fit_end(self, state: State, logger: Logger) -> None:
        self.now = None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr(training, "build_callbacks", training.build_callbacks)
    faults.add(steps := Steps())
    return steps


@pytest.mark.parametrize("prune", [True, False], ids=["pruning", "dense"])
def test_one_read_of_the_device_a_step(
    data: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps, prune: bool
) -> None:
    reads: dict[int, Counter[str]] = {}
    for name in READS:
        original = getattr(torch.Tensor, name)

        def counting(
            self: torch.Tensor, *arguments: Any, original: Any = original, name: str = name, **more: Any
        ) -> Any:
            caller = Path(sys._getframe(1).f_code.co_filename)
            copied = caller.name == "executed.py" and name != "cpu"  # it works on its one copy
            if steps.now is not None and caller.is_relative_to(PACKAGE) and not copied:
                reads.setdefault(steps.now, Counter())[str(caller.relative_to(PACKAGE))] += 1
            return original(self, *arguments, **more)

        monkeypatch.setattr(torch.Tensor, name, counting)
    config = run_config(data, prune=prune, max_duration=f"{STEPS}ba", eval_interval="0ba")
    training.train(config)
    for counts in reads.values():
        counts.pop("models/loss.py", None)  # slices of a range that is made on the host
    microbatches = config.global_train_batch_size // int(config.device_train_microbatch_size)
    expected = {"callbacks/step_numbers.py": 1} | ({"shapes/executed.py": microbatches} if prune else {})
    assert reads == dict.fromkeys(range(STEPS), expected)


def test_one_pass_over_the_gradients_a_step(
    data: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    passes: Counter[int | None] = Counter()
    original = torch._foreach_norm

    def counting(*arguments: Any, **more: Any) -> Any:
        passes[steps.now] += 1
        return original(*arguments, **more)

    monkeypatch.setattr(torch, "_foreach_norm", counting)
    for algorithms in ({"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}}, {}):
        passes.clear()
        config = run_config(data, max_duration=f"{STEPS}ba", eval_interval="0ba")
        config.algorithms = algorithms
        training.train(config)
        assert passes == dict.fromkeys(range(STEPS), 1)


def test_infinite_gradients_are_noticed_before_they_are_clipped(
    data: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    """Clipping by value turns an infinite gradient into a finite one."""

    def spoil(state: State) -> None:
        next(p.grad for p in state.model.parameters() if p.grad is not None).fill_(float("inf"))

    faults.add(faults.At("after_backward", 1, spoil))
    config = run_config(data, max_duration="3ba", eval_interval="0ba")
    config.algorithms = {"gradient_clipping": {"clipping_type": "value", "clipping_threshold": 1.0}}
    with pytest.raises(ValueError, match=r"Step 1 is not finite: .* gradient norm inf"):
        training.train(config)


class Reader(StepReader):
    def __init__(self, summed: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
        self.values = (summed, own)
        self.numbers: dict[str, Any] = {}

    def summed(self, state: State) -> dict[str, torch.Tensor]:
        return self.values[0]

    def own(self, state: State) -> dict[str, torch.Tensor]:
        return self.values[1]

    def take(self, state: State, logger: Logger, numbers: Any) -> None:
        self.numbers = dict(numbers)


def test_every_reader_gets_all_numbers_in_their_shapes() -> None:
    one = Reader({"sums": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {"scalar": torch.tensor(0.1)})
    other = Reader({"count": torch.tensor(True)}, {"none": torch.empty(0, 2)})
    device = SimpleNamespace(tensor_to_device=torch.Tensor.clone)
    state = SimpleNamespace(callbacks=[one, Callback(), other], device=device, precision=Precision.FP32)
    StepNumbers().after_train_batch(cast(Any, state), cast(Any, None))
    expected = {
        "sums": [[1.0, 2.0], [3.0, 4.0]],
        "count": 1.0,
        "scalar": torch.tensor(0.1).item(),
        "none": [],
    }
    assert one.numbers == other.numbers == expected
    state.callbacks = [Reader({}, {})]
    StepNumbers().after_train_batch(cast(Any, state), cast(Any, None))
