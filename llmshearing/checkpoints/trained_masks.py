"""The masks in a checkpoint: as a module with the run's target, and how far they are from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmshearing.checkpoints.describing import run_config
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.config.keys import L0Config, ModelConfig, TargetConfig
from llmshearing.config.strict import build
from llmshearing.pruning.hard_concrete import keep_probability
from llmshearing.pruning.l0 import L0Module
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import complete
from llmshearing.shapes.units import rows

NEAR = 0.01  # of a mask's units, in expectation


@dataclass(frozen=True)
class Convergence:
    """A mask's target sparsity, its expected one, and the largest distance of a row from the target."""

    target: float
    expected: float
    worst: float

    @property
    def reached(self) -> bool:
        """Whether every row is within `NEAR` of the target."""
        return self.worst <= NEAR


def load_masks(checkpoint: Checkpoint, arch: Architecture, target: Mapping[str, Any]) -> L0Module:
    """The L0 module that wrote a checkpoint's masks, in evaluation mode: its masks have the target's sizes.

    Args:
        target: sizes by the names of `target_model`, in place of those in the run's configuration.

    Raises:
        ValueError: when the checkpoint has no masks, its target is not known, or masks cannot reach it.
    """
    gates = {n.removeprefix("masks."): a for n, a in checkpoint.masks.items() if n.startswith("masks.")}
    names = [name.removesuffix(".z_loga") for name in gates]
    if not names:
        raise ValueError(f"{checkpoint.path} has no masks: it is not the checkpoint of a pruning run.")
    l0 = L0Config(target_model=_target(checkpoint, target), pruning_modules=names, eval_target_model=True)
    module = L0Module(complete(ModelConfig(l0_module=l0), arch, str(checkpoint.path)))
    try:
        module.masks.load_state_dict(gates)
    except RuntimeError as error:
        raise ValueError(f"The masks of {checkpoint.path} are not those of its model: {error}") from error
    return module.eval().requires_grad_(False)


def convergence(module: L0Module) -> dict[str, Convergence]:
    """How far each mask is from its target; without a target model, `overall` alone."""
    if module.target is None:
        _, values = module.lagrangian(module.warmup_steps)  # type: ignore[misc]
        expected, target = float(values["expected_sparsity"]), module.target_sparsity
        return {"overall": Convergence(target, expected, abs(expected - target))}
    found = {}
    for name, mask in module.masks.items():
        keep = rows(name, keep_probability(mask.z_loga.float()), module.arch)  # type: ignore[operator]
        sparsity, target = 1 - keep.mean(-1), module.module_target(name)
        worst = float((sparsity - target).abs().max())
        found[name] = Convergence(target, float(sparsity.mean()), worst)
    return found


def _target(checkpoint: Checkpoint, given: Mapping[str, Any]) -> TargetConfig | None:
    if given:
        return build(TargetConfig, dict(given), "target_model")
    cfg = run_config(checkpoint)
    if cfg is None or cfg.l0_module is None:
        raise ValueError(
            f"{checkpoint.path} does not tell the target of its masks: it carries no run configuration, and "
            "there is no config.yaml or config.pt beside it. Give the sizes, such as d_model=2048 n_heads=16 "
            "n_layers=24 intermediate_size=5504."
        )
    return cfg.l0_module.target_model
