"""From a configuration to a finished run: prepare it, build each part from what was opened, then `fit`.

Composer's Trainer is used as it is; everything of ours enters as a model, a dataset or a callback.
"""

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer import Evaluator, Trainer
from composer.core import Callback
from composer.loggers import LoggerDestination
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
)
from composer.utils import dist, reproducibility
from torch.utils.data import DataLoader

from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.callbacks.components import build_components
from llmshearing.callbacks.constraint_watch import ConstraintWatch
from llmshearing.callbacks.domain_losses import DomainLosses
from llmshearing.callbacks.dynamic_loading_callback import build_dynamic_loading
from llmshearing.callbacks.end_of_data import EndOfData
from llmshearing.callbacks.finite_guard import FiniteGuard
from llmshearing.callbacks.metrics_file import MetricsFile
from llmshearing.callbacks.progress_lines import ProgressLines
from llmshearing.callbacks.pruning_callback import PruningCallback
from llmshearing.callbacks.report_callback import ReportCallback
from llmshearing.callbacks.resume import Resume
from llmshearing.callbacks.run_record import RunRecord
from llmshearing.callbacks.signals import StopOnSignal
from llmshearing.callbacks.step_numbers import StepNumbers
from llmshearing.callbacks.watchdog import Watchdog
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.weights import weights_sha256
from llmshearing.checkpoints.writing import load_weights
from llmshearing.config import Config, FsdpConfig
from llmshearing.config.writing import to_yaml
from llmshearing.datasets.load_text_dataloader import evaluation_loader, training_loader
from llmshearing.datasets.ranks import current_ranks
from llmshearing.files import occupied, replacing
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.distillation import Teacher, held_in
from llmshearing.models.model_registry import model_class
from llmshearing.planning.prepared import Prepared, prepare
from llmshearing.planning.sizes import planned_steps
from llmshearing.planning.text import describe, describe_fit
from llmshearing.report import write_report
from llmshearing.sharding import parallelize, shard_frozen
from llmshearing.stack import complete_composer

logger = logging.getLogger(__name__)

_CTRL_C = 128 + signal.SIGINT  # with which Composer exits then
_SCHEDULERS = {
    "cosine_with_warmup": CosineAnnealingWithWarmupScheduler,
    "linear_decay_with_warmup": LinearWithWarmupScheduler,
}


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
        progress_bar=_shows_bar(config),
        precision=config.precision,
        compile_config=config.compile_config,
        device_train_microbatch_size=config.device_train_microbatch_size,
        seed=config.seed,
        dist_timeout=config.dist_timeout,
        python_log_level=config.python_log_level,
    )


# ----------------------------------------------------------------------- parts


def build_model(prepared: Prepared) -> ComposerMosaicLlama:
    """The model, with the weights of the source where there is one.

    Raises:
        ValueError: when the weights do not fit the model.
    """
    config, checkpoint = prepared.config, prepared.checkpoint
    model = model_class(config.model.name)(config.model)
    parallelize(model, _fsdp(config), config.precision)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    if model.model.method is not None:
        model.model.method.initialize(config.seed, checkpoint.weights.keys() if checkpoint else ())
    model.return_logits = False
    if config.distillation is not None:
        model.ce_weight = config.distillation.ce_weight
        model.teacher = build_teacher(prepared)
    return model


def build_teacher(prepared: Prepared) -> Teacher | None:
    """The frozen teacher with its weights on this process's device, sharded where there are several.

    It is held in the type that the run computes in: on CUDA bf16 or fp16 under autocast, else fp32.
    """
    config, opened = prepared.config, prepared.teacher
    if opened is None:
        return None
    assert config.distillation is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_class(opened.section.name)(replace(opened.section, init_device="meta"))
    model.to(held_in(config.precision, device))
    shard_frozen(model.model)
    model.to_empty(device=device)
    load_weights(model, opened.checkpoint)
    return Teacher(model.model, config.distillation)


def build_loaders(prepared: Prepared) -> tuple[DataLoader, Evaluator | None]:
    """The training mixture and, when there is an `eval_loader`, the evaluation, from opened folders."""
    config, data, ranks = prepared.config, prepared.data, current_ranks()
    assert data.mixture is not None
    batch = config.global_train_batch_size // ranks.world_size
    train = training_loader(list(data.folders.values()), data.mixture, batch, ranks)
    if config.eval_loader is None:
        return train, None
    assert data.evaluation is not None
    evaluation = evaluation_loader(config.eval_loader, data.evaluation, config.device_eval_batch_size, ranks)
    return train, Evaluator(label="eval", dataloader=evaluation)


def build_optimizer(config: Config, model: ComposerMosaicLlama) -> torch.optim.Optimizer:
    """One optimizer: the model's parameters, then the groups of the pruning method.

    `decoupled_adamw` is torch's AdamW with the weight decay divided by the peak learning rate, which is
    Composer's DecoupledAdamW exactly: each step shrinks a weight by weight_decay x lr / peak lr.
    """
    settings = config.optimizer
    groups = _parameter_groups(config, model)
    betas = (settings.betas[0], settings.betas[1])
    for group in groups:
        if settings.name == "decoupled_adamw" and group["lr"]:
            group["weight_decay"] /= group["lr"]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def _parameter_groups(config: Config, model: ComposerMosaicLlama) -> list[dict[str, Any]]:
    settings = config.optimizer
    method = model.model.method
    groups = method.parameter_groups(settings) if method is not None else []
    own = {id(parameter) for group in groups for parameter in group["params"]}
    weights = [p for p in model.model.transformer.parameters() if p.requires_grad and id(p) not in own]
    if not weights:  # a method may train its own parameters alone
        return groups
    main = {"params": weights, "lr": settings.lr, "weight_decay": settings.weight_decay}
    return [main, *groups]


