"""Resumes from a checkpoint, on the same or another number of processes, without running anything in it.

Composer's own loading unpickles whatever a file holds and evaluates text in it; here everything is read as
data and handed to Composer's state by its public methods.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, reproducibility
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from llmshearing.callbacks.checkpointing import division
from llmshearing.callbacks.resumable import check_contents, unfit
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.sharded import is_sharded, load_sharded
from llmshearing.config.resuming import changes
from llmshearing.pruning import Method

log = logging.getLogger(__name__)

# What Composer's state restores by itself, except the run's name and algorithms, which are this run's own
# (Composer would evaluate the text it finds there), and metrics, which start over with each evaluation.
_PLAIN = ("callbacks", "dataset_state", "rank_zero_seed", "scaler", "schedulers", "timestamp")


class Resume(Callback):
    """Restores model, optimizer, schedules, data and callbacks before the first step.

    Args:
        path: the checkpoint, a file or a folder of shards.
        config: the resolved configuration of this run as YAML.
        weights_only: restore the model alone: a new run from these weights.
        contents: the content of the file, where it has been opened already.
        data: hash of the manifest of this run's training data, None where it has none.
        teacher: `path` and `sha256` of this run's teacher, None where it has none.
    """

    def __init__(
        self,
        path: Path,
        config: str,
        weights_only: bool = False,
        contents: Any | None = None,
        data: str | None = None,
        teacher: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.weights_only = weights_only
        self._contents = contents
        self.data = data
        self.teacher = teacher
        self._rng: list[dict[str, Any]] | None = None
        self._max_duration: str | None = None

    def before_load(self, state: State, logger: Logger) -> None:
        sharded = is_sharded(self.path)
        contents, self._contents = self._contents, None  # a mapped file is let go once it is loaded
        if contents is None:
            contents = _read_sharded(self.path, state) if sharded else load_tensors(self.path)
        self._check(contents, state)
        options = StateDictOptions(full_state_dict=not sharded, strict=True)
        saved = contents["state"]
        _check_complete(saved["model"], state, self.path)
        try:
            set_model_state_dict(state.model, saved["model"], options=options)
        except RuntimeError as error:
            raise ValueError(f"{self.path} belongs to a different model: {error}") from error
        if self.weights_only:
            return
        optimizer = state.optimizers[0]
        try:
            optimized = _with_every_state(saved["optimizers"][_name(optimizer)], state)
            set_optimizer_state_dict(state.model, optimizer, optimized, options=options)
        except Exception as error:  # torch checks nothing, and raises whatever comes
            raise unfit(self.path, "a state of the optimizer", error) from error
        stateless = "|".join(type(each).__qualname__ for each in state.callbacks if not each.state_dict())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"({stateless}) is not in the state_dict")
            try:
                state.load_state_dict({key: saved[key] for key in _PLAIN if key in saved}, logger)
            except (AttributeError, LookupError, TypeError, RuntimeError) as error:
                raise unfit(self.path, "a state of the trainer", error) from error
        self._rng = contents["rng"]
        self._max_duration = contents.get("max_duration")
        self._check_division(contents.get("division"), state)
        log.info("resuming from %s, step %d", self.path, state.timestamp.batch.value)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Warn of a learning rate that jumps because the duration of the run changed."""
        now, duration = _learning_rates(state), state.max_duration
        if self._max_duration is None or dist.get_global_rank() != 0:
            return
        state.max_duration = self._max_duration  # type: ignore[assignment]
        before = _learning_rates(state)
        state.max_duration = duration
        if not np.allclose(before, now, rtol=1e-6, atol=0):
            log.warning(
                "max_duration was %s, is %s, which changes the schedule of learning rates. After step %d "
                "they jump from %s to %s",
                self._max_duration,
                duration,
                state.timestamp.batch.value,
                ", ".join(f"{value:.4g}" for value in before),
                ", ".join(f"{value:.4g}" for value in now),
            )

    def batch_start(self, state: State, logger: Logger) -> None:
        if self._rng is not None:  # the trainer seeds again after loading, and the loader draws a number
            reproducibility.load_rng_state(self._rng)
            self._rng = None

    def _check(self, contents: Any, state: State) -> None:
        """Check that this is a checkpoint of a run with this configuration and data.

        Raises:
            ValueError: when it is incomplete, or a setting changed with which the run cannot be resumed.
        """
        check_contents(contents, self.path, _name(state.optimizers[0]), self.weights_only)
        if self.weights_only:
            return
        saved_record = contents["state"]["callbacks"]["RunRecord"]
        changed, differing = changes(saved_record["config"], self.config)
        if saved_record.get("data", self.data) != self.data and dist.get_global_rank() == 0:
            log.warning(
                "the training data differs from that of the run that wrote %s: its manifest.json has SHA-256 "
                "%s, that run's had %s. Restore that data, or start a new run from these weights: "
                "load_weights_only=true.",
                *(self.path, self.data, saved_record["data"]),
            )
        if changed:
            raise ValueError(
                f"{self.path} was written by a run with a different configuration: "
                + "; ".join(changed)
                + ". "
                "Restore these keys, or start a new run from its weights: load_weights_only=true."
            )
        self._check_teacher(saved_record.get("teacher"))
        if differing and dist.get_global_rank() == 0:
            log.warning(
                "settings changed since the run that wrote %s: %s",
                self.path,
                "; ".join(differing),
            )

    def _check_teacher(self, saved: Mapping[str, str] | None) -> None:
        """Check that the teacher has the weights of the one that taught so far, wherever it lies.

        Raises:
            ValueError: when it has others.
        """
        if saved is None or self.teacher is None or saved["sha256"] == self.teacher["sha256"]:
            return
        raise ValueError(
            f"{self.path} was written by a run with a different teacher: {saved['path']}, whose weights had "
            f"SHA-256 {saved['sha256']}; those of {self.teacher['path']} have {self.teacher['sha256']}. "
            "Restore that teacher, or start a new run from these weights: load_weights_only=true."
        )

    def _check_division(self, saved: Mapping[str, int] | None, state: State) -> None:
        """Keep noise that depends on the division of a batch what it was, or reject or report the change.

        Raises:
            ValueError: when the microbatches of this run have a different size.
        """
        methods = [module for module in state.model.modules() if isinstance(module, Method)]
        method = next((method for method in methods if method.noise_depends_on_division), None)
        if saved is None or method is None:
            return
        now = division(state)
        if now["processes"] != saved["processes"] and dist.get_global_rank() == 0:
            log.warning(
                "%s was written by %d processes, this run has %d. The noise of model.%s is drawn for each "
                "process, so the run continues with different noise (with noise=shared it would not)",
                self.path,
                saved["processes"],
                now["processes"],
                method.section,
            )
        if now["processes"] != saved["processes"] or now["microbatch"] == saved["microbatch"]:
            return
        if state.auto_microbatching:
            state.device_train_microbatch_size = saved["microbatch"]
        else:
            raise ValueError(
                f"{self.path} was written with {saved['microbatch']} sequences in a microbatch, this run "
                f"has {now['microbatch']}. The noise of model.{method.section} is drawn for each microbatch, "
                "so the run would continue with different noise: set device_train_microbatch_size="
                f"{saved['microbatch']}, or start a new run from its weights: load_weights_only=true."
            )


