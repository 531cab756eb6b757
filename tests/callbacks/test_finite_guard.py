"""What the guard says of a step that is not finite, what it lets pass, and what it leaves out."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composer.core import Precision

from llmshearing.callbacks.finite_guard import FiniteGuard
from llmshearing.callbacks.step_numbers import StepNumbers

INFINITE = float("inf")


def step(
    guard: FiniteGuard, losses: list[float], gradient: float = 1.0, precision: Precision = Precision.FP32
) -> torch.nn.Parameter:
    """Step 7 of a run up to the optimizer's step, one microbatch a loss; its only parameter."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), gradient)
    state = SimpleNamespace(
        batch={"set": torch.tensor([0, 1, 0]), "idx": torch.tensor([5, 2, 1])},
        precision=precision,
        model=torch.nn.ParameterList([parameter]),
        optimizers=[torch.optim.SGD([parameter])],
        callbacks=[guard],
        algorithms=[],
        device=SimpleNamespace(tensor_to_device=torch.Tensor.clone),
        timestamp=SimpleNamespace(batch=SimpleNamespace(value=7)),
    )
    guard.batch_start(cast(Any, state), cast(Any, None))
    for loss in losses:
        state.loss = {"total": torch.tensor(loss)}
        guard.after_loss(cast(Any, state), cast(Any, None))
    StepNumbers().after_train_batch(cast(Any, state), cast(Any, None))
    return parameter


def test_every_sample_is_named_by_domain() -> None:
    message = r"Step 7 is not finite: loss inf .* Its samples: 1 of books: \[2\]; 2 of code: \[1, 5\]\."
    with pytest.raises(ValueError, match=message):
        step(FiniteGuard(0, ["code", "books"]), [INFINITE])


@pytest.mark.parametrize("losses", [[INFINITE, 1.0], [1.0, INFINITE]])
def test_one_microbatch_is_enough(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        step(FiniteGuard(0, ["code", "books"]), losses)


def test_loss_scaling_may_overflow_gradients_but_not_losses() -> None:
    guard = FiniteGuard(0, ["code", "books"])
    step(guard, [1.0], INFINITE, Precision.AMP_FP16)
    with pytest.raises(ValueError, match="not finite"):
        step(guard, [INFINITE], 1.0, Precision.AMP_FP16)
    with pytest.raises(ValueError, match="not finite"):
        step(guard, [1.0], INFINITE, Precision.AMP_BF16)


def test_skipped_steps_learn_nothing_and_are_counted() -> None:
    guard = FiniteGuard(1, ["code", "books"])
    assert step(guard, [1.0]).grad is not None
    assert step(guard, [1.0], INFINITE).grad is None
    with pytest.raises(ValueError, match="max_skipped_steps=2"):
        step(guard, [1.0], INFINITE)
