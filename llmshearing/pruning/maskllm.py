"""Learned N:M sparsity (MaskLLM, arXiv 2409.17481): which weights of each block stay, over frozen weights.

The mathematics is in `patterns.py`, the layers that this method puts into the decoder in `sparse_linear.py`.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llmshearing.config import MaskLLMConfig, ModelConfig, OptimizerConfig, as_model_config
from llmshearing.pruning import nm_scores, patterns
from llmshearing.pruning.mask_file import MaskFile
from llmshearing.pruning.method import Aim, Method
from llmshearing.pruning.patterns import Pattern
from llmshearing.pruning.sparse_linear import (
    Draw,
    FixedLinear,
    LearnedLinear,
    Sampling,
    keyed_generator,
    replace_linears,
)
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX, to_hf
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import Gates, is_in_layer, weight_shapes, weight_table

LOGITS, BITS = "mask_logits", "mask_bits"
INITIAL_STD = 0.01  # of the logits (MaskLLM table 7)
MAGNITUDE = "magnitude"


class MaskLLM(Method):
    """Masks on single weights of every linear layer inside the blocks, learned or fixed.

    Learned: logits in the layers, one a candidate of each block, are all that trains. Fixed: the masks are
    those of `prior`, and the weights that they keep train.

    Args:
        cfg: the `model` section of a run's configuration, with its `maskllm`.
        device: not used: logits lie where the weights do.

    Attributes:
        candidates: [C, M], the masks that the axis C of the logits stands for; saved with them.

    Raises:
        ValueError: when the model cannot have the pattern, or the prior is not its own.
    """

    section: ClassVar[str] = "maskllm"
    loss_name: ClassVar[str] = "mask_loss"
    inside: ClassVar[tuple[str, ...]] = (LOGITS, BITS)
    candidates: Tensor

    def __init__(self, cfg: Any, device: str | torch.device = "cpu") -> None:
        super().__init__()
        cfg = as_model_config(cfg)
        assert cfg.maskllm is not None
        self.settings: MaskLLMConfig = cfg.maskllm
        self.arch: Architecture = architecture_of(cfg)
        if problems := self.aim(cfg, self.arch).problems:
            raise ValueError("\n".join(problems))
        self.pattern = patterns.parse(self.settings.pattern, "model.maskllm.pattern")
        self.register_buffer("candidates", self.pattern.candidates())
        self.noise_depends_on_division = not self.settings.fixed and self.settings.noise == "per_rank"
        self.microbatch = 0
        self._sampling = Sampling(self._next_draw())
        self._layers: list[Any] = []  # the decoder's, which holds them as its own
        self._saved: dict[str, Tensor] | None = None

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        settings = config.maskllm
        assert settings is not None
        problems = _setting_problems(settings)
        try:
            pattern = patterns.parse(settings.pattern, "model.maskllm.pattern")
        except ValueError as error:
            return Aim(problems=[*problems, str(error)])
        shapes = masked_shapes(source)
        problems += misfits(pattern, source)
        if settings.prior and settings.prior != MAGNITUDE and not problems:
            try:
                MaskFile(settings.prior, hf_shapes(source))
            except (OSError, ValueError) as error:
                problems.append(f"model.maskllm.prior: {error}")
        weights = sum(rows * columns for rows, columns in shapes.values())
        logits = weights // pattern.group * pattern.choices
        if settings.fixed:
            note = f"Masks stay fixed: {pattern} of {weights:,} weights; those that stay are trained."
            return Aim(problems=problems, notes=[note])
        note = f"To learn: {pattern} masks of {weights:,} weights, by {logits:,} logits alone."
        return Aim(problems=problems, notes=[note], own=logits, trains_weights=False)

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "MaskLLM":
        if target:
            raise ValueError(f"{path} has masks on single weights: no sizes change, so give no target.")
        candidates = tensors.get("candidates")
        if candidates is None or candidates.dim() != 2:
            raise ValueError(f"{path} has logits of masks, but not the candidates that they choose among.")
        pattern = Pattern(int(candidates[0].sum()), candidates.shape[1])
        module = cls(replace(config, maskllm=MaskLLMConfig(pattern=str(pattern))))
        module.candidates = candidates.bool()
        module._saved = tensors
        expected = masked_shapes(module.arch)
        for name, (rows, columns) in expected.items():
            if not any(f"{name}.{leaf}" in tensors for leaf in cls.inside):
                raise ValueError(f"The masks of {path} do not match its model: {name} has none.")
            logits = tensors.get(f"{name}.{LOGITS}")
            shape = (rows, len(candidates), columns // pattern.group)
            if logits is not None and tuple(logits.shape) != shape:
                raise ValueError(
                    f"The masks of {path} do not match its model: {name} has logits {list(logits.shape)}; "
                    f"expected {list(shape)}."
                )
        return module.eval().requires_grad_(False)

    # -------------------------------------------------------------- during a run

    def attach(self, decoder: nn.Module) -> None:
        transformer: Any = decoder.transformer
        if self.settings.fixed:
            self._layers = replace_linears(transformer["blocks"], FixedLinear)
            return
        transformer.requires_grad_(False)

        def learned(linear: nn.Linear, name: str) -> LearnedLinear:
            return LearnedLinear(linear, name, self.pattern, self._sampling)

        self._layers = replace_linears(transformer["blocks"], learned)

    @torch.no_grad()
    def initialize(self, seed: int, given: Collection[str]) -> None:
        """Draw the logits from N(0, 0.01) and lean them to the prior; or take the fixed masks from it."""
        leaf = BITS if self.settings.fixed else LOGITS
        for layer in self._layers:
            if f"{PREFIX}{layer.name}.{leaf}" in given:
                continue
            if self.settings.fixed:
                mask = self._prior(layer.name, _whole(layer.weight))
                layer.mask_bits.copy_(patterns.pack(mask))
            else:
                self._initialize_logits(layer, seed)

    def begin_step(self, step: int, steps: int = 0) -> None:
        super().begin_step(step, steps)
        self.microbatch = 0

    def gates(self) -> Gates:
        """None: masks lie on single weights. This pass draws them anew."""
        self._sampling.draw = self._next_draw()
        self._sampling.found = []
        self._sampling.collects = self.training
        self.microbatch += 1
        return Gates()

    def term(self, step: int | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """-weight_reg x the squared norm of the masked weights (MaskLLM equation 8), of this forward pass."""
        self._sampling.collects = False
        found, self._sampling.found = self._sampling.found, []
        if not found:
            return None, {}
        norm = torch.stack([norm for norm, _, _ in found]).sum()
        likeliest = torch.stack([sure for _, sure, _ in found]).sum() / sum(count for *_, count in found)
        draw = self._sampling.draw
        return -self.settings.weight_reg * norm, {
            "mask_scale": norm.new_tensor(draw.scale),
            "mask_temperature": norm.new_tensor(draw.temperature),
            "mask_confidence": likeliest,
            "masked_weight_norm": norm.detach(),
        }

    def parameter_groups(self, settings: OptimizerConfig) -> list[dict[str, Any]]:
        """The logits, under the settings of the run's optimizer."""
        if self.settings.fixed:
            return []
        logits = [layer.mask_logits for layer in self._layers]
        return [{"params": logits, "lr": settings.lr, "weight_decay": settings.weight_decay}]

    def weight_mask(self, name: str) -> Tensor | None:
        layer, _, leaf = name.removeprefix(PREFIX).rpartition(".")
        found = self._tensors(layer)
        if leaf != "weight" or found is None:
            return None
        if BITS in found:
            return patterns.unpack_bits(found[BITS], masked_shapes(self.arch)[layer])
        return patterns.chosen_mask(found[LOGITS], self.candidates.to(found[LOGITS].device))

    def _tensors(self, layer: str) -> dict[str, Tensor] | None:
        """The logits or bits of a layer, whole; None where it has no mask."""
        if self._saved is not None:
            found = {leaf: self._saved.get(f"{layer}.{leaf}") for leaf in self.inside}
        else:
            module = next((each for each in self._layers if each.name == layer), None)
            found = {leaf: getattr(module, leaf, None) for leaf in self.inside}
        tensors = {leaf: _whole(tensor).detach() for leaf, tensor in found.items() if tensor is not None}
        return tensors or None

    def _next_draw(self) -> Draw:
        settings = self.settings
        place = (self.microbatch, _rank()) if self.noise_depends_on_division else (0, 0)
        return Draw(
            patterns.linear_schedule(settings.scale, self.step, self.steps),
            patterns.linear_schedule(settings.temperature, self.step, self.steps),
            settings.hard,
            (self.seed, self.step, *place),
        )

    def _initialize_logits(self, layer: LearnedLinear, seed: int) -> None:
        """Draw the whole on each process, which keeps its rows: any number of them has the same logits."""
        logits = layer.mask_logits
        generator = keyed_generator(torch.device("cpu"), seed, name=f"initial {layer.name}")
        drawn = torch.randn(logits.shape, generator=generator) * INITIAL_STD
        if self.settings.prior:
            mask = self._prior(layer.name, _whole(layer.weight)).cpu()
            drawn = patterns.toward_prior(
                drawn, mask, self.candidates.cpu(), self.settings.prior_strength, drawn.std()
            )
        _copy(logits, drawn)

    def _prior(self, layer: str, weight: Tensor) -> Tensor:
        prior = self.settings.prior
        assert prior is not None
        if prior == MAGNITUDE:
            return patterns.top_mask(nm_scores.magnitude_scores(weight), self.pattern)
        name = to_hf(f"{layer}.weight", self.arch.family)
        return MaskFile(prior, hf_shapes(self.arch)).checked(name, self.pattern)


