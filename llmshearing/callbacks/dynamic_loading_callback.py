"""Dynamic batch loading: after each evaluation, domains further above their reference get more weight.

The rule (Sheared-LLaMA, section 2.2 and algorithm 1; the defaults are the released code's): with
excess loss e = loss - reference of each domain, w <- w exp(step_size e), scaled to sum to 1, then
smoothed. `docs/decisions/021-dynamic-loading.md` says where paper and released code differ.

Letter: D domains.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy.typing import NDArray

from llmshearing.config import DataLoadingConfig
from llmshearing.datasets.load_text_dataloader import evaluated_sequences
from llmshearing.datasets.mixture import normalized_weights
from llmshearing.datasets.streaming_dataset import TextDynamicStreamingDataset, TextStreamingDataset

log = logging.getLogger(__name__)

UPDATE_TYPES = ("doremi", "bandit", "constant")


def doremi_weights(
    weights: NDArray[np.float64], excess: NDArray[np.float64], step_size: float, smoothing: float
) -> NDArray[np.float64]:
    """(1 - c) normalized(w exp(step_size e)) + c / D, with weights and excess losses [D], smoothing c."""
    grown = weights * np.exp(step_size * (excess - excess.max()))
    return (1 - smoothing) * grown / grown.sum() + smoothing / weights.size


def bandit_weights(
    weights: NDArray[np.float64], excess: NDArray[np.float64], step_size: float, smoothing: float
) -> NDArray[np.float64]:
    """(1 - c) softmax(w + step_size e) + c / D, with weights and excess losses [D], smoothing c."""
    score = weights + step_size * excess
    grown = np.exp(score - score.max())
    return (1 - smoothing) * grown / grown.sum() + smoothing / weights.size


def cap_weights(weights: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Weights [D] of at most `limit`; what is cut off goes to the others in proportion to theirs.

    `limit` is at least 1 / D, so that there is room for it.
    """
    result, full = weights.copy(), np.zeros(weights.size, bool)
    while (result > limit).any():
        full |= result > limit
        result[full] = limit
        room, others = 1 - limit * full.sum(), result[~full]
        result[~full] = room * others / others.sum() if others.sum() > 0 else room / others.size
    return result


