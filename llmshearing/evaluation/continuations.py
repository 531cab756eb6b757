"""Several continuations of one context, which is computed once: the choices of a question.

lm-eval computes context and choice together for each choice. With four choices after a long context that is
four times the work; the numbers are the same to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch

WORTHWHILE = 24  # tokens of a context; shorter ones are as fast in large batches


@torch.no_grad()
def log_likelihoods(
    model: Any, context: Sequence[int], choices: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """For each choice: the sum of its tokens' log probabilities after `context`, and whether it is greedy.

    Args:
        model: a causal model of transformers.
        context: at least one token.
        choices: at least one token each.
    """
    device, count = model.device, len(choices)
    out = model(input_ids=torch.tensor([context], device=device), use_cache=True, logits_to_keep=1)
    first = out.logits[0, -1:].float().log_softmax(-1)  # [1, V]
    longest = max(map(len, choices)) - 1
    rest = first.new_zeros(count, 0, first.shape[-1])
    if longest:
        # Padded on the right with token 0: what follows a token does not change it.
        ids = torch.zeros(count, longest, dtype=torch.long, device=device)
        for row, choice in zip(ids, choices, strict=True):
            row[: len(choice) - 1] = torch.tensor(choice[:-1], device=device)
        out.past_key_values.batch_repeat_interleave(count)
        rest = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True).logits
        rest = rest.float().log_softmax(-1)
    found = []
    for row, choice in zip(rest, choices, strict=True):
        logs = torch.cat([first, row[: len(choice) - 1]])
        tokens = torch.tensor(choice, device=device)
        greedy = bool((logs.argmax(-1) == tokens).all())
        found.append((float(logs.gather(1, tokens[:, None]).sum()), greedy))
    return found
