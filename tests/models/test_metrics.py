"""Losses by domain."""

import pytest
import torch

from llmshearing.models.metrics import MeanTokenLoss, domain_sums, evaluation_metrics


def test_domain_sums_split_tokens_by_domain():
    predicted = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    losses = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0], [5.0, 6.0, 0.0]])
    sums = domain_sums(losses, predicted, torch.tensor([2, 0, 2]), 3)
    assert sums.tolist() == [[4.0, 1.0], [0.0, 0.0], [14.0, 4.0]]


def test_metrics_accumulate_by_domain_and_overall():
    metrics = evaluation_metrics(["a", "b"])
    for sums in ([[6.0, 3.0], [1.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]):
        for metric in metrics.values():
            metric.update(torch.tensor(sums, dtype=torch.float64))
    values = {name: metric.compute().item() for name, metric in metrics.items()}
    assert values["a_LanguageCrossEntropy"] == 2.0
    assert values["b_LanguageCrossEntropy"] == 1.0
    assert values["LanguageCrossEntropy"] == pytest.approx(9 / 5)
    assert values["LanguagePerplexity"] == pytest.approx(torch.tensor(9 / 5).exp().item())


def test_a_domain_without_tokens_is_an_error_and_never_nan():
    metric = MeanTokenLoss(0, "wiki")
    metric.update(torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="no tokens of wiki"):
        metric.compute()
