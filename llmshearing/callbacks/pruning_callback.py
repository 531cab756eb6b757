"""Keeps the L0 module in step with the run, logs its sparsities and saves its masks."""

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
from llmshearing.pruning.l0 import L0Module, local


class PruningCallback(StepReader):
    """Tells the L0 module the step, keeps its log_alphas within their limit, and reports.

    Logged after every step:

    | key | meaning |
    |---|---|
    | `metrics/train/expected_{module}_sparsity` | expected sparsity of a mask kind, mean over its rows |
    | `metrics/train/target_{module}_sparsity` | the target in force for it |
    | `metrics/train/{expected,target}_sparsity` | the same of all parameters that masks reach |
    | `metrics/train/{multiplier}` | the Lagrange multipliers, such as `lambda_1_head` |

    Args:
        save_folder: folder for `zs_s{step}.safetensors`, the deterministic masks after each evaluation;
            None: masks are not saved.
    """

    def __init__(self, save_folder: str | None = None) -> None:
        self.save_folder = save_folder
        self._values: dict[str, Tensor] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        module = l0_module(state)
        module.seed = state.rank_zero_seed
        module.constrain()

    def batch_start(self, state: State, logger: Logger) -> None:
        l0_module(state).set_step(state.timestamp.batch.value)

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        l0_module(state).set_step(state.timestamp.batch.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        l0_module(state).constrain()  # after the optimizer's step, before an evaluation or a checkpoint

    def own(self, state: State) -> dict[str, Tensor]:
        multipliers = {name: local(value) for name, value in l0_module(state).lambdas.items()}
        self._values = {**cast(Any, state.outputs)["l0_output"][1], **multipliers}
        return self._values

    def take(self, state: State, logger: Logger, numbers: Mapping[str, Any]) -> None:
        logger.log_metrics({f"metrics/train/{name}": numbers[name] for name in self._values})

    def eval_end(self, state: State, logger: Logger) -> None:
        if self.save_folder is None:
            return
        module = l0_module(state)
        with torch.no_grad():
            gates = {name: gate.cpu() for name, gate in module.deterministic().items()}
        if dist.get_global_rank() == 0:
            folder = Path(self.save_folder)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"zs_s{state.timestamp.batch.value}.safetensors") as temporary:
                save_tensors(gates, temporary)


def l0_module(state: State) -> L0Module:
    """The L0 module of the model in training."""
    model = state.model
    assert isinstance(model, ComposerMosaicLlama)
    assert model.model.l0_module is not None
    return model.model.l0_module
