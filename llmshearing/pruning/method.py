"""The interface of pruning methods, which decide what a run keeps.

Decoder, optimizer, loss, checkpoints, planner and report know this interface, and no method by name.
`PruningCallback` drives it; `llmshearing.pruning.METHODS` lists the methods.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llmshearing.config import ModelConfig, OptimizerConfig
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import Gates, drive

NEAR = 0.01  # a row has reached its target when its expected sparsity is this close to it


@dataclass(frozen=True)
class Aim:
    """The task of a method with a source model, known before anything is built.

    Attributes:
        target: the shape to prune to; None where only a share is given.
        kinds: the kinds of units that it gates.
        share: part of the prunable parameters to remove, where there is no `target`.
        problems: why it is impossible, each with what to change.
        warnings: what it would do that is probably not intended.
        durations: what a run has to last longer than: by a key of the configuration, or by name, durations
            that follow one another.
        notes: what it is going to do beyond `target` or `share`, one sentence each.
        state: numbers in fp32 that it keeps beside the parameters, sharded with them.
        reads_gradients: whether it computes with gradients, which must then not be scaled.
        own: how many parameters the method puts into the decoder.
        trains_weights: whether the weights of the model are trained as well.
    """

    target: Architecture | None = None
    kinds: list[str] = field(default_factory=list)
    share: float | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    durations: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    state: int = 0
    reads_gradients: bool = False
    own: int = 0
    trains_weights: bool = True


@dataclass(frozen=True)
class Convergence:
    """Target sparsity of a kind, the expected one, and the largest distance of a row from the target."""

    target: float
    expected: float
    worst: float

    @property
    def reached(self) -> bool:
        """Whether every row is within `NEAR` of the target."""
        return self.worst <= NEAR


class Method(nn.Module):
    """A way to choose what a run keeps. Hooks do nothing by default.

    A method is built as `cls(model_config, device)`; its own parameters are replicated over processes, those
    that `attach` puts into the decoder are sharded with it. Its buffers go into checkpoints too; what has the
    size of the decoder's parameters is made in `after_sharding`, in their layout.

    Attributes:
        section: its key below `model:` in a configuration, and its prefix in checkpoints.
        loss_name: the name of its part of the loss.
        remedy: keys of the configuration to look at when it does not reach its target; empty where it always
            does in time.
        inside: the last parts of the names of tensors that `attach` puts into modules of the decoder.
        noise_depends_on_division: whether its gates depend on how a batch is divided over processes and
            microbatches; its key `noise` says so.
        seed, step, steps: the seed of the run, the current step, and the number of steps.
        done: how many steps are complete when `after_step` is called.
    """

    section: ClassVar[str]
    loss_name: ClassVar[str]
    remedy: ClassVar[str] = ""
    inside: ClassVar[tuple[str, ...]] = ()
    noise_depends_on_division: bool
    target: Architecture | None

    def __init__(self) -> None:
        super().__init__()
        self.seed = self.step = self.steps = self.done = 0
        self.noise_depends_on_division = False
        self.target = None

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        """The task that the section of `config` sets, with its problems."""
        raise NotImplementedError

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "Method":
        """The method that wrote `tensors` (by their names in it), in evaluation mode and frozen.

        Args:
            config: the model with all its sizes; the method's section where that of the run is known.
            target: sizes by the names of `target_model`, in place of those in `config`.
            path: the checkpoint, for messages.

        Raises:
            ValueError: when the tensors do not match the model, or the target is not known.
        """
        raise NotImplementedError

    @classmethod
    def source_problems(cls, config: ModelConfig, weights: Mapping[str, Tensor], path: str) -> list[str]:
        """Why the section of `config` does not fit the weights at `path`, which a run starts from."""
        return []

    @classmethod
    def open_shares(
        cls, config: ModelConfig, source: Architecture, step: int, steps: int
    ) -> dict[str, float]:
        """The share of each kind's units that is expected to be open at `step` of `steps`; {}: all are.

        The plan estimates hours by it. Durations in `config` are in batches.
        """
        return {}

    # ------------------------------------------------------------- during a run

    def attach(self, decoder: nn.Module) -> None:
        """Prepare the decoder, before it is sharded and before its weights are loaded."""

    def initialize(self, seed: int, given: Collection[str]) -> None:
        """Give initial values to what `attach` put into the decoder, whose weights are there by now.

        Args:
            given: the tensors that the run starts from, by our names: those keep their values.
        """

    def after_sharding(self, decoder: nn.Module) -> None:
        """Make state in the layout of the decoder's parameters, before anything is loaded."""

    def begin_step(self, step: int, steps: int) -> None:
        """Enter training step `step` of `steps`, from 0."""
        self.step, self.steps = step, steps

    def gates(self) -> Gates:
        """The gates of this forward pass, differentiable; {} when nothing is masked.

        A gate that is exactly 0 gets no gradient: its units are not executed.
        """
        return drive(self.gates_by_kind())

    def term(self, step: int | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Its part of the loss (None: it has none), and scalars to log under `metrics/train/`.

        Called after the forward pass that `gates` began.

        Args:
            step: the step at which to compute it; default: the step last begun.
        """
        return None, {}

    def after_backward(self, decoder: nn.Module) -> None:
        """Look at the gradients of a step: of all its microbatches and processes, not yet clipped."""

    def after_step(self, decoder: nn.Module) -> None:
        """Act on the parameters after the optimizer did, and once before the first step."""

    def parameter_groups(self, settings: OptimizerConfig) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer beside the decoder's."""
        return []

    # ------------------------------------------------------------- current gates

    def gates_by_kind(self) -> dict[str, Tensor]:
        """The gates without noise, one number a unit, by kind and in the shapes of `Kind.shape`."""
        return {}

    def final_gates(self) -> Gates:
        """The gates that the export cuts by."""
        return drive(self.gates_by_kind())

    def weight_mask(self, name: str) -> Tensor | None:
        """Which numbers of a weight, by our name, the export keeps; bool, in its shape; None: all of them."""
        return None

    def convergence(self) -> dict[str, Convergence]:
        """How far each kind is from its target; {} for methods without a target."""
        return {}


def one_step(pruned_steps: int | Tensor) -> int:
    """The step that a batch of the original names.

    Raises:
        ValueError: when its sequences name different ones.
    """
    named = torch.as_tensor(pruned_steps).flatten()
    if not len(named) or not bool((named == named[0]).all()):
        raise ValueError(f"pruned_steps holds {named.tolist()[:8]}; expected one step for all sequences.")
    return int(named[0])
