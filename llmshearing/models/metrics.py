"""Losses by domain: one pass over the token losses, however many domains there are."""

import torch
from torch import Tensor
from torchmetrics import Metric


def domain_sums(token_loss_BS: Tensor, predicted_BS: Tensor, domains_B: Tensor, n_domains: int) -> Tensor:
    """Sum of losses and number of predicted tokens of each domain, [n_domains, 2] in fp64 precision.

    Args:
        token_loss_BS: loss of each token, 0 where nothing is predicted.
        predicted_BS: where there is something to predict.
        domains_B: index of each sequence's domain.
    """
    tokens = predicted_BS.sum(1)
    by_sequence = torch.stack([token_loss_BS.double().sum(1), tokens.double()], dim=1)
    return by_sequence.new_zeros(n_domains, 2).index_add_(0, domains_B, by_sequence)


class MeanTokenLoss(Metric):
    """Mean loss of predicted tokens, in nats, of one domain or (`domain=None`) of all.

    Raises:
        ValueError: on `compute` without any token.
    """

    full_state_update = False
    loss_sum: Tensor
    tokens: Tensor

    def __init__(self, domain: int | None = None, name: str = "", exponentiate: bool = False) -> None:
        super().__init__()
        self.domain = domain
        self.name = name
        self.exponentiate = exponentiate
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Tensor) -> None:
        """Add `domain_sums` of a batch, [n_domains, 2]."""
        mine = sums.sum(0) if self.domain is None else sums[self.domain]
        self.loss_sum += mine[0]
        self.tokens += mine[1]

    def compute(self) -> Tensor:
        if not self.tokens:
            raise ValueError(
                f"The evaluation had no tokens of {self.name or 'any domain'}; expected some of every "
                "domain: check the evaluation data and eval_subset_num_batches."
            )
        mean = self.loss_sum / self.tokens
        return (mean.exp() if self.exponentiate else mean).float()


def evaluation_metrics(set_names: list[str]) -> dict[str, Metric]:
    """LanguageCrossEntropy and LanguagePerplexity over all, `{domain}_LanguageCrossEntropy` by domain."""
    metrics: dict[str, Metric] = {
        "LanguageCrossEntropy": MeanTokenLoss(),
        "LanguagePerplexity": MeanTokenLoss(exponentiate=True),
    }
    for index, name in enumerate(set_names):
        metrics[f"{name}_LanguageCrossEntropy"] = MeanTokenLoss(index, name)
    return metrics
