"""Next-token cross entropy without the logits of a whole batch.

N tokens, D hidden, V vocabulary.
"""

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


@torch.compiler.disable  # matrix products in a loop, which a compiler would only unroll
def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of softmax(hidden @ weight^T) against targets.

    Logits exist for a chunk of tokens at a time, in fp32, once: where gradients are wanted they are made
    in the same pass, so that the head costs no more than its three matrix products.

    Args:
        targets_N: token ids, `IGNORE_INDEX` where there is nothing to predict.
        chunk_tokens: tokens a chunk; default: about 64 MiB of logits.

    Returns:
        the mean over predicted tokens (differentiable) and the loss of every token [N] (not), 0 where
        there is nothing to predict; both fp32.
    """
    chunk = chunk_tokens or chunk_size(weight_VD.shape[0])
    if torch.is_autocast_enabled(hidden_ND.device.type):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, chunk)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int):
        predicted = targets != IGNORE_INDEX
        count = predicted.sum().clamp(min=1)
        wants_grad = any(ctx.needs_input_grad[:2])
        narrow = weight.to(hidden.dtype)
        token_loss = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_grad else None
        for part in torch.arange(len(targets)).split(chunk):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            index = targets[rows].clamp(min=0)[:, None]
            loss, probabilities = _softmax_loss((hidden[rows] @ narrow.T).float(), index)
            token_loss[rows] = loss * predicted[rows]
            if grad_hidden is not None and grad_weight is not None:
                probabilities.scatter_add_(1, index, probabilities.new_full((), -1.0).expand_as(index))
                error = probabilities.mul_((predicted[rows] / count)[:, None]).to(hidden.dtype)
                torch.mm(error, narrow, out=grad_hidden[rows])
                _accumulate_product(grad_weight, error.T, hidden[rows])
        ctx.grads = (grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(token_loss)
        return token_loss.sum() / count, token_loss

    @staticmethod
    def backward(ctx, *grads: Tensor):
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads
        scale = grads[0]
        grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden.mul_(scale.to(grad_hidden.dtype)), grad_weight, None, None


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
