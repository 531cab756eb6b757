"""Learned masks: hard-concrete gates, driven to a target (Sheared-LLaMA section 2.1).

The constraint is either the released code's, Lagrange multipliers that push (`lagrangian.py`), or a
projection that sets the expected sparsity after every step (`projection.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmshearing.config import L0Config, ModelConfig, OptimizerConfig, TargetConfig, as_model_config
from llmshearing.config.durations import batches
from llmshearing.config.strict import build
from llmshearing.pruning import hard_concrete, l0_aim, lagrangian, projection
from llmshearing.pruning.l0_aim import target_sparsity
from llmshearing.pruning.method import Aim, Convergence, Method, one_step
from llmshearing.pruning.replicated import local
from llmshearing.pruning.score_file import check_weights_of, read_scores
from llmshearing.pruning.scores import ranks
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import expected_parameters, prunable_parameters
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import KINDS, Gates, drive, kept_size, rows, to_z


class Mask(nn.Module):
    """The gates of one kind. `z_loga` is their log_alpha, in the shape of `Kind.shape`."""

    def __init__(self, shape: tuple[int, ...], device: str | torch.device) -> None:
        super().__init__()
        self.z_loga = nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        """Draw log_alpha from N(5, 0.01) (released code); the limit then brings it to log 100."""
        nn.init.normal_(self.z_loga, hard_concrete.INITIAL_MEAN, hard_concrete.INITIAL_STD)
        with torch.no_grad():
            self.z_loga.clamp_(-hard_concrete.LOG_ALPHA_LIMIT, hard_concrete.LOG_ALPHA_LIMIT)


class L0Module(Method):
    """Masks over a decoder, driven to a target.

    Args:
        cfg: the `model` section of a run's configuration, with its `l0_module`.
        device: where the parameters live.

    Attributes:
        masks: one `Mask` a kind in `pruning_modules`.
        floors: what a scheduled target is at least, by kind; empty where nothing is projected.
        lambdas: `lambda_1`, `lambda_2` for the overall sparsity and, with a target model, a pair a kind.
            Those that nothing uses stay 0 and frozen: every checkpoint has the same tensors.

    Raises:
        ValueError: when the target cannot be reached with these masks.
    """

    section: ClassVar[str] = "l0_module"
    loss_name: ClassVar[str] = "lag_loss"
    remedy: ClassVar[str] = (
        "optimizer.lag_lr, optimizer.eps, scheduler.t_warmup and algorithms.gradient_clipping"
    )

    def __init__(self, cfg: Any, device: str | torch.device = "cpu") -> None:
        super().__init__()
        cfg = as_model_config(cfg)
        l0 = cfg.l0_module
        assert l0 is not None
        self.arch: Architecture = architecture_of(cfg)
        aim = self.aim(cfg, self.arch)
        if aim.problems:
            raise ValueError("\n".join(aim.problems))
        self.target = aim.target
        self.projects = l0.constraint == "projection"
        self.eval_target_model = l0.eval_target_model
        self.start_sparsity = l0.start_sparsity
        self.warmup_steps = batches(l0.lagrangian_warmup_steps)
        self.target_sparsity = self._overall_target(l0.target_sparsity, aim.kinds)
        self.floors = l0_aim.floors(l0, self.arch, self.target) if self.projects else {}
        self.masks = nn.ModuleDict({kind: Mask(KINDS[kind].shape(self.arch), device) for kind in aim.kinds})
        pairs = ["", *(f"_{kind}" for kind in aim.kinds)] if self.target else [""]
        self.lambdas = nn.ParameterDict(
            {
                f"lambda_{i}{suffix}": nn.Parameter(
                    torch.zeros((), device=device),
                    requires_grad=not self.projects and bool(suffix) == bool(self.target),
                )
                for suffix in pairs
                for i in (1, 2)
            }
        )
        if torch.device(device).type != "meta":
            for mask in self.masks.values():
                cast(Mask, mask).reset_parameters()
            if l0.init is not None:
                self._start_in_order(read_scores(l0.init, self.arch).by_kind)
        self.noise_depends_on_division = l0.noise == "per_rank"
        self.microbatch = 0

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        assert config.l0_module is not None
        return l0_aim.aim(config.l0_module, source)

    @classmethod
    def source_problems(cls, config: ModelConfig, weights: Mapping[str, Tensor], path: str) -> list[str]:
        l0 = config.l0_module
        assert l0 is not None
        if l0.init is None:
            return []
        try:
            check_weights_of(read_scores(l0.init, architecture_of(config)), weights, l0.init, path)
        except (ValueError, OSError) as error:
            return [f"model.l0_module.init: {error}"]
        return []

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "L0Module":
        gates = {n.removeprefix("masks."): a for n, a in tensors.items() if n.startswith("masks.")}
        kinds = [name.removesuffix(".z_loga") for name in gates]
        if target:
            aimed_at = build(TargetConfig, target, "target_model")
        elif config.l0_module is not None:
            aimed_at = config.l0_module.target_model
        else:
            raise ValueError(
                f"{path} does not say what the target of its masks is: it carries no run configuration, "
                "and there is no config.yaml or config.pt beside it. Give the sizes, such as d_model=2048 "
                "n_heads=16 n_layers=24 intermediate_size=5504."
            )
        known = config.l0_module or L0Config()
        section = replace(known, target_model=aimed_at, pruning_modules=kinds, init=None)
        module = cls(replace(config, l0_module=replace(section, eval_target_model=True)))
        try:
            module.masks.load_state_dict(gates)
        except RuntimeError as error:
            raise ValueError(f"The masks of {path} do not match its model: {error}") from error
        return module.eval().requires_grad_(False)

    @classmethod
    def open_shares(
        cls, config: ModelConfig, source: Architecture, step: int, steps: int
    ) -> dict[str, float]:
        l0, aim = config.l0_module, cls.aim(config, source)
        assert l0 is not None
        if aim.target is None or aim.problems:
            return {}
        warmup = batches(l0.lagrangian_warmup_steps)
        targets = {kind: target_sparsity(kind, source, aim.target) for kind in aim.kinds}
        return {
            kind: 1 - lagrangian.scheduled_target(step, warmup, l0.start_sparsity, target)
            for kind, target in targets.items()
        }

    # -------------------------------------------------------------- during a run

    def begin_step(self, step: int, steps: int = 0) -> None:
        super().begin_step(step, steps)  # the step keys the noise and the warm-up of the targets
        self.microbatch = 0

    def gates(self) -> Gates:
        with torch.autocast(self.device.type, enabled=False):
            return drive(self.sample() if self.training else self.gates_by_kind())

    def term(self, step: int | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        with torch.autocast(self.device.type, enabled=False):
            loss, values = self.lagrangian(self.step if step is None else step)
        if self.projects:
            return None, values
        return loss, values | {name: local(value).detach() for name, value in self.lambdas.items()}

    @torch.no_grad()
    def after_step(self, decoder: nn.Module | None = None) -> None:
        """Clamp log-alphas to +-log 100, in place (released code), or project them on the next target."""
        if self.projects:
            for kind, projected in self._projected(self.done).items():
                local(cast(Mask, self.masks[kind]).z_loga).copy_(projected)
            return
        for mask in self.masks.values():
            cast(Mask, mask).z_loga.clamp_(-hard_concrete.LOG_ALPHA_LIMIT, hard_concrete.LOG_ALPHA_LIMIT)

    def parameter_groups(self, settings: OptimizerConfig) -> list[dict[str, Any]]:
        """Masks, which descend, and multipliers, which ascend by their gradient's sign."""
        return [
            {"params": list(part.parameters()), "lr": settings.lag_lr, "weight_decay": 0.0}
            for part in (self.masks, self.lambdas)
        ]

    def forward(
        self, calculate_lagrangian: bool = False, pruned_steps: int | Tensor | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, dict[str, Tensor]]:
        """Masks for the model, or the Lagrangian (the released code's interface).

        Args:
            calculate_lagrangian: return (loss, values) instead of masks.
            pruned_steps: the step at which targets are taken: a number, a scalar, or the original's tensor of
                one equal number a sequence; default: the step last begun.

        Returns:
            Masks by name in the original's shapes: sampled in training, deterministic in evaluation; or the
            scalar loss and, detached, `expected_{kind}_sparsity` and `expected_sparsity`, and the same with
            `target_`, of kinds only where there is a target model.
        """
        if not calculate_lagrangian:
            return to_z(self.gates())
        with torch.autocast(self.device.type, enabled=False):
            return self.lagrangian(self.step if pruned_steps is None else one_step(pruned_steps))

    @torch.no_grad()
    def _start_in_order(self, scores: Mapping[str, Tensor]) -> None:
        """Set every log_alpha by the place of its unit's score in its row."""
        for kind, mask in self.masks.items():
            log_alpha = cast(Mask, mask).z_loga
            start = hard_concrete.ordered_start(ranks(rows(kind, scores[kind], self.arch)))
            log_alpha.copy_(start.reshape(log_alpha.shape))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # --------------------------------------------------------------------- gates

    def sample(self) -> dict[str, Tensor]:
        """Sampled gates by kind, in the shapes of log_alpha; each call of a step draws new noise."""
        log_alphas, noise = self._log_alphas(), self._draw_noise()
        return {kind: hard_concrete.sample(a, noise[kind]) for kind, a in log_alphas.items()}

    @torch.compiler.disable  # what a compiler would make of generators is not what they draw here
    def _draw_noise(self) -> dict[str, Tensor]:
        place = (self.microbatch, _rank()) if self.noise_depends_on_division else (0, 0)
        self.microbatch += 1
        key = np.random.SeedSequence((self.seed, self.step, *place)).generate_state(1, np.uint64)
        generator = torch.Generator(self.device).manual_seed(int(key[0] >> np.uint64(1)))
        return {
            kind: torch.rand(cast(Mask, mask).z_loga.shape, generator=generator, device=self.device)
            for kind, mask in self.masks.items()
        }

    def gates_by_kind(self) -> dict[str, Tensor]:
        """Gates without noise: those of the target with `eval_target_model`, else of the sparsity now."""
        gates = {}
        for kind, log_alpha in self._log_alphas().items():
            by_row = rows(kind, log_alpha, self.arch)
            if self.target is not None and self.eval_target_model:
                zeros: Tensor | int = by_row.shape[-1] - kept_size(kind, self.arch, self.target)
            else:
                zeros = hard_concrete.expected_zeros(by_row)
            gates[kind] = hard_concrete.deterministic(by_row, zeros).reshape(log_alpha.shape)
        return gates

    def _log_alphas(self) -> dict[str, Tensor]:
        return {kind: local(cast(Mask, mask).z_loga) for kind, mask in self.masks.items()}

    # ---------------------------------------------------------------- constraint

    def _projected(self, step: int) -> dict[str, Tensor]:
        """Log-alphas by kind, shifted to the targets of `step`: each row, or (without a target) all alike."""
        log_alphas = self._log_alphas()
        if self.target is None:
            return projection.project_together(log_alphas, self._scheduled(step), self._overall_sparsity)
        return {
            kind: projection.project_rows(
                rows(kind, log_alpha, self.arch), self._scheduled(step, kind)
            ).reshape(log_alpha.shape)
            for kind, log_alpha in log_alphas.items()
        }

    def _overall_sparsity(self, keep: dict[str, Tensor]) -> Tensor:
        return 1 - expected_parameters(keep, self.arch) / prunable_parameters(keep, self.arch)

    def lagrangian(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The constraint's loss at `step`, 0 where it projects, and the sparsities behind it."""
        keep = {kind: hard_concrete.keep_probability(a) for kind, a in self._log_alphas().items()}
        overall = self._overall_sparsity(keep)
        target = self._scheduled(step)
        sparsities = {kind: 1 - rows(kind, p, self.arch).mean(-1) for kind, p in keep.items()}
        values = {"expected_sparsity": overall.detach(), "target_sparsity": overall.new_tensor(target)}
        values |= {f"expected_{kind}_sparsity": s.mean().detach() for kind, s in sparsities.items()}
        if self.target is None:
            return self._penalty("", overall, target), values
        loss = overall.new_zeros(())
        for kind, sparsity in sparsities.items():
            target = self._scheduled(step, kind)
            loss = loss + self._penalty(f"_{kind}", sparsity, target)
            values[f"target_{kind}_sparsity"] = overall.new_tensor(target)
        return loss, values

    def kind_target(self, kind: str) -> float:
        """Sparsity of `kind` in the target: 1 - target size / source size."""
        assert self.target is not None
        return target_sparsity(kind, self.arch, self.target)

    def convergence(self) -> dict[str, Convergence]:
        """By kind; without a target model, `overall` alone."""
        if self.target is None:
            _, values = self.lagrangian(self.warmup_steps)
            expected, target = float(values["expected_sparsity"]), self.target_sparsity
            return {"overall": Convergence(target, expected, abs(expected - target))}
        found = {}
        for kind, log_alpha in self._log_alphas().items():
            keep = rows(kind, hard_concrete.keep_probability(log_alpha.float()), self.arch)
            sparsity, target = 1 - keep.mean(-1), self.kind_target(kind)
            worst = float((sparsity - target).abs().max())
            found[kind] = Convergence(target, float(sparsity.mean()), worst)
        return found

    def _penalty(self, suffix: str, sparsity: Tensor, target: float) -> Tensor:
        first, second = (lagrangian.ascend(local(self.lambdas[f"lambda_{i}{suffix}"])) for i in (1, 2))
        return lagrangian.penalty(sparsity, target, first, second)

    def _scheduled(self, step: int, kind: str = "") -> float:
        """The target of a kind's rows at `step`, or the overall one."""
        aimed_at = self.kind_target(kind) if kind else self.target_sparsity
        target = lagrangian.scheduled_target(step, self.warmup_steps, self.start_sparsity, aimed_at)
        return max(target, self.floors.get(kind, 0.0))

    def _overall_target(self, configured: float, kinds: list[str]) -> float:
        if self.target is None:
            return configured
        return 1 - prunable_parameters(kinds, self.target) / prunable_parameters(kinds, self.arch)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
