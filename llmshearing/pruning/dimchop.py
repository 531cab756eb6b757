"""DimCHOP: close dimensions by the scores of their weights while training goes on (Just CHOP section 3.2).

Each step adds |weight x gradient| to a sum, shard by shard. Each window of steps smooths its mean
(`platon.py`) and closes the dimensions with the lowest scores (`dimensions.py`), more of them each time.

Tied dimensions are closed by gates and stay closed, since nothing behind a gate of 0 gets a gradient. Columns
of single matrices are set to 0 after the optimizer's step and go on training; the next choice may leave them
open. In the final steps the choice stands, and columns are set to 0 after each step.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import get_total_norm

from llmshearing.config import DimChopConfig, ModelConfig, TargetConfig, as_model_config
from llmshearing.config.durations import steps_in
from llmshearing.config.strict import build
from llmshearing.pruning import platon
from llmshearing.pruning.dimensions import Columns, Units, key
from llmshearing.pruning.method import Aim, Convergence, Method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import expected_parameters, prunable_parameters
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import architecture_of, target_of
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from llmshearing.shapes.units import Gates, drive, needed_kinds, weight_shapes

_STATE = ("total", "smoothed", "uncertainty")  # the sum of a window, and both averages


class Choice(nn.Module):
    """The gates of dimensions, and the scores that they were last chosen by."""

    scores: Tensor
    gates: Tensor

    def __init__(self, shape: tuple[int, ...], device: str | torch.device) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(shape, device=device))
        self.register_buffer("gates", torch.ones(shape, device=device))


class Averages(nn.Module):
    """What is known of a weight's sensitivity, in the weight's layout: sharded where that is."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name in _STATE:
            self.register_buffer(name, torch.zeros_like(weight))

    def shards(self) -> list[Tensor]:
        """This process's part of the sum and of both averages."""
        return [_shard(self.get_buffer(name)) for name in _STATE]


