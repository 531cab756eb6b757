"""What a run with learned masks aims at, and what speaks against it before anything is built."""

from collections.abc import Mapping

import torch

from llmshearing.config import L0Config
from llmshearing.pruning import hard_concrete, projection
from llmshearing.pruning.method import Aim
from llmshearing.pruning.score_file import read_scores
from llmshearing.pruning.scores import ranks
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import expected_parameters, prunable_parameters
from llmshearing.shapes.model_section import target_of
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from llmshearing.shapes.units import KINDS, chosen_kinds, kept_size, row_size


def aim(l0: L0Config, source: Architecture) -> Aim:
    """The task of `model.l0_module` with a source model, with its problems."""
    target = target_of(source, l0.target_model)
    kinds = chosen_kinds(l0.pruning_modules, source, target)
    problems = pruning_problems(source, target, kinds, "model.l0_module") + _start_problems(l0, source, kinds)
    warnings = []
    if not problems:
        too_far = _out_of_reach(l0, source, target, kinds)
        (problems if l0.constraint == "projection" else warnings).extend(too_far)
        if target:
            warnings += _falling_targets(l0, source, target, kinds) + export_warnings(target)
    share = None if target else l0.target_sparsity
    durations = {"model.l0_module.lagrangian_warmup_steps": [l0.lagrangian_warmup_steps]}
    return Aim(target, kinds, share, problems, warnings, durations)


def target_sparsity(kind: str, source: Architecture, target: Architecture) -> float:
    """Sparsity of the units of `kind` when `source` has the shape of `target`."""
    return 1 - kept_size(kind, source, target) / row_size(kind, source)


def floors(l0: L0Config, source: Architecture, target: Architecture | None) -> dict[str, float]:
    """The sparsity below which no projection aims, by kind or, without a target model, overall (`""`).

    It is that of the masks as they start, or the target where this is lower still, but at least what
    log-alphas at their limit are expected to close.
    """
    kinds, least = chosen_kinds(l0.pruning_modules, source, target), projection.sparsity_range()[0]
    starts = {kind: least if l0.init is None else _ordered_sparsity(kind, source) for kind in kinds}
    if target is None:
        limit = overall_sparsity(dict.fromkeys(kinds, least), source)
        return {"": max(limit, min(overall_sparsity(starts, source), l0.target_sparsity))}
    return {kind: max(least, min(s, target_sparsity(kind, source, target))) for kind, s in starts.items()}


def overall_sparsity(by_kind: Mapping[str, float], source: Architecture) -> float:
    """The overall expected sparsity where that of every row is that of its kind."""
    keep = {kind: torch.full(KINDS[kind].shape(source), 1 - s).double() for kind, s in by_kind.items()}
    return 1 - float(expected_parameters(keep, source)) / prunable_parameters(keep, source)


def _ordered_sparsity(kind: str, source: Architecture) -> float:
    """The expected sparsity of a row whose units start in the order of their scores."""
    every_rank = ranks(torch.arange(row_size(kind, source), dtype=torch.float64))
    return 1 - float(hard_concrete.keep_probability(hard_concrete.ordered_start(every_rank)).mean())


def _start_problems(l0: L0Config, source: Architecture, kinds: list[str]) -> list[str]:
    if l0.init is None:
        return []
    try:
        missing = [kind for kind in kinds if kind not in read_scores(l0.init, source).by_kind]
    except (ValueError, OSError) as error:
        return [f"model.l0_module.init: {error}"]
    if missing:
        return [
            f"model.l0_module.init is {l0.init}, which has no scores of {', '.join(missing)}; leave init "
            f"out, or {', '.join(missing)} out of pruning_modules."
        ]
    return []


def _falling_targets(l0: L0Config, source: Architecture, target: Architecture, kinds: list[str]) -> list[str]:
    return [
        f"model.l0_module.start_sparsity is {l0.start_sparsity:g}, above the {aim:.3f} that mask {kind} is "
        "to reach: its target falls."
        for kind in kinds
        if l0.start_sparsity > (aim := target_sparsity(kind, source, target))
    ]


def _out_of_reach(
    l0: L0Config, source: Architecture, target: Architecture | None, kinds: list[str]
) -> list[str]:
    """Targets beyond what log-alphas at their limit are expected to close."""
    most = projection.sparsity_range()[1]
    if target is None:
        most = overall_sparsity(dict.fromkeys(kinds, most), source)
        aims = {"the whole model": l0.target_sparsity}
        line = "lower model.l0_module.target_sparsity"
    else:
        aims = {f"mask {kind}": target_sparsity(kind, source, target) for kind in kinds}
        line = "raise that size of model.l0_module.target_model"
    return [
        f"The target sparsity of {name} is {aim:.4f}, but with log-alphas at their limit, -log 100, at most "
        f"{most:.4f} is expected to close: {line}, or prune in two runs."
        for name, aim in aims.items()
        if aim > most
    ]
