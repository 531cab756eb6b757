"""Training losses by domain against means by hand."""

import math
from typing import Any

import pytest
import torch

from llmshearing.callbacks.domain_losses import DomainLosses
from stubs import NO_LOGGER, Logged, state


def logged(steps: list[list[tuple[list[int], list[list[float]]]]]) -> list[Logged]:
    """What is logged in steps of microbatches, each of domains [B] and losses of tokens [B, S]."""
    callback, found = DomainLosses(["code", "books", "wiki"]), []
    for microbatches in steps:
        callback.batch_start(state(), NO_LOGGER)
        for domains, losses in microbatches:
            token_loss = torch.tensor(losses, requires_grad=True)
            outputs: dict[str, Any] = {"token_loss": token_loss, "predicted": token_loss != 0}
            callback.after_forward(state(batch={"set": torch.tensor(domains)}, outputs=outputs), NO_LOGGER)
        found.append(Logged())
        sums = callback.summed(state())["domain_sums"].tolist()
        callback.take(state(), found[-1].logger, {"domain_sums": sums})
    return found


def test_losses_are_means_over_the_tokens_of_all_microbatches():
    first = ([0, 1], [[1.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
    second = ([1, 0], [[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    (found,) = logged([[first, second]])
    assert found == {
        "metrics/train/code_LanguageCrossEntropy": pytest.approx((1 + 3 + 2) / 3),
        "metrics/train/books_LanguageCrossEntropy": pytest.approx((4 + 1 + 1) / 3),
        "metrics/train/LanguagePerplexity": pytest.approx(math.exp(12 / 6)),
    }


def test_each_step_starts_over():
    _, second = logged([[([0], [[9.0, 9.0]])], [([2], [[1.0, 2.0]])]])
    assert set(second) == {"metrics/train/wiki_LanguageCrossEntropy", "metrics/train/LanguagePerplexity"}
    assert second["metrics/train/wiki_LanguageCrossEntropy"] == pytest.approx(1.5)


def test_a_domain_without_predicted_tokens_is_skipped():
    (found,) = logged([[([0, 1], [[2.0, 2.0], [0.0, 0.0]])]])
    assert "metrics/train/books_LanguageCrossEntropy" not in found
    assert found["metrics/train/code_LanguageCrossEntropy"] == pytest.approx(2.0)