class DynamicLoadingCallback(Callback):
    """Mixes the training data by how far each domain's evaluation loss is above its reference.

    An evaluation during training after at least one step updates the weights, which hold from the
    next batch on. `trainer.eval()`, and so `eval_first`, does not.

    | key | meaning |
    |---|---|
    | `metrics/train/{domain}_weight` | probability of the domain, logged at start and after each update |
    | `metrics/train/{domain}_pass` | passes over the domain's data; 1.5: half of it was read twice |
    | `metrics/train/{domain}_excess_loss` | evaluation loss minus reference that an update used, in nats |

    Args:
        target_loss: reference loss of each domain, in nats a token; None for `constant` only.
        proportion: starting weights, as the training dataset got them; a domain of weight 0 keeps it.
        set_names: the domains.
        update_type: `doremi`, `bandit` (softmax of weight + excess) or `constant`.
        clip_excess: if true, a domain below its reference counts as exactly at it (as in the paper).
        smoothing: share of every new weight that is spread evenly over the domains, 0 to 1.
        step_size: factor of the excess loss, above 0.
        max_weight: the largest weight that an update gives a domain, from 1 / D to 1.

    Raises:
        ValueError: for settings out of their range.
    """

    def __init__(
        self,
        target_loss: Sequence[float] | None,
        proportion: Sequence[float],
        set_names: Sequence[str],
        update_type: str = "doremi",
        *,
        clip_excess: bool = False,
        smoothing: float = 1e-4,
        step_size: float = 1.0,
        max_weight: float | None = None,
    ):
        normalized_weights(proportion, set_names)
        used = sum(weight > 0 for weight in proportion)
        _check_settings(target_loss, set_names, update_type, smoothing, step_size, max_weight, used)
        self.target_loss = list(target_loss or [])
        self.set_names = list(set_names)
        self.update_type = update_type
        self.clip_excess = clip_excess
        self.smoothing = smoothing
        self.step_size = step_size
        self.max_weight = max_weight
        self._in_training = True
        self._updated_at = 0  # batch of the last update; the evaluation of one step updates once

    def update_proportion(self, current_prop: Sequence[float], losses: Sequence[float]) -> list[float]:
        """The next weights from the current ones and this evaluation's losses, in the order of `set_names`.

        A domain of weight 0 keeps it: the rule is applied to the others alone.

        Raises:
            ValueError: for a loss that is not finite.
        """
        weights, loss = np.array(current_prop, np.float64), np.asarray(losses, np.float64)
        for name, value in zip(self.set_names, loss, strict=True):
            if not np.isfinite(value):
                raise ValueError(f"evaluation loss of domain {name} is {value}: the model has diverged")
        if self.update_type == "constant":
            return weights.tolist()
        excess = loss - np.asarray(self.target_loss)
        if self.clip_excess:
            excess = excess.clip(min=0)
        rule = doremi_weights if self.update_type == "doremi" else bandit_weights
        used = weights > 0
        grown = rule(weights[used], excess[used], self.step_size, self.smoothing)
        if self.max_weight is not None:
            grown = cap_weights(grown, max(self.max_weight, 1 / grown.size))
        weights[used] = grown
        return weights.tolist()

    def fit_start(self, state: State, logger: Logger) -> None:
        dataset = _train_dataset(state)
        if dataset.set_names != self.set_names:
            raise ValueError(
                f"the training data's domains are {dataset.set_names}, expected data_loading.set_names: "
                f"{self.set_names}"
            )
        if self.update_type != "constant":
            self._check_evaluation(state)
        if state.timestamp.batch.value == 0:  # a resumed run has logged them
            self._log_weights(dataset, logger)

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        self._in_training = False

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self._in_training = True

    def eval_end(self, state: State, logger: Logger) -> None:
        metrics = state.eval_metrics.get(state.dataloader_label or "", {})
        batch = state.timestamp.batch.value
        reports_domains = all(_metric(name) in metrics for name in self.set_names)
        if not self._in_training or not reports_domains or batch == self._updated_at:
            return
        self._updated_at = batch
        dataset = _train_dataset(state)
        if self.update_type != "constant":
            losses = [float(metrics[_metric(name)].compute()) for name in self.set_names]
            self._update(dataset, losses, logger)
        self._log_weights(dataset, logger)

    def _update(self, dataset: TextDynamicStreamingDataset, losses: list[float], logger: Logger) -> None:
        # Rank 0 decides: if the last bit differed between ranks, their streams would diverge.
        decision = [self.update_proportion(dataset.proportion, losses)]
        dist.broadcast_object_list(decision)
        dataset.set_proportion(decision[0])
        for name, loss, reference in zip(self.set_names, losses, self.target_loss, strict=True):
            logger.log_metrics({f"metrics/train/{name}_excess_loss": loss - reference})

    def _log_weights(self, dataset: TextDynamicStreamingDataset, logger: Logger) -> None:
        passes = dataset.passes
        for name, weight in zip(self.set_names, dataset.proportion, strict=True):
            logger.log_metrics(
                {f"metrics/train/{name}_weight": weight, f"metrics/train/{name}_pass": passes[name]}
            )

    def _check_evaluation(self, state: State) -> None:
        """Check that the evaluation, if there is one, has sequences of every domain.

        Raises:
            ValueError: naming the domains that it lacks.
        """
        present: set[str] = set()
        for evaluator in state.evaluators:
            loader: Any = evaluator.dataloader.dataloader
            if not isinstance(loader.dataset, TextStreamingDataset):
                continue
            read = evaluated_sequences(
                len(loader.dataset),
                loader.batch_size,
                dist.get_world_size(),
                evaluator.subset_num_batches or -1,
                loader.drop_last,
            )
            counts = loader.dataset.samples_per_domain(read)
            present |= {name for name, count in counts.items() if count}
        missing = [name for name in self.set_names if name not in present]
        if missing and state.evaluators:
            raise ValueError(
                f"the evaluation data has no sequences of {', '.join(missing)}, needed to update the "
                "weights: prepare eval_merge with every domain, raise eval_subset_num_batches, or set "
                "data_loading.update_type: constant"
            )

    def state_dict(self) -> dict[str, Any]:
        """The weights themselves are part of the training dataset's state."""
        return {"updated_at": self._updated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._updated_at = state["updated_at"]


def build_dynamic_loading(domains: DataLoadingConfig) -> DynamicLoadingCallback:
    """The callback of a section `callbacks.data_loading` that names its domains."""
    assert domains.set_names is not None
    assert domains.proportion is not None
    return DynamicLoadingCallback(
        domains.target_loss,
        domains.proportion,
        domains.set_names,
        domains.update_type if domains.updates else "constant",
        clip_excess=domains.clip_excess,
        smoothing=domains.smoothing,
        step_size=domains.step_size,
        max_weight=domains.max_weight,
    )


def _metric(domain: str) -> str:
    return f"{domain}_LanguageCrossEntropy"


def _train_dataset(state: State) -> TextDynamicStreamingDataset:
    dataset = getattr(state.train_dataloader, "dataset", None)
    if not isinstance(dataset, TextDynamicStreamingDataset):
        raise ValueError(
            "DynamicLoadingCallback needs a train loader made by build_text_dataloader(dynamic=True)"
        )
    return dataset


def _check_settings(
    target_loss: Sequence[float] | None,
    set_names: Sequence[str],
    update_type: str,
    smoothing: float,
    step_size: float,
    max_weight: float | None,
    used: int,
) -> None:
    if update_type not in UPDATE_TYPES:
        raise ValueError(f"update_type is {update_type!r}: expected one of {', '.join(UPDATE_TYPES)}")
    references = len(target_loss) if target_loss is not None else 0
    if references != len(set_names) and not (update_type == "constant" and target_loss is None):
        raise ValueError(
            f"target_loss has {references} values, set_names has {len(set_names)} "
            f"({', '.join(set_names)}): give one reference loss for each domain"
        )
    for name, loss in zip(set_names, target_loss or [], strict=False):
        if not 0 <= loss < math.inf:
            raise ValueError(f"target_loss of domain {name} is {loss}: expected a finite number, 0 or more")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing}: expected a share from 0 to 1")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size is {step_size}: expected a finite number above 0")
    if max_weight is not None and not 1 / used <= max_weight <= 1:
        raise ValueError(
            f"max_weight is {max_weight}: expected from 1/{used} (the domains with a weight above 0) to 1"
        )