class DimChop(Method):
    """Dimensions that close by their scores.

    Attributes:
        dimensions: what there is to choose among.
        choices: a `Choice` under each name of `dimensions.shapes`.
        averages: `Averages` of each scored weight, from `after_sharding` on.
        counted: [1], the steps of the window so far, without those that were not finite.
    """

    section: ClassVar[str] = "dimchop"
    counted: Tensor

    def __init__(self, cfg: Any, device: str | torch.device = "cpu") -> None:
        """As every method; see `Method`.

        Raises:
            ValueError: when the target cannot be reached.
        """
        super().__init__()
        cfg = as_model_config(cfg)
        assert cfg.dimchop is not None
        self.settings, self.source = cfg.dimchop, architecture_of(cfg)
        aim = self.aim(cfg, self.source)
        if aim.problems:
            raise ValueError("\n".join(aim.problems))
        self.target, self.kinds = aim.target, aim.kinds
        self.dimensions = _dimensions(self.settings, self.source, aim.target, aim.kinds)
        self.sizes = {name: self.dimensions.sizes(name) for name in self.dimensions.shapes()}
        self.choices = nn.ModuleDict(
            {name: Choice(shape, device) for name, shape in self.dimensions.shapes().items()}
        )
        self.averages = nn.ModuleDict()
        self.register_buffer("counted", torch.zeros(1, device=device))
        self._measured = False
        self._any_closed = False
        self._values: dict[str, Tensor] | None = None  # not known yet: a checkpoint may be loaded

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        settings = config.dimchop
        assert settings is not None
        if problems := _clashes(settings):
            return Aim(problems=problems)
        target = target_of(source, settings.target_model)
        kinds, notes, warnings = [], [], []
        if target is None:
            if problems := _few_columns(settings, source):
                return Aim(problems=problems)
            notes = [f"Columns of every matrix that are set to 0: {settings.sparsity:.1%}; the shape stays."]
        else:
            kinds = [kind for kind in needed_kinds(source, target) if kind != "layer"]
            problems = _depth_problems(source, target)
            problems = problems or pruning_problems(source, target, kinds, "model.dimchop")
            if problems:
                return Aim(target, kinds, problems=problems)
            warnings = export_warnings(target)
        scored = _dimensions(settings, source, target, kinds).scored()
        return Aim(
            target,
            kinds,
            warnings=warnings,
            durations={
                f"model.dimchop.{name}": [getattr(settings, name)] for name in ("warm_steps", "final_steps")
            },
            notes=notes,
            state=len(_STATE) * sum(map(prod, scored.values())),
            reads_gradients=True,
        )

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "DimChop":
        settings = config.dimchop
        if settings is None:
            raise ValueError(
                f"{path} does not say what its dimensions were chosen for: it carries no run configuration, "
                "and there is no config.yaml beside it. Copy that of its run there."
            )
        if target:
            settings = replace(settings, target_model=build(TargetConfig, target, "target_model"))
        method = cls(replace(config, dimchop=settings))
        try:
            method.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("averages.")})
        except RuntimeError as error:
            raise ValueError(f"The gates of {path} do not match its model: {error}") from error
        if not any(choice.scores.any() for choice in method._choices().values()):
            raise ValueError(
                f"{path} has no scores yet: it was written before the first window of {settings.window} "
                "steps was over. Take a later checkpoint."
            )
        return method.eval()

    # -------------------------------------------------------------- during a run

    def after_sharding(self, decoder: nn.Module) -> None:
        for name, weight in self._scored(decoder):
            self.averages[key(name)] = Averages(weight.detach())

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        if self._values is None:
            self._take_stock()

    def gates(self) -> Gates:
        return drive(self.gates_by_kind()) if self._any_closed else Gates()

    def term(self, step: int | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        return None, self._values or {}

    @torch.no_grad()
    def after_backward(self, decoder: nn.Module) -> None:
        """Add the sensitivities of a step to its window, unless a gradient is not finite."""
        if self._part(self.step) == 1:
            return  # the choice stands
        found = [
            (self._averages(name).shards()[0], _shard(weight), _shard(weight.grad))
            for name, weight in self._scored(decoder)
            if weight.grad is not None
        ]
        norm = get_total_norm([gradient for _, _, gradient in found])
        finite = _over_ranks(norm.isfinite().float().reshape(1), dist.ReduceOp.MIN)
        for total, weight, gradient in found:
            total.add_(torch.where(finite > 0, platon.sensitivity(weight, gradient), 0.0))
        self.counted += finite
        self._measured = True

    @torch.no_grad()
    def after_step(self, decoder: nn.Module) -> None:
        if not self.steps:
            return  # before the first step
        part = self._part(self.step + 1)
        due = self._measured and ((self.step + 1) % self.settings.window == 0 or part == 1)
        if due:
            self._score(decoder)
            for name, choice in self._choices().items():
                choice.gates.copy_(self._chosen(name, part))
            self._take_stock()
        if not self.settings.tied and (due or part == 1):
            for name, weight in self._scored(decoder):
                _shard(weight).mul_(self._choices()[key(name)].gates)
        self._measured = False

    def _score(self, decoder: nn.Module) -> None:
        """End a window: smooth its mean, and sum the scores of each dimension over all processes."""
        choices, settings = self._choices(), self.settings
        sums = {
            name: each.scores.new_zeros(each.scores.numel(), dtype=torch.float64)
            for name, each in choices.items()
        }
        for name, weight in self._scored(decoder):
            total, smoothed, uncertainty = self._averages(name).shards()
            mean = total / self.counted.clamp(min=1)
            platon.smooth(smoothed, uncertainty, mean, settings.sensitivity_beta, settings.uncertainty_beta)
            total.zero_()
            self.dimensions.add(sums, name, smoothed * uncertainty, _first_row(weight))
        self.counted.zero_()
        whole = _over_ranks(torch.cat(list(sums.values())), dist.ReduceOp.SUM)
        parts = whole.split([len(each) for each in sums.values()])
        for choice, scores in zip(choices.values(), parts, strict=True):
            choice.scores.copy_(scores.view_as(choice.scores))

    def _chosen(self, name: str, part: float) -> Tensor:
        """The gates `name` that are due: open for the highest scores of each row, of what may be open."""
        choice, (size, kept) = self._choices()[name], self.sizes[name]
        scores = torch.where(choice.gates > 0, choice.scores, -1.0) if self.settings.tied else choice.scores
        count = platon.still_open(self.settings.schedule, size, kept, part)
        gates = platon.highest(self.dimensions.by_row(name, scores), count).view_as(choice.gates)
        return gates * choice.gates if self.settings.tied else gates

    def _take_stock(self) -> None:
        """Find out what there is to know of the gates as they are; what is due is closed."""
        gates = {name: choice.gates for name, choice in self._choices().items()}
        closed = {f"{kind}_": 1 - gates[kind].mean() for kind in self.kinds}
        if self.settings.tied:
            closed[""] = 1 - expected_parameters(gates, self.source) / prunable_parameters(gates, self.source)
        else:
            closed[""] = 1 - torch.stack([gate.mean() for gate in gates.values()]).mean()
        self._any_closed = self.settings.tied and any(not bool(gate.all()) for gate in gates.values())
        self._values = {
            f"{side}_{name}sparsity": v for side in ("expected", "target") for name, v in closed.items()
        }

    # -------------------------------------------------------------- current gates

    def gates_by_kind(self) -> dict[str, Tensor]:
        return {kind: self._choices()[kind].gates for kind in self.kinds}

    def final_gates(self) -> Gates:
        return drive({kind: self._chosen(kind, 1.0) for kind in self.kinds})

    def weight_mask(self, name: str) -> Tensor | None:
        name = name.removeprefix(PREFIX)
        if self.settings.tied or key(name) not in self.sizes or not name.endswith(".weight"):
            return None
        columns = self._chosen(key(name), 1.0) != 0
        return columns.expand(dict(weight_shapes(self.source))[name])

    def convergence(self) -> dict[str, Convergence]:
        found = {}
        for name, choice in self._choices().items():
            size, kept = self.sizes[name]
            target, closed = 1 - kept / size, 1 - self.dimensions.by_row(name, choice.gates).mean(-1)
            found[name] = Convergence(target, float(closed.mean()), float((closed - target).abs().max()))
        if self.settings.tied:
            return found
        rows = found.values()
        target, now = (
            sum(values) / len(found) for values in zip(*((r.target, r.expected) for r in rows), strict=True)
        )
        return {"column": Convergence(target, now, max(row.worst for row in rows))}

    # -------------------------------------------------------------------- helpers

    def _part(self, done: int) -> float:
        """How much of the closing is due after so many steps, from 0 to 1."""
        settings = self.settings
        warm, final = (
            steps_in(text, 1, 1, steps=self.steps) for text in (settings.warm_steps, settings.final_steps)
        )
        return platon.progress(done, self.steps, warm, final)

    def _choices(self) -> dict[str, Choice]:
        return dict(self.choices.items())  # type: ignore[arg-type]

    def _averages(self, name: str) -> Averages:
        return self.averages[key(name)]  # type: ignore[return-value]

    def _scored(self, decoder: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that are scored, by their names in a state dict of the decoder."""
        names = self.dimensions.scored()
        for name, weight in decoder.transformer.named_parameters():  # type: ignore[union-attr]
            if (plain := name.replace("_checkpoint_wrapped_module.", "")) in names:
                yield plain, weight


def _dimensions(
    settings: DimChopConfig, source: Architecture, target: Architecture | None, kinds: list[str]
) -> Units | Columns:
    if target is not None:
        return Units(source, target, tuple(kinds))
    assert settings.sparsity is not None
    return Columns(source, settings.sparsity)


def _clashes(settings: DimChopConfig) -> list[str]:
    """What the settings say against one another."""
    wanted, other = ("target_model", "sparsity") if settings.tied else ("sparsity", "target_model")
    tied, untied = (str(each).lower() for each in (settings.tied, not settings.tied))
    lacks = getattr(settings, wanted) is None
    if getattr(settings, other) is not None:
        instead = f"set model.dimchop.{wanted} in its place" if lacks else "leave it out"
        return [
            f"model.dimchop.{other} is set, which is read with model.dimchop.tied={untied} alone: set that, "
            f"or {instead}."
        ]
    if lacks:
        return [f"model.dimchop.tied is {tied} and {wanted} is not set: nothing would be pruned; set it."]
    return []


def _few_columns(settings: DimChopConfig, source: Architecture) -> list[str]:
    columns = _dimensions(settings, source, None, [])
    sizes = {columns.sizes(name) for name in columns.shapes()}
    if all(1 <= kept < size for size, kept in sizes):
        return []
    return [
        f"model.dimchop.sparsity is {settings.sparsity:g}: of matrices with "
        f"{' and '.join(str(size) for size, _ in sorted(sizes))} columns some would keep all or none; set "
        "another."
    ]


def _depth_problems(source: Architecture, target: Architecture) -> list[str]:
    if target.n_layers == source.n_layers:
        return []
    return [
        f"model.dimchop.target_model.n_layers is {target.n_layers}, the source has {source.n_layers}: "
        "DimCHOP keeps the depth. Leave it out; model.layerchop removes layers."
    ]


def _shard(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_row(weight: Tensor) -> int:
    """The first row of this process's part."""
    if not isinstance(weight, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return offset[0]


def _over_ranks(values: Tensor, operation: Any) -> Tensor:
    """`values` reduced over all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, operation)
    return values
