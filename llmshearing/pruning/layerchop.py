"""LayerCHOP: remove whole layers, at once or one after another, and train on (Just CHOP section 3.1)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llmshearing.config import LayerChopConfig, ModelConfig, as_model_config
from llmshearing.config.durations import batches
from llmshearing.pruning.layer_schemes import chosen, find_problems, last_cut, removed_by
from llmshearing.pruning.method import Aim, Convergence, Method
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import architecture_of
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

    def __init__(self, cfg: Any, device: str | torch.device = "cpu") -> None:
        """As every method; see `Method`.

        Raises:
            ValueError: when the layers to remove are not named, or not possible.
        """
        super().__init__()
        cfg = as_model_config(cfg)
        assert cfg.layerchop is not None
        self.settings, source = cfg.layerchop, architecture_of(cfg)
        order = torch.zeros(source.n_layers, dtype=torch.int64, device=device)
        for position, layer in enumerate(layers_to_remove(cfg.layerchop, source), 1):
            order[layer] = position
        self._hold(order, torch.ones(source.n_layers, device=device), source)

    def _hold(self, order: Tensor, layers: Tensor, source: Architecture) -> None:
        self.register_buffer("order", order)
        self.register_buffer("layers", layers)
        self.total = int((order > 0).sum())
        self.target = source.resized(n_layers=source.n_layers - self.total)
        self._closed: list[int] | None = (
            None  # known from the first step on: a checkpoint may change the order
        )

    @classmethod
    def aim(cls, config: ModelConfig, source: Architecture) -> Aim:
        settings = config.layerchop
        assert settings is not None
        try:
            gone = layers_to_remove(settings, source)
        except ValueError as error:
            return Aim(kinds=["layer"], problems=str(error).splitlines())
        target = source.resized(n_layers=source.n_layers - len(gone))
        notes = [f"Layers that go, in this order, counted from 0: {', '.join(map(str, gone))}."]
        durations = {"The last cut of model.layerchop": last_cut(settings, len(gone))}
        return Aim(target, ["layer"], durations=durations, notes=notes)

    @classmethod
    def restored(
        cls, tensors: dict[str, Tensor], config: ModelConfig, target: dict[str, Any] | None, path: str
    ) -> "LayerChop":
        source, method = architecture_of(config), cls.__new__(cls)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != dict.fromkeys(("order", "layers"), (source.n_layers,)):
            raise ValueError(f"The gates of {path} do not match its {source.n_layers} layers: {found}.")
        Method.__init__(method)
        method._hold(tensors["order"], tensors["layers"], source)
        assert method.target is not None
        for name, size in (target or {}).items():
            if size != (held := getattr(method.target, name, None)):
                raise ValueError(
                    f"{name}={size} was given, but the layers in {path} make {held}: leave it out."
                )
        return method.eval()

    def begin_step(self, step: int, steps: int) -> None:
        super().begin_step(step, steps)
        settings = self.settings
        warm, interval = batches(settings.warm_steps), batches(settings.interval)
        removed = removed_by(step, self.total, warm, settings.layers_per_cut, interval)
        if self._closed is None or removed != len(self._closed):
            order = enumerate(self.order.tolist())
            self._closed = [layer for layer, position in order if 0 < position <= removed]
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


def layers_to_remove(settings: LayerChopConfig, source: Architecture) -> list[int]:
    """The layers that go, in their order; `llmshearing oneshot --method layerchop` closes them too.

    Raises:
        ValueError: with every problem of the settings, one a line.
    """
    if problems := find_problems(settings, source.n_layers):
        raise ValueError("\n".join(problems))
    importance = read_importance(settings.scores, source.n_layers) if settings.scores else None
    return chosen(settings, source.n_layers, importance)[1]


def read_importance(path: str, layers: int) -> list[float]:
    """The tensor `layer` of a safetensors file: how important each layer is.

    Raises:
        ValueError: when it is not there, or of a model with another number of layers.
    """
    try:
        scores = load_file(Path(path))["layer"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"model.layerchop.scores: {path} has no scores of layers ({error}).") from error
    if scores.shape != (layers,) or not scores.isfinite().all():
        raise ValueError(
            f"model.layerchop.scores: {path} has {list(scores.shape)} scores of layers; expected {layers}, "
            "all finite."
        )
    return scores.tolist()