def _with_every_state(saved: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Optimizer state with that of parameters added that never had a gradient, which is as in the beginning.

    The optimizer saves none for them, and torch restores only complete states.
    """
    states = dict(saved["state"])
    for name, parameter in state.model.named_parameters():
        plain = name.replace("_checkpoint_wrapped_module.", "")
        if parameter.requires_grad and plain not in states:
            shape = torch.zeros(parameter.shape)
            zeros = torch.zeros_like(parameter) if isinstance(parameter, DTensor) else shape
            states[plain] = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    return {**saved, "state": states}


def _check_complete(weights: Mapping[str, Any], state: State, path: Path) -> None:
    """Check that a checkpoint has all weights of the model, since torch would keep those that it lacks.

    Raises:
        ValueError: naming one of them.
    """
    expected = get_model_state_dict(state.model, options=StateDictOptions(full_state_dict=False))
    missing = [name for name in expected if name not in weights]
    if missing:
        raise ValueError(
            f"{path} does not match this run's model: it lacks {len(missing)} of {len(expected)} weights, "
            f"such as {missing[0]}. Use the model sizes and pruning section of the run that wrote it."
        )


def find_checkpoint(
    folder: Path | None, load_path: str | None = None, autoresume: bool = False, overwrite: bool = False
) -> Path | None:
    """The checkpoint that a run starts from, the same on every rank; None: it starts from scratch.

    Args:
        folder: the run's own; `autoresume` resumes from its latest checkpoint, if any.
        load_path: a checkpoint from elsewhere, for a run that has none of its own yet.
        overwrite: start over although `folder` holds checkpoints.

    Raises:
        FileNotFoundError: when there is nothing at `load_path`.
        FileExistsError: when the folder holds checkpoints that the run would mix with its own.
        ValueError: when the checkpoint is damaged, naming the complete one before it.
    """
    choice = choose_checkpoint(folder, load_path, autoresume, overwrite)
    if choice is not None:
        _check_undamaged(choice)
    return choice


def choose_checkpoint(
    folder: Path | None, load_path: str | None = None, autoresume: bool = False, overwrite: bool = False
) -> Path | None:
    """`find_checkpoint` without checking the checkpoint for damage."""
    place = folder.resolve() if folder is not None else None
    own = run_folder.checkpoints(place) if place is not None else []
    strays = run_folder.without_manifest(place) if place is not None else []
    choice = own[0] if own and autoresume else run_folder.follow(load_path).resolve() if load_path else None
    agreed: list[Any] = [own, strays, choice]
    dist.broadcast_object_list(agreed)
    own, strays, choice = agreed
    _check_strays(strays, own, choice, overwrite)
    if own and not (autoresume or overwrite or choice in own or choice in strays):
        raise FileExistsError(
            f"{folder} holds checkpoints of an earlier run, the last of step {run_folder.step_of(own[0])}: "
            "set autoresume=true to resume, save_overwrite=true to start over, or another save_folder."
        )
    # Checked on every rank, so that all agree: nodes may not see the same files.
    if not all(dist.all_gather_object(choice is None or choice.exists())):
        raise FileNotFoundError(f"load_path is {load_path}, which does not exist.")
    return choice


def _check_strays(strays: list[Path], own: list[Path], choice: Path | None, overwrite: bool) -> None:
    """Check that the run overwrites no later checkpoint that lacks its manifest.

    Raises:
        FileExistsError: naming it.
    """
    if not strays or overwrite or choice in strays:
        return
    last = strays[0]
    if own and run_folder.step_of(last) <= run_folder.step_of(own[0]):
        return
    raise FileExistsError(
        f"{last.parent} holds {last.name} without {last.name}.json, which says whether it is complete: copy "
        f"that too, resume from it unchecked with load_path={last}, start over with save_overwrite=true, or "
        "set another save_folder."
    )


def _check_undamaged(checkpoint: Path) -> None:
    """Compare a checkpoint with its manifest, if it has one; each rank reads a share of the files."""
    manifest = run_folder.read_manifest(checkpoint)
    files = sorted(manifest["files"]) if manifest is not None else []
    mine = files[dist.get_global_rank() :: dist.get_world_size()]
    shares = dist.all_gather_object(run_folder.damage(checkpoint, mine) if mine else [])
    run_folder.reject(checkpoint, [problem for share in shares for problem in share])


def _learning_rates(state: State) -> list[float]:
    """The learning rates of the schedule now, by parameter group."""
    return [
        peak * factor(scheduler.last_epoch)
        for scheduler in cast(list[LambdaLR], state.schedulers)
        for peak, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]


def _name(optimizer: Any) -> str:
    return type(optimizer).__qualname__


def _read_sharded(path: Path, state: State) -> dict[str, Any]:
    """The checkpoint, every process reading its own part of weights and moments."""
    options = StateDictOptions(full_state_dict=False)
    optimizer = state.optimizers[0]
    like = {
        "model": get_model_state_dict(state.model, options=options),
        "optimizers": {_name(optimizer): get_optimizer_state_dict(state.model, optimizer, options=options)},
    }
    return load_sharded(path, [("state",), ("rng",), ("division",), ("max_duration",)], {"state": like})
