"""The chunked loss against torch's cross entropy, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from llmshearing.models import loss
from llmshearing.models.loss import IGNORE_INDEX, CrossEntropy, linear_loss, shift_labels


def linear_cross_entropy(hidden, weight, targets, chunk=None):
    """The mean and the loss of every token [N] with cross entropy as the only term."""
    term = CrossEntropy(targets)
    mean, losses = linear_loss(hidden, weight, [term], term.predicted, chunk)
    return mean, losses[0]


class Square:
    """A second term for tests: the mean square of a token's logits, times `weight`."""

    name, weight, in_place = "square", 0.25, False

    def chunk(self, logits, rows, wants_grad):
        return logits.square().mean(-1), 2 * logits / logits.shape[-1] if wants_grad else None


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_equals_cross_entropy_of_whole_logits(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(33, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (33,), generator=generator)
    targets[::5] = IGNORE_INDEX
    mean, tokens = linear_cross_entropy(hidden, weight, targets, chunk)
    (3 * mean).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    (3 * F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)).backward()
    torch.testing.assert_close(
        tokens.double(), F.cross_entropy(logits, targets, reduction="none"), atol=1e-5, rtol=0
    )
    for mine, reference in zip(ours, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-5)


def test_autocast_computes_in_its_type_and_keeps_fp32_results():
    hidden = torch.randn(8, 16, requires_grad=True)
    weight = torch.randn(20, 16, requires_grad=True)
    targets = torch.randint(0, 20, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, tokens = linear_cross_entropy(hidden, weight, targets)
    mean.backward()
    reference = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets)
    assert mean.dtype == tokens.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    assert mean.item() == pytest.approx(reference.item(), rel=1e-2)


def test_shift_labels_predicts_the_next_token():
    assert shift_labels(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, IGNORE_INDEX]]


def test_nothing_to_predict_is_zero_not_nan():
    mean, tokens = linear_cross_entropy(torch.ones(2, 4), torch.ones(3, 4), torch.full((2,), IGNORE_INDEX))
    assert mean.item() == 0
    assert tokens.tolist() == [0, 0]


@pytest.mark.parametrize("chunk", [None, 5])
def test_terms_add_up_with_their_weights(chunk):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(12, 8, generator=generator, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 30, (12,), generator=generator)
    targets[3] = IGNORE_INDEX
    term = CrossEntropy(targets)
    for terms in ([term, Square()], [Square(), term]):
        mean, losses = linear_loss(hidden, weight, terms, term.predicted, chunk)
        mean.backward()
        ours = hidden.grad.clone(), weight.grad.clone()
        hidden.grad = weight.grad = None
        logits = hidden @ weight.T
        square = logits.square().mean(-1)[targets != IGNORE_INDEX].mean()
        reference = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX) + 0.25 * square
        reference.backward()
        torch.testing.assert_close(mean, reference)
        torch.testing.assert_close(ours, (hidden.grad, weight.grad))
        hidden.grad = weight.grad = None
        assert losses[:, 3].tolist() == [0, 0]


@pytest.mark.parametrize(("hidden_grad", "weight_grad"), [(True, False), (False, True), (False, False)])
def test_only_needed_gradients_are_computed(hidden_grad, weight_grad, monkeypatch):
    made = []
    monkeypatch.setattr(loss, "_accumulate_product", lambda *_: made.append("weight"))
    hidden = torch.randn(6, 4, requires_grad=hidden_grad)
    weight = torch.randn(9, 4, requires_grad=weight_grad)
    mean, _ = linear_cross_entropy(hidden, weight, torch.randint(0, 9, (6,)))
    assert made == ["weight"] * weight_grad
    assert mean.requires_grad == (hidden_grad or weight_grad)
    if mean.requires_grad:
        mean.backward()
    assert (hidden.grad is not None, weight.grad is not None) == (hidden_grad, weight_grad)