def build_scheduler(config: Config) -> ComposerScheduler:
    """The schedule that all parameter groups share."""
    settings = config.scheduler
    if settings.name == "constant_with_warmup":
        return ConstantWithWarmupScheduler(t_warmup=settings.t_warmup)
    return _SCHEDULERS[settings.name](t_warmup=settings.t_warmup, alpha_f=settings.alpha_f)


def build_loggers(config: Config) -> list[LoggerDestination]:
    """Composer loggers by name, lines of progress where no bar shows it, and the metrics file.

    W&B writes to its local folder unless WANDB_MODE or `init_kwargs.mode` says otherwise.
    """
    if "wandb" in config.loggers:
        os.environ.setdefault("WANDB_MODE", "offline")
    loggers = build_components(config, "loggers")
    if not _shows_bar(config) and (config.progress_bar or config.log_to_console):
        loggers.append(ProgressLines(config.console_log_interval))
    if config.save_folder:
        loggers.append(MetricsFile(Path(config.save_folder) / "metrics.jsonl"))
    return loggers


def build_callbacks(
    prepared: Prepared, model: ComposerMosaicLlama, watchdog: Watchdog | None = None
) -> list[Callback]:
    """Ours, in the order in which they act, then Composer's by name."""
    config, saved = prepared.config, prepared.saved
    record = _record(prepared)
    callbacks: list[Callback] = [RunRecord(record)]
    if saved is not None:
        resume = Resume(
            saved.path,
            record["config"],
            config.load_weights_only,
            contents=saved.contents,
            data=record["data"],
            teacher=record.get("teacher"),
        )
        callbacks.append(resume)
    method = model.model.method
    if method is not None:
        callbacks.append(PruningCallback(config.save_folder, planned_steps(config)))
        callbacks += [ConstraintWatch(method.remedy)] if method.remedy else []
    if config.save_folder:
        callbacks.append(ReportCallback(config.save_folder, write_report))
    domains = config.data_loading
    if domains.set_names:
        callbacks += [DomainLosses(domains.set_names), build_dynamic_loading(domains)]
    callbacks += [EndOfData(), FiniteGuard(config.max_skipped_steps, domains.set_names)]
    checkpointing = _checkpointing(config, watchdog) if config.save_folder else None
    callbacks += [*([checkpointing] if checkpointing else []), StopOnSignal(checkpointing), StepNumbers()]
    return callbacks + build_components(config, "callbacks")


def _checkpointing(config: Config, watchdog: Watchdog | None) -> Checkpointing:
    assert config.save_folder is not None
    sharded = dist.get_world_size() > 1 and _fsdp(config).state_dict_type.lower() == "sharded"
    return Checkpointing(
        Path(config.save_folder),
        config.save_interval,
        config.save_num_checkpoints_to_keep,
        config.save_weights_only,
        sharded,
        *([watchdog.beat] if watchdog else []),
    )


# --------------------------------------------------------------------- helpers


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


def _fsdp(config: Config) -> FsdpConfig:
    return config.fsdp_config or FsdpConfig()


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


def _shows_bar(config: Config) -> bool:
    return config.progress_bar and sys.stderr.isatty()


def _record(prepared: Prepared) -> dict[str, Any]:
    manifest = prepared.data.manifest
    return {
        "config": to_yaml(prepared.config),
        "hf_files": prepared.hf_files,
        "data": manifest.sha256 if manifest is not None else None,
        **({"teacher": _teacher_record(prepared)} if prepared.teacher is not None else {}),
    }


def _teacher_record(prepared: Prepared) -> dict[str, str]:
    """Where the teacher is, as the file says it, and the hash of its weights, which one process computes."""
    config, teacher = prepared.config, prepared.teacher
    assert config.distillation is not None
    assert teacher is not None
    place = ("distillation", "teacher") if config.distillation.teacher else ("model", "path")
    path = config.written[place].text if place in config.written else str(Path(teacher.path).absolute())
    first = dist.get_global_rank() == 0
    shares = dist.all_gather_object(weights_sha256(teacher.checkpoint.weights) if first else "")
    return {"path": path, "sha256": shares[0]}


def _supersede(config: Config, folder: Path, trainer: Trainer) -> None:
    """Clear `folder` of what belongs to a different run."""
    begin = next((part.path for part in trainer.state.callbacks if isinstance(part, Resume)), None)
    step = trainer.state.timestamp.batch.value
    run_folder.supersede(folder, step, begin, config.save_overwrite, config.autoresume)


def _write_config(config: Config, folder: Path) -> None:
    with replacing(folder / run_folder.CONFIG) as draft:
        draft.write_text(to_yaml(config))
