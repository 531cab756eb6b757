"""LayerCHOP: remove whole layers, at once or one after another, and train on (Just CHOP section 3.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llmshearing.config import LayerChopConfig, ModelConfig, as_model_config
from llmshearing.pruning.layer_schemes import chosen, find_problems, last_cut, number_kept, removed_by
from llmshearing.pruning.method import Aim, Convergence, Method
from llmshearing.pruning.score_file import check_weights_of, read_importance
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import Gates, drive


class LayerChop(Method):
    """Constant gates of whole layers: 1 while a layer is there, 0 from its cut on.

    Attributes:
        order: [L], 0 for a layer that stays, n for the n-th that goes; of a resumed run, the checkpoint's.
        layers: [L], the gates now.
    """

    section: ClassVar[str] = "layerchop"
    order: Tensor
    layers: Tensor

    def __init__(self, cfg: Any, device: str | torch.device = "cpu", order: Tensor | None = None) -> None:
        super().__init__()
        cfg = as_model_config(cfg)
        source, self.settings = architecture_of(cfg), cfg.layerchop or LayerChopConfig()
        if order is None:
            order = torch.zeros(source.n_layers, dtype=torch.int64)
            gone = layers_to_remove(self.settings, source)
            order[gone] = torch.arange(1, len(gone) + 1)
        self.total = int((order > 0).sum())
        self.target = source.resized(n_layers=source.n_layers - self.total)
        self.register_buffer("order", order.to(device))
        self.register_buffer("layers", torch.ones(source.n_layers, device=device))
        self._closed: list[int] | None = None  # from the first step on: a checkpoint may bring another order

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        settings = config.layerchop or LayerChopConfig()
        if problems := find_problems(settings, source.n_layers):
            return Aim(kinds=["layer"], problems=problems)
        target = source.resized(n_layers=number_kept(settings))
        try:
            gone = layers_to_remove(settings, source)
        except (ValueError, OSError) as error:
            return Aim(target, ["layer"], problems=[f"model.layerchop.scores: {error}"])
        notes = [f"Layers that go, in this order, counted from 0: {', '.join(map(str, gone))}."]
        durations = {"The last cut of model.layerchop": last_cut(settings, len(gone))}
        return Aim(target, ["layer"], durations=durations, notes=notes)

    @classmethod
    def source_problems(cls, config: ModelConfig, weights: Mapping[str, Tensor], path: str) -> list[str]:
        given = config.layerchop.scores if config.layerchop else None
        try:
            if given is not None:
                check_weights_of(read_importance(given, architecture_of(config)), weights, given, path)
        except (ValueError, OSError) as error:
            return [f"model.layerchop.scores: {error}"]
        return []

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "LayerChop":
        depth = architecture_of(config).n_layers
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != dict.fromkeys(("order", "layers"), (depth,)):
            raise ValueError(f"The gates of {path} do not match its {depth} layers: found {found}.")
        method = cls(config, order=tensors["order"])
        method.load_state_dict(tensors)
        if (held := {name: getattr(method.target, name, None) for name in target or {}}) != (target or {}):
            raise ValueError(f"{target} was given, but the layers in {path} make {held}: leave it out.")
        return method.eval()

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        removed = removed_by(self.settings, self.total, step)
        if self._closed is None or removed != len(self._closed):
            self._closed = [i for i, position in enumerate(self.order.tolist()) if 0 < position <= removed]
            self.layers.copy_((self.order == 0) | (self.order > removed))

    def gates(self) -> Gates:
        return drive(self.gates_by_kind()) if self._closed else Gates()

    def term(self, step: int | None = None) -> tuple[Tensor | None, dict[str, Tensor]]:
        names = [f"{side}_{kind}sparsity" for side in ("expected", "target") for kind in ("", "layer_")]
        return None, dict.fromkeys(names, 1 - self.layers.mean())  # a layer that is due is closed

    def after_backward(self, decoder: nn.Module) -> None:
        """Take the gradients from closed layers, so that the optimizer leaves them and their state alone."""
        for layer in self._closed or []:
            for parameter in decoder.transformer["blocks"][layer].parameters():  # type: ignore[index]
                parameter.grad = None

    def gates_by_kind(self) -> dict[str, Tensor]:
        return {"layer": self.layers}

    def final_gates(self) -> Gates:
        return drive({"layer": (self.order == 0).float()})

    def convergence(self) -> dict[str, Convergence]:
        target, now = self.total / len(self.order), float(1 - self.layers.mean())
        return {"layer": Convergence(target, now, abs(now - target))}


def layers_to_remove(
    settings: LayerChopConfig, source: Architecture, where: str = "model.layerchop."
) -> list[int]:
    """The layers that go, in their order; ValueError with every problem of the settings, one a line."""
    if problems := find_problems(settings, source.n_layers, where):
        raise ValueError("\n".join(problems))
    scores = read_importance(settings.scores, source).by_kind["layer"].tolist() if settings.scores else None
    return chosen(settings, source.n_layers, scores)[1]
