"""The numbers that callbacks need from a training step, read from the device in one transfer."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor


class StepReader(Callback):
    """A callback that needs numbers of every training step on the host.

    `StepNumbers` collects the tensors of all readers after the backward pass, and gives every reader all
    numbers before the optimizer's step.
    """

    def summed(self, state: State) -> Mapping[str, Tensor]:
        """Tensors to sum over all processes, by names that no other callback uses."""
        return {}

    def own(self, state: State) -> Mapping[str, Tensor]:
        """Tensors to read as they are on this process."""
        return {}

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        """Use the numbers of this step, of all callbacks: floats, or nested lists of them."""


class StepNumbers(Callback):
    """Concatenates the tensors of all `StepReader`s, sums them once and reads them once.

    Each read waits for the device, so a step should have only one. It takes place after the backward pass,
    because it decides whether the optimizer may use the gradients.
    """

    def after_train_batch(self, state: State, logger: Logger) -> None:
        readers = [part for part in state.callbacks if isinstance(part, StepReader)]
        summed = {name: value for reader in readers for name, value in reader.summed(state).items()}
        own = {name: value for reader in readers for name, value in reader.own(state).items()}
        if not (tensors := {**summed, **own}):
            return
        total = _flat(summed, state)
        dist.all_reduce(total)
        values = torch.cat([total, _flat(own, state)]).tolist()
        numbers, begin = {}, 0
        for name, tensor in tensors.items():
            end = begin + tensor.numel()
            numbers[name] = _nested(values[begin:end], list(tensor.shape))
            begin = end
        for reader in readers:
            reader.take(state, logger, numbers)


def _flat(tensors: Mapping[str, Tensor], state: State) -> Tensor:
    """All elements as one fp64 tensor on the device: sums of fp32 and counts stay exact."""
    parts = [tensor.detach().double().reshape(-1) for tensor in tensors.values()]
    return torch.cat(parts) if parts else _empty(state)


def _empty(state: State) -> Tensor:
    return cast(Tensor, state.device.tensor_to_device(torch.empty(0, dtype=torch.float64)))


def _nested(values: list[float], shape: list[int]) -> Any:
    """A flat list in the shape of its tensor; a float for a scalar."""
    if not shape:
        return values[0]
    size = len(values) // shape[0] if shape[0] else 0
    return [_nested(values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
