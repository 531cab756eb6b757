"""The head and the losses on its logits, without the logits of a whole batch in memory.

N tokens, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

IGNORE_INDEX = -100
_CHUNK_BYTES = 64 * 2**20


def shift_labels(labels_BS: Tensor) -> Tensor:
    """Targets [B, S]: the label of the next position, `IGNORE_INDEX` at the last."""
    last = torch.full_like(labels_BS[:, :1], IGNORE_INDEX)
    return torch.cat([labels_BS[:, 1:], last], dim=1)


def chunk_size(vocab_size: int) -> int:
    """Tokens whose logits take about 64 MiB in fp32."""
    return max(16, _CHUNK_BYTES // (4 * vocab_size))


class Term(Protocol):
    """A part of the loss that is computed from logits.

    Attributes:
        name: what its mean over tokens is called, such as `ce_loss`.
        weight: its weight in the sum of terms; the gradient of a term of weight 0 is not computed.
        in_place: whether `chunk` overwrites the logits it gets; other terms leave them as they are.
    """

    name: str
    weight: float
    in_place: bool

    def chunk(self, logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Loss of each token of a chunk, and its gradient to the logits.

        Args:
            logits: [n, V] in fp32.
            rows: which tokens of the batch these are.

        Returns:
            [n] and, if wanted, [n, V]; values where nothing is predicted are ignored.
        """
        ...


class CrossEntropy:
    """Cross entropy of softmax(logits) against targets.

    Args:
        targets_N: token ids, `IGNORE_INDEX` where there is nothing to predict.
        weight: its weight among the terms of the loss.

    Attributes:
        predicted: [N], where there is something to predict.
    """

    name = "ce_loss"
    in_place = True

    def __init__(self, targets_N: Tensor, weight: float = 1.0) -> None:
        self.weight = weight
        self.predicted = targets_N != IGNORE_INDEX
        self._index = targets_N.clamp(min=0)[:, None]

    def chunk(self, logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        index = self._index[rows]
        loss, probabilities = _softmax_loss(logits, index)
        if wants_grad:
            probabilities.scatter_add_(1, index, probabilities.new_full((), -1.0).expand_as(index))
        return loss, probabilities


@torch.compiler.disable  # matrix products in a loop, which a compiler would only unroll
def linear_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    terms: Sequence[Term],
    predicted_N: Tensor,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of `terms` over logits = hidden @ weight^T, its mean over predicted tokens.

    Logits exist for a chunk of tokens at a time, in fp32, once: gradients are made in the same pass, and
    only those that are needed, so that the head costs no more than its three matrix products.

    Args:
        predicted_N: which tokens count.
        chunk_tokens: tokens a chunk; default: about 64 MiB of logits.
        softcap: the c of c tanh(logits / c), which terms then see; None: no cap.

    Returns:
        The mean (differentiable) and the loss of every token under every term [terms, N] (not), 0 where
        nothing is predicted; both fp32.
    """
    chunk = chunk_tokens or chunk_size(weight_VD.shape[0])
    if torch.is_autocast_enabled(hidden_ND.device.type):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
    return _LinearLoss.apply(hidden_ND, weight_VD, terms, predicted_N, chunk, softcap)  # type: ignore[return-value]


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        terms: Sequence[Term],
        predicted: Tensor,
        chunk: int,
        softcap: float | None,
    ):
        count = predicted.sum().clamp(min=1)
        weighs = any(term.weight for term in terms)
        wants_hidden, wants_weight = (needed and weighs for needed in ctx.needs_input_grad[:2])
        narrow = weight.to(hidden.dtype)
        token_losses = torch.empty(len(terms), len(hidden), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for part in torch.arange(len(hidden)).split(chunk):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            logits, slope = _capped((hidden[rows] @ narrow.T).float(), softcap)
            gradients = []
            for place, term in enumerate(terms):
                spared = term.in_place and place < len(terms) - 1
                wants_grad = (wants_hidden or wants_weight) and bool(term.weight)
                loss, gradient = term.chunk(logits.clone() if spared else logits, rows, wants_grad)
                token_losses[place, rows] = loss * predicted[rows]
                if wants_grad:
                    gradients.append((term.weight, gradient))
            del logits, gradient  # memory that the next chunk takes
            if grad_hidden is None and grad_weight is None:
                continue
            error = _weighted_sum(gradients).mul_((predicted[rows] / count)[:, None])
            error = (error if slope is None else error.mul_(slope)).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(error, narrow, out=grad_hidden[rows])
            if grad_weight is not None:
                _accumulate_product(grad_weight, error.T, hidden[rows])
            del error, gradients
        ctx.grads = (grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(token_losses)
        means = [term.weight * token_losses[place].sum() / count for place, term in enumerate(terms)]
        return torch.stack(means).sum(), token_losses

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads
        scale = grads[0]
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale.to(grad_hidden.dtype))
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _capped(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """c tanh(logits / c) and its derivative; `logits` and None without a cap."""
    if cap is None:
        return logits, None
    ratio = logits.div_(cap).tanh_()
    return ratio * cap, 1 - ratio.square()


def _weighted_sum(gradients: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The sum of gradients times their weights, in the memory of the first."""
    (weight, total), *others = gradients
    if weight != 1:
        total.mul_(weight)
    for weight, gradient in others:
        total.add_(gradient, alpha=weight)
    return total


def _softmax_loss(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row and its probabilities, which take the logits' memory."""
    highest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(1, index) - highest
    weights = logits.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    loss = (total.log() - chosen).squeeze(1)
    return loss, weights.div_(total)


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in fp32 whatever the factors' type."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total.add_(left @ right)
