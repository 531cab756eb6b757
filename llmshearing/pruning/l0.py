"""The L0 module: it holds the masks' log_alpha and the multipliers, and hands masks to the model."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from llmshearing.config.keys import as_model_config
from llmshearing.pruning import hard_concrete, lagrangian
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import architecture_of, target_of
from llmshearing.shapes.reachable import check_pruning
from llmshearing.shapes.units import (
    MASK_KINDS,
    chosen_kinds,
    expected_parameters,
    kept_size,
    prunable_parameters,
    row_size,
    rows,
)


class Mask(nn.Module):
    """The gates of one kind. `z_loga` is their log_alpha, in the shape of the table in `masks.py`."""

    def __init__(self, shape: tuple[int, ...], device: str | torch.device) -> None:
        super().__init__()
        self.z_loga = nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32))

    def reset_parameters(self) -> None:
        """Draw log_alpha from N(5, 0.01) (released code); the limit then brings it to log 100."""
        nn.init.normal_(self.z_loga, hard_concrete.INITIAL_MEAN, hard_concrete.INITIAL_STD)
        with torch.no_grad():
            self.z_loga.clamp_(-hard_concrete.LOG_ALPHA_LIMIT, hard_concrete.LOG_ALPHA_LIMIT)


class L0Module(nn.Module):
    """Masks over a decoder, driven to a target by Lagrange multipliers (Sheared-LLaMA section 2.1).

    Args:
        cfg: the `model` section of a run's configuration, with its `l0_module`.
        device: where the parameters live.

    Attributes:
        masks: one `Mask` a kind in `pruning_modules`.
        lambdas: `lambda_1`, `lambda_2` for the overall sparsity and, with a target model, a pair a kind.

    Raises:
        ValueError: when the target cannot be reached with these masks.
    """

    def __init__(self, cfg: Any, device: str | torch.device = "cpu") -> None:
        super().__init__()
        cfg = as_model_config(cfg)
        l0 = cfg.l0_module
        assert l0 is not None
        self.arch: Architecture = architecture_of(cfg)
        self.target: Architecture | None = target_of(self.arch, l0.target_model)
        names = chosen_kinds(l0.pruning_modules, self.arch, self.target)
        check_pruning(self.arch, self.target, names)
        self.eval_target_model = l0.eval_target_model
        self.start_sparsity = l0.start_sparsity
        self.warmup_steps = warmup_batches(l0.lagrangian_warmup_steps)
        self.target_sparsity = self._overall_target(l0.target_sparsity, names)
        self.masks = nn.ModuleDict({name: Mask(MASK_KINDS[name].shape(self.arch), device) for name in names})
        pairs = ["", *(f"_{name}" for name in names)] if self.target else [""]
        self.lambdas = nn.ParameterDict(
            {
                # With a target the overall pair is only there for the state dict's sake.
                f"lambda_{i}{suffix}": nn.Parameter(
                    torch.zeros((), device=device), requires_grad=bool(suffix) == bool(self.target)
                )
                for suffix in pairs
                for i in (1, 2)
            }
        )
        if torch.device(device).type != "meta":
            for mask in self.masks.values():
                cast(Mask, mask).reset_parameters()
        self.noise = l0.noise
        self.seed = 0
        self.step = 0
        self.microbatch = 0

    # ---------------------------------------------------------------- the step

    def set_step(self, step: int) -> None:
        """Enter training step `step`: it keys the noise and the warm-up of the targets."""
        self.step = step
        self.microbatch = 0

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp every log_alpha to +-log 100, in place (released code)."""
        for mask in self.masks.values():
            cast(Mask, mask).z_loga.clamp_(-hard_concrete.LOG_ALPHA_LIMIT, hard_concrete.LOG_ALPHA_LIMIT)

    # ------------------------------------------------------------------- masks

    def forward(
        self, calculate_lagrangian: bool = False, pruned_steps: int | None = None
    ) -> dict[str, Tensor] | tuple[Tensor, dict[str, Tensor]]:
        """Masks for the model, or the Lagrangian.

        Args:
            calculate_lagrangian: return (loss, values) instead of masks.
            pruned_steps: the step at which targets are taken; default: the step last set.

        Returns:
            masks by name in the shapes of `masks.py`: sampled in training, deterministic in evaluation;
            or the scalar loss and, detached, `expected_{kind}_sparsity`, `target_{kind}_sparsity`,
            `expected_sparsity`, `target_sparsity`.
        """
        with torch.autocast(self.device.type, enabled=False):
            if calculate_lagrangian:
                return self.lagrangian(self.step if pruned_steps is None else int(pruned_steps))
            gates = self.sample() if self.training else self.deterministic()
            return self._as_z(gates)

    @property
    def noise_depends_on_division(self) -> bool:
        """Whether another microbatch size or number of processes draws other masks."""
        return self.noise == "per_rank"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def sample(self) -> dict[str, Tensor]:
        """Sampled gates by kind, [the shape of log_alpha]; each call of a step draws new noise."""
        log_alphas, noise = self._log_alphas(), self._draw_noise()
        return {name: hard_concrete.sample(a, noise[name]) for name, a in log_alphas.items()}

    @torch.compiler.disable  # what a compiler would make of generators is not what they draw here
    def _draw_noise(self) -> dict[str, Tensor]:
        place = (self.microbatch, _rank()) if self.noise == "per_rank" else (0, 0)
        self.microbatch += 1
        key = np.random.SeedSequence((self.seed, self.step, *place)).generate_state(1, np.uint64)
        generator = torch.Generator(self.device).manual_seed(int(key[0] >> np.uint64(1)))
        return {
            name: torch.rand(cast(Mask, mask).z_loga.shape, generator=generator, device=self.device)
            for name, mask in self.masks.items()
        }

    def deterministic(self) -> dict[str, Tensor]:
        """Gates without noise: those of the target with `eval_target_model`, else of the sparsity now."""
        gates = {}
        for name, log_alpha in self._log_alphas().items():
            by_row = rows(name, log_alpha, self.arch)
            if self.target is not None and self.eval_target_model:
                zeros: Tensor | int = by_row.shape[-1] - kept_size(name, self.arch, self.target)
            else:
                zeros = hard_concrete.expected_zeros(by_row)
            gates[name] = hard_concrete.deterministic(by_row, zeros).reshape(log_alpha.shape)
        return gates

    def _log_alphas(self) -> dict[str, Tensor]:
        return {name: local(cast(Mask, mask).z_loga) for name, mask in self.masks.items()}

    def _as_z(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            output: gate.reshape(MASK_KINDS[name].z_shape(self.arch))
            for name, gate in gates.items()
            for output in MASK_KINDS[name].outputs
        }

    # --------------------------------------------------------------- Lagrangian

    def lagrangian(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The constraint's loss at `step` and the sparsities behind it (specs of the released code)."""
        keep = {name: hard_concrete.keep_probability(a) for name, a in self._log_alphas().items()}
        overall = 1 - expected_parameters(keep, self.arch) / self.prunable
        target = self._scheduled(step, self.target_sparsity)
        values = {"expected_sparsity": overall.detach(), "target_sparsity": overall.new_tensor(target)}
        if self.target is None:
            return self._penalty("", overall, target), values
        loss = overall.new_zeros(())
        for name, p in keep.items():
            sparsity = 1 - rows(name, p, self.arch).mean(-1)
            target = self._scheduled(step, self.module_target(name))
            loss = loss + self._penalty(f"_{name}", sparsity, target)
            values[f"expected_{name}_sparsity"] = sparsity.mean().detach()
            values[f"target_{name}_sparsity"] = overall.new_tensor(target)
        return loss, values

    def module_target(self, name: str) -> float:
        """Sparsity of mask `name` in the target: 1 - target size / source size."""
        assert self.target is not None
        return 1 - kept_size(name, self.arch, self.target) / row_size(name, self.arch)

    @property
    def prunable(self) -> int:
        """Parameters of the matrices that the masks reach."""
        return prunable_parameters(self.masks, self.arch)

    def _penalty(self, suffix: str, sparsity: Tensor, target: float) -> Tensor:
        first, second = (lagrangian.ascend(local(self.lambdas[f"lambda_{i}{suffix}"])) for i in (1, 2))
        return lagrangian.penalty(sparsity, target, first, second)

    def _scheduled(self, step: int, target: float) -> float:
        return lagrangian.scheduled_target(step, self.warmup_steps, self.start_sparsity, target)

    def _overall_target(self, configured: float, names: list[str]) -> float:
        if self.target is None:
            return configured
        return 1 - prunable_parameters(names, self.target) / prunable_parameters(names, self.arch)


class _Averaged(torch.autograd.Function):
    """A replicated parameter on this rank; its gradient is averaged over the ranks."""

    @staticmethod
    def forward(ctx, parameter: DTensor) -> Tensor:
        ctx.mesh = parameter.device_mesh
        return parameter.to_local().view_as(parameter.to_local())

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return DTensor.from_local(total / ctx.mesh.size(), ctx.mesh, [Replicate()], run_check=False)


def local(parameter: Tensor) -> Tensor:
    """A parameter of the L0 module as a plain tensor, also where a run of several processes replicates it."""
    return _Averaged.apply(parameter) if isinstance(parameter, DTensor) else parameter  # type: ignore[return-value]


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def warmup_batches(duration: str | int) -> int:
    """The number in `640ba`, or in `640`.

    Raises:
        ValueError: for anything else.
    """
    number = str(duration).removesuffix("ba")
    if not number.isdigit():
        raise ValueError(
            f"model.l0_module.lagrangian_warmup_steps is {duration!r}; expected batches, such as 640ba."
        )
    return int(number)
