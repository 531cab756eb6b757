"""From a configuration to a finished run: prepare it, build each part (`building.py`), then `fit`.

Composer's Trainer is used as it is; everything of ours enters as a model, a dataset or a callback.
"""

import logging
import signal
from pathlib import Path

import torch
from composer import Trainer
from composer.utils import dist, reproducibility

from llmshearing.building import (
    build_callbacks,
    build_loaders,
    build_loggers,
    build_model,
    build_optimizer,
    build_scheduler,
    shows_bar,
)
from llmshearing.callbacks.components import build_components
from llmshearing.callbacks.resume import Resume
from llmshearing.callbacks.watchdog import Watchdog
from llmshearing.checkpoints import run_folder
from llmshearing.config import Config
from llmshearing.config.writing import to_yaml
from llmshearing.files import occupied, replacing
from llmshearing.planning.prepared import Prepared, prepare
from llmshearing.planning.text import describe, describe_fit
from llmshearing.stack import complete_composer

logger = logging.getLogger(__name__)

_CTRL_C = 128 + signal.SIGINT  # with which Composer exits then


def train(config: Config) -> None:
    """Run `config` from start to end: prune when it names a pruning method, train otherwise.

    Raises:
        Interrupted: a SystemExit, when SIGTERM or SIGUSR1 ended the run after a checkpoint.
        FileExistsError: when another run is writing to `save_folder`.
    """
    if config.save_folder and dist.get_global_rank() == 0:
        with occupied(Path(config.save_folder), "run", "save_folder"):
            _train(config)
    else:
        _train(config)


def _train(config: Config) -> None:
    folder = Path(config.save_folder) if config.save_folder else None
    if folder is not None and dist.get_global_rank() == 0:
        run_folder.repair(folder)
    watchdog = Watchdog(config.dist_timeout, run_folder.place_of_writing(folder) if folder else None)
    prepared = prepare_run(config)
    config = prepared.config
    trainer = _build(prepared, watchdog)
    del prepared  # with what it holds of the checkpoints
    done, duration = trainer.state.timestamp, trainer.state.max_duration
    if duration is not None and done.get(duration.unit) >= duration:
        logger.info(
            "%s is complete (step %d): to resume it, raise max_duration", config.save_folder, done.batch.value
        )
        trainer.close()
        return
    dist.barrier()  # every rank has read what it starts from
    if folder is not None and dist.get_global_rank() == 0:
        _supersede(config, folder, trainer)
        _write_config(config, folder)
    if config.eval_first and trainer.state.timestamp.batch.value == 0:
        trainer.eval()
    try:
        trainer.fit()
    except BaseException as error:
        # What a collective raises when another rank is gone is a RuntimeError.
        if isinstance(error, RuntimeError) and dist.get_world_size() > 1:
            logger.error("rank %d failed. The ranks:\n%s", dist.get_global_rank(), watchdog.explain())
        trainer.engine.close()  # not the trainer, which would wait for all ranks
        if isinstance(error, SystemExit) and error.code == _CTRL_C:
            raise KeyboardInterrupt(_what_is_left(config)) from error
        raise
    trainer.close()


def build_trainer(config: Config, watchdog: Watchdog | None = None) -> Trainer:
    """A Composer Trainer ready to `fit`, watched by `watchdog`.

    Raises:
        ValueError: with every problem of the run, one a line.
        TimeoutError: when the other processes are not there in time.
    """
    return _build(prepare_run(config), watchdog)


def prepare_run(config: Config) -> Prepared:
    """Join the other processes, open all that the run needs, and log what it would do.

    Raises:
        ValueError: with every problem of every rank, one a line.
        TimeoutError: when the other processes are not there in time.
    """
    _meet(config.dist_timeout)
    prepared = prepare(config, dist.get_world_size(), starts=True)
    if problems := _of_all_ranks(prepared.problems):
        raise ValueError("\n".join(problems))
    if dist.get_global_rank() == 0:
        logger.info("Before the first step:\n%s", describe(prepared, [prepared.devices]))
        for warning in [*prepared.warnings, *_tight_memory(prepared)]:
            logger.warning(warning)
    return prepared


def _build(prepared: Prepared, watchdog: Watchdog | None) -> Trainer:
    config = prepared.config
    complete_composer()
    reproducibility.seed_all(config.seed)
    model = build_model(prepared)
    train_loader, evaluator = build_loaders(prepared)
    return Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluator,
        eval_interval=config.eval_interval,
        eval_subset_num_batches=config.eval_subset_num_batches,
        max_duration=config.max_duration,
        optimizers=build_optimizer(config, model),
        schedulers=build_scheduler(config),
        algorithms=build_components(config, "algorithms"),
        callbacks=[*([watchdog] if watchdog else []), *build_callbacks(prepared, model, watchdog)],
        loggers=build_loggers(config),
        run_name=config.run_name,
        progress_bar=shows_bar(config),
        precision=config.precision,
        compile_config=config.compile_config,
        device_train_microbatch_size=config.device_train_microbatch_size,
        seed=config.seed,
        dist_timeout=config.dist_timeout,
        python_log_level=config.python_log_level,
    )


def _meet(timeout: float) -> None:
    """Join the other processes.

    Raises:
        TimeoutError: when they are not all there in time.
    """
    try:
        dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=timeout)
    except torch.distributed.DistError as error:
        raise TimeoutError(
            f"Rank {dist.get_global_rank()} did not find all {dist.get_world_size()} processes within "
            f"dist_timeout ({timeout:g} s): {str(error).splitlines()[0]} Look at the log of every "
            "rank; every node must be up and reach the first one."
        ) from error


def _tight_memory(prepared: Prepared) -> list[str]:
    if not torch.cuda.is_available():
        return []
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return describe_fit(prepared, prepared.devices, device.name, device.total_memory / 2**30)


def _of_all_ranks(problems: list[str]) -> list[str]:
    """The problems of every rank, each once, with the ranks that have it where others do not."""
    shares = dist.all_gather_object(problems)
    listed = []
    for problem in dict.fromkeys(problem for share in shares for problem in share):
        having = [str(rank) for rank, share in enumerate(shares) if problem in share]
        only = f"On rank {', '.join(having)} alone: " if len(having) < len(shares) else ""
        listed.append(only + problem)
    return listed


def _what_is_left(config: Config) -> str:
    """What an interrupted run can resume from."""
    saved = run_folder.latest_checkpoint(Path(config.save_folder)) if config.save_folder else None
    if saved is None:
        return "no checkpoint was saved"
    return f"autoresume=true resumes from {saved}"


def _supersede(config: Config, folder: Path, trainer: Trainer) -> None:
    """Clear `folder` of what belongs to a different run."""
    begin = next((part.path for part in trainer.state.callbacks if isinstance(part, Resume)), None)
    step = trainer.state.timestamp.batch.value
    run_folder.supersede(folder, step, begin, config.save_overwrite, config.autoresume)


def _write_config(config: Config, folder: Path) -> None:
    with replacing(folder / run_folder.CONFIG) as draft:
        draft.write_text(to_yaml(config))
