"""The parts of a run, each built from what was opened for it: model, loaders, optimizer, callbacks."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer import Evaluator
from composer.core import Callback
from composer.loggers import LoggerDestination
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
)
from composer.utils import dist
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
from llmshearing.checkpoints.weights import weights_sha256
from llmshearing.checkpoints.writing import load_weights
from llmshearing.config import Config, FsdpConfig
from llmshearing.config.writing import to_yaml
from llmshearing.datasets.load_text_dataloader import evaluation_loader, training_loader
from llmshearing.datasets.ranks import current_ranks
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.distillation import Teacher, held_in
from llmshearing.models.model_registry import model_class
from llmshearing.planning.prepared import Prepared
from llmshearing.planning.sizes import planned_steps
from llmshearing.report import write_report
from llmshearing.sharding import parallelize, shard_frozen

_SCHEDULERS = {
    "cosine_with_warmup": CosineAnnealingWithWarmupScheduler,
    "linear_decay_with_warmup": LinearWithWarmupScheduler,
}


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
    if not shows_bar(config) and (config.progress_bar or config.log_to_console):
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


def _fsdp(config: Config) -> FsdpConfig:
    return config.fsdp_config or FsdpConfig()


def shows_bar(config: Config) -> bool:
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
