"""Drives the pruning method during a run, logs its values and saves its gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.callbacks.step_numbers import StepReader
from llmshearing.files import replacing, save_tensors
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.decoder import Decoder
from llmshearing.pruning import Method
from llmshearing.pruning.replicated import share_gradients


class PruningCallback(StepReader):
    """Tells the pruning method the step and lets it act around the optimizer's.

    Logged after every step, of methods that prune to a target:

    | key | meaning |
    |---|---|
    | `metrics/train/expected_{kind}_sparsity` | (expected) sparsity of a kind of units, mean over its rows |
    | `metrics/train/target_{kind}_sparsity` | the target in force for it |
    | `metrics/train/{expected,target}_sparsity` | the same, of all parameters that the method reaches |
    | `metrics/train/{value}` | what else it reports, such as the Lagrange multiplier `lambda_1_head` |

    Args:
        save_folder: folder for `zs_s{step}.safetensors`, the gates without noise after each evaluation; None:
            they are not saved.
        steps: the steps of the whole run, along which a method may schedule what it does; 0: unknown.
    """

    def __init__(self, save_folder: str | None = None, steps: int = 0) -> None:
        self.save_folder = save_folder
        self.steps = steps
        self._values: dict[str, Tensor] = {}
        self._sequences = self._seen = 0  # of this process in the step: all, and those of microbatches done

    def fit_start(self, state: State, logger: Logger) -> None:
        method = pruning_method(state)
        method.seed = state.rank_zero_seed
        self._end(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._sequences = len(state.batch["input_ids"])
        self._begin(state)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._seen = 0  # also when the step is tried again with smaller microbatches

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        self._begin(state)

    def after_backward(self, state: State, logger: Logger) -> None:
        self._seen += len(state.batch["input_ids"])
        if self._seen == self._sequences:
            method = pruning_method(state)
            share_gradients(method.parameters())
            method.after_backward(_decoder(state))

    def own(self, state: State) -> dict[str, Tensor]:
        self._values = cast(Any, state.outputs)["l0_output"][1]
        return self._values

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        logger.log_metrics({f"metrics/train/{name}": numbers[name] for name in self._values})

    def batch_end(self, state: State, logger: Logger) -> None:
        self._end(state)  # before an evaluation or a checkpoint

    def eval_end(self, state: State, logger: Logger) -> None:
        if self.save_folder is None:
            return
        with torch.no_grad():
            gates = {kind: gate.cpu() for kind, gate in pruning_method(state).gates_by_kind().items()}
        if gates and dist.get_global_rank() == 0:
            folder = Path(self.save_folder)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"zs_s{state.timestamp.batch.value}.safetensors") as temporary:
                save_tensors(gates, temporary)

    def _begin(self, state: State) -> None:
        pruning_method(state).begin_step(state.timestamp.batch.value, self.steps)

    def _end(self, state: State) -> None:
        method = pruning_method(state)
        method.done = state.timestamp.batch.value
        method.after_step(_decoder(state))


def pruning_method(state: State) -> Method:
    """The pruning method of the model in training."""
    method = _decoder(state).method
    assert method is not None
    return method


def _decoder(state: State) -> Decoder:
    assert isinstance(state.model, ComposerMosaicLlama)
    return state.model.model
