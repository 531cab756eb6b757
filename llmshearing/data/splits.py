"""Which documents go to evaluation, pruning and continued pre-training: pure functions.

A document's place is a keyed hash of its text, so exact copies of a text always land on the same
side, in whatever files they stand. The hash falls into one of BINS bins; each split owns a range
of bins, cut so that it holds as many tokens as it was given.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("eval", "for_prune", "for_ft")
BINS = 2**16
EVAL_SHARE = 0.1  # of a small domain's tokens that evaluation may take


def document_bin(text: bytes, seed: int) -> int:
    """The bin of a document, 0 to BINS - 1, from its bytes and the seed alone."""
    digest = hashlib.blake2b(text, digest_size=2, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class SplitPlan:
    """What one split takes of one domain."""

    first_bin: int
    """Documents from this bin on,"""
    end_bin: int
    """up to before this one."""
    max_sequences: int | None
    """No more than this many sequences; None: all."""


def plan_budgets(
    tokens: Mapping[str, int],
    eval_tokens: int,
    prune_tokens: int,
    ft_tokens: int | None,
    proportion: Mapping[str, float] | None = None,
) -> tuple[dict[str, dict[str, int | None]], list[str]]:
    """Tokens of every domain for every split, and a warning wherever a domain has fewer than asked for.

    Args:
        tokens: how many each domain has.
        eval_tokens: for evaluation, of each domain; at most EVAL_SHARE of what it has.
        prune_tokens: for pruning, of all domains together.
        ft_tokens: for continued pre-training, of all domains together; None: all that is left
            (None in the result).
        proportion: share of each domain in the two; None: by what each has.

    Where a domain cannot fill both, `for_prune` and `for_ft` share what it has in the ratio asked
    for, half and half if `for_ft` gets the rest. A split with a budget of 0 is omitted.
    """
    total = sum(tokens.values())
    budgets: dict[str, dict[str, int | None]] = {}
    warnings: list[str] = []
    for domain, has in tokens.items():
        share = proportion[domain] if proportion is not None else has / total
        evaluation = min(eval_tokens, int(has * EVAL_SHARE))
        if evaluation < eval_tokens:
            warnings.append(
                f"domain {domain}: eval gets {evaluation:,} tokens, not {eval_tokens:,}: no more than "
                f"{EVAL_SHARE:.0%} of the {has:,} that there are"
            )
        left = has - evaluation
        prune = round(prune_tokens * share)
        further = None if ft_tokens is None else round(ft_tokens * share)
        fair = left * (0.5 if further is None else prune / max(prune + further, 1))
        if prune + (further or 0) > left or (further is None and prune > fair):
            warnings.append(
                f"domain {domain}: for_prune gets {int(fair):,} tokens, not {prune:,}: "
                f"{left:,} are there for it and for_ft" + ("" if further is None else f" ({further:,})")
            )
            prune = int(fair)
            further = None if further is None else left - prune
        asked = {"eval": eval_tokens, "for_prune": prune_tokens, "for_ft": ft_tokens}
        given = {"eval": evaluation, "for_prune": prune, "for_ft": further}
        budgets[domain] = {split: given[split] for split in SPLITS if asked[split] != 0}
    return budgets, warnings


def cut_bins(
    histogram: NDArray[np.int64], budgets: Mapping[str, int | None], seq_length: int
) -> dict[str, SplitPlan]:
    """Ranges of bins that hold each split's tokens, one after the other.

    Args:
        histogram: tokens in each bin, [BINS].
        budgets: tokens of each split in the order of SPLITS; None: the rest.
        seq_length: tokens of a sequence.
    """
    filled = np.cumsum(histogram)
    plans: dict[str, SplitPlan] = {}
    first, before = 0, 0
    for split, budget in budgets.items():
        end = BINS if budget is None else min(int(np.searchsorted(filled, before + budget)) + 1, BINS)
        limit = None if budget is None else budget // seq_length
        plans[split] = SplitPlan(first, end, limit)
        first, before = end, int(filled[end - 1])
    return plans
