"""The model as Composer's Trainer sees it."""

from collections.abc import Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import Metric

from llmshearing.config import as_model_config
from llmshearing.models.decoder import Decoder
from llmshearing.models.distillation import Teacher
from llmshearing.models.loss import Term
from llmshearing.models.metrics import MeanTokenLoss, domain_sums, evaluation_metrics
from llmshearing.pruning.method import one_step
from llmshearing.shapes.counts import forward_flops
from llmshearing.shapes.units import from_z, to_z


class ComposerMosaicLlama(ComposerModel):
    """A LLaMA-like decoder, with the pruning method that `cfg` names, if any.

    Args:
        cfg: the `model` section of a run's configuration: a `ModelConfig`, a mapping or a DictConfig.

    Attributes:
        return_logits: whether `forward` returns logits; the trainer needs only losses and turns it off.
        teacher: the model to follow in training beside the text; None: there is none.
        ce_weight: the weight of the cross entropy with the text.

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
        self.teacher: Teacher | None = None
        self.ce_weight = 1.0

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One pass over a batch, under the names and in the shapes of the released code.

        Args:
            batch: `input_ids` [B, S]; optionally `labels` [B, S], `attention_mask` [B, S], masks by name
                (`Z_NAMES`), and `pruned_steps`, the step at which the constraint is computed.

        Returns:
            `logits`; `l0_output`, the method's part of the loss and its values (None in evaluation, unless
            the batch has `pruned_steps`); `zs`, the masks in force; with labels also `head_loss`, `ce_loss`,
            `term_losses`, `token_loss` and `predicted` (`Decoder.forward`).
        """
        steps, given = batch.get("pruned_steps"), from_z(batch, self.model.arch)
        outputs = self.model(
            batch["input_ids"],
            batch.get("labels"),
            batch.get("attention_mask"),
            given=given if len(given) else None,  # torch.compile takes an empty one for true
            with_term=self.training or steps is not None,
            step=None if steps is None else one_step(steps),
            logits=self.return_logits,
            terms=self._terms(batch),
            ce_weight=self.ce_weight,
        )
        return {"l0_output": outputs.pop("term"), "zs": to_z(outputs.pop("gates")), **outputs}

    def _terms(self, batch: Mapping[str, Any]) -> list[Term]:
        """What is learned from logits beside the cross entropy; nothing in evaluation."""
        if self.teacher is None or not self.training or "labels" not in batch:
            return []
        return [self.teacher.term(batch["input_ids"])]

    def loss(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any], *args, **kwargs
    ) -> dict[str, Tensor]:
        """The parts of the loss by their names, and `total`, which is learned from.

        Parts are `ce_loss`, with a teacher `kl_loss`, and the method's own (`lag_loss` of learned masks). The
        total is their sum, those of the head with their weights.
        """
        losses = {"ce_loss": outputs["ce_loss"], **outputs["term_losses"]}
        total = [outputs["head_loss"]]
        method, term = self.model.method, outputs["l0_output"]
        if method is not None and term is not None and term[0] is not None:
            losses[method.loss_name] = term[0]
            total.append(term[0])
        return losses | {"total": torch.stack(total).sum()}

    def eval_forward(self, batch: Mapping[str, Any], outputs: Any | None = None) -> dict[str, Any]:
        """Outputs with `domain_sums` [domains, 2], from which every metric is updated."""
        outputs = dict(self.forward(batch) if outputs is None else outputs)
        domains = batch.get("set")
        if domains is None or not self.set_names:
            domains = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device=batch["input_ids"].device)
        count = max(1, len(self.set_names))
        outputs["domain_sums"] = domain_sums(outputs["token_loss"], outputs["predicted"], domains, count)
        return outputs

    def flops_per_batch(self, batch: Mapping[str, Any]) -> float:
        """Operations of a training step over `batch`, from which SpeedMonitor logs throughput and MFU.

        While pruning, those really executed: closed units that were left out do not count. The forward pass
        of a teacher counts.
        """
        shape = batch["input_ids"].shape
        taught = 0 if self.teacher is None else forward_flops(self.teacher.arch, *shape)
        return self.model.training_flops(*shape) + taught

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Metrics of an evaluation; those of training are logged by the `DomainLosses` callback."""
        return {} if is_train else evaluation_metrics(self.set_names)

    def update_metric(self, batch: Any, outputs: Mapping[str, Any], metric: Metric) -> None:
        assert isinstance(metric, MeanTokenLoss)
        metric.update(outputs["domain_sums"])
