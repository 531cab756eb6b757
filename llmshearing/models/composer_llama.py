"""The model as Composer's Trainer sees it."""

from collections.abc import Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import Metric

from llmshearing.config.keys import as_model_config
from llmshearing.models.decoder import Decoder
from llmshearing.models.metrics import MeanTokenLoss, domain_sums, evaluation_metrics


class ComposerMosaicLlama(ComposerModel):
    """A LLaMA-like decoder, with masks when `cfg.l0_module` is set.

    Args:
        cfg: the `model` section of a run's configuration: a `ModelConfig`, a mapping or a DictConfig.

    Attributes:
        return_logits: whether `forward` returns logits; the trainer needs only losses and turns it off.

    Raises:
        ValueError: for an impossible shape or target.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        cfg = as_model_config(cfg)
        for name in ("attn_pdrop", "resid_pdrop", "emb_pdrop"):
            if getattr(cfg, name):
                raise ValueError(f"model.{name} is {getattr(cfg, name)}; expected 0: there is no dropout.")
        self.model = Decoder(cfg)
        self.set_names = list(cfg.set_names or [])
        self.return_logits = True

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """`{"logits", "l0_output", "zs"}` and, with labels in the batch, `ce_loss` and `token_loss`.

        See `Decoder.forward` for shapes.
        """
        return self.model(batch, logits=self.return_logits)

    def loss(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any], *args, **kwargs
    ) -> dict[str, Tensor]:
        """`ce_loss`, `lag_loss` when pruning, and `total`, their sum."""
        losses = {"ce_loss": outputs["ce_loss"]}
        if outputs["l0_output"] is not None:
            losses["lag_loss"] = outputs["l0_output"][0]
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def eval_forward(self, batch: Mapping[str, Any], outputs: Any | None = None) -> dict[str, Any]:
        """Outputs with `domain_sums` [domains, 2], from which every metric is updated."""
        outputs = dict(self.forward(batch) if outputs is None else outputs)
        domains = batch.get("set")
        if domains is None or not self.set_names:
            domains = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device=batch["input_ids"].device)
        count = max(1, len(self.set_names))
        outputs["domain_sums"] = domain_sums(outputs["token_loss"], batch["labels"], domains, count)
        return outputs

    def flops_per_batch(self, batch: Mapping[str, Any]) -> int:
        """Operations of a training step over `batch`, from which SpeedMonitor logs throughput and MFU."""
        return self.model.arch.training_flops(*batch["input_ids"].shape)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Metrics of an evaluation; those of training are logged by the `DomainLosses` callback."""
        return {} if is_train else evaluation_metrics(self.set_names)

    def update_metric(self, batch: Any, outputs: Mapping[str, Any], metric: Metric) -> None:
        assert isinstance(metric, MeanTokenLoss)
        metric.update(outputs["domain_sums"])