def masked_parts(arch: Architecture) -> Iterator[str]:
    """The linear layers inside a block, by their names in the table of units."""
    return (part for part, weight in weight_table(arch).items() if is_in_layer(part) and weight.columns)


def masked_shapes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Rows and columns of every weight that a mask can lie on, by our name less `.weight`."""
    parts = set(masked_parts(arch))
    found = {}
    for name, shape in weight_shapes(arch):
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer.startswith("blocks.") and layer.split(".", 2)[2] in parts:
            found[layer] = (shape[0], shape[1])
    return found


def hf_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """`masked_shapes` by HF names of the weights."""
    return {to_hf(f"{name}.weight", arch.family): shape for name, shape in masked_shapes(arch).items()}


def misfits(pattern: Pattern, arch: Architecture) -> list[str]:
    """The weights that cannot have a pattern, one line for each part of a block."""
    table = weight_table(arch)
    found = (pattern.problem(part, table[part].axes[1].size) for part in masked_parts(arch))
    return [problem for problem in found if problem]


def _setting_problems(settings: MaskLLMConfig) -> list[str]:
    problems = []
    if settings.fixed and not settings.prior:
        problems.append(
            "model.maskllm.fixed is true without a prior: give the file of the masks that stay fixed, "
            "model.maskllm.prior=FILE."
        )
    if settings.prior in nm_scores.INPUTS and settings.prior != MAGNITUDE:
        problems.append(
            f"model.maskllm.prior is {settings.prior}, which needs calibration data: make the masks first, "
            f"`llmshearing oneshot CKPT OUT --method {settings.prior} --pattern {settings.pattern} "
            "--data DATA`, and give the file that it writes."
        )
    return problems


def _whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered where processes hold parts of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copy(parameter: Tensor, whole: Tensor) -> None:
    """Copy `whole` into a parameter, of which each process may hold a part."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        parameter.copy_(distribute_tensor(whole.to(parameter.device), mesh, parameter.placements))
    else:
        parameter.copy_(whole)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
