"""Which sample comes next: the mixture of domains as pure functions of (seed, sample number).

Global sample t draws its domain from the weights in force at t, with a random number that
depends on (seed, t) alone. The k-th draw of a domain reads the domain's sequences in the order
of a keyed permutation, one permutation a pass. So the stream is a function of the seed, the
sizes and the history of weights: every rank can compute any part of it, and to resume one needs
the history and one count a domain, never a list of what was used.

    t --Philox(seed)--> u in [0, 1) --weights at t--> domain d
    draws of d so far --> pass, position --permutation(seed, d, pass)--> sequence of d

Letters: N samples, D domains.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.config.key import SUM_TOLERANCE

EXHAUSTED_POLICIES = ("repeat", "stop", "renormalize")

_PHILOX_WORDS = 4  # 64-bit words that one Philox counter yields
_ROUNDS = 6  # of the Feistel network; four are enough for pseudo-randomness in theory
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STRIDE = np.uint64(0xD1342543DE82EF95)


def uniforms(seed: int, first: int, count: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) of samples first .. first + count - 1, shape [N].

    Each depends on the seed and on its own sample number only (Philox 4x64, counter-based).
    """
    block, skip = divmod(first, _PHILOX_WORDS)
    bits = np.random.Philox(key=seed, counter=block).random_raw(count + skip)[skip:]
    return (bits >> np.uint64(11)) * 2.0**-53


def draw_domains(weights: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Domain of each u [N] under `weights` [D] by inversion; a weight of 0 is never drawn."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges / edges[-1], u, side="right").astype(np.int64)


def occurrence(domain: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each element's domain stands before it in `domain` [N]."""
    order = np.argsort(domain, kind="stable")
    ordered = domain[order]
    result = np.empty_like(domain)
    result[order] = np.arange(domain.size) - np.searchsorted(ordered, ordered, side="left")
    return result


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: 64 bits in, 64 well-mixed bits out, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation_keys(seed: int, domain: NDArray[np.int64], pass_: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Key of the permutation of each (domain, pass), both [N] -> [N]."""
    key = _hash(np.full(domain.shape, seed, np.uint64) + _GOLDEN)
    key = _hash(key + domain.astype(np.uint64) * _GOLDEN)
    return _hash(key + pass_.astype(np.uint64) * _GOLDEN)


def permute(index: ArrayLike, size: ArrayLike, key: ArrayLike) -> NDArray[np.int64]:
    """Where the permutation of range(size) with this key sends each index; all of shape [N].

    A Feistel network over a grid of just over `size` cells is a bijection of the cells; those
    that land outside range(size) walk on until they land inside (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002), so nothing the size of the domain is ever stored.
    """
    x, bound, key_N = np.broadcast_arrays(*(np.asarray(a, np.uint64) for a in (index, size, key)))
    rows = np.ceil(np.sqrt(bound)).astype(np.uint64)
    columns = (bound + rows - np.uint64(1)) // rows
    x = _feistel(x, rows, columns, key_N)
    while (outside := np.flatnonzero(x >= bound)).size:
        x[outside] = _feistel(x[outside], rows[outside], columns[outside], key_N[outside])
    return x.astype(np.int64)


def _feistel(
    x: NDArray[np.uint64], rows: NDArray[np.uint64], columns: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A keyed bijection of range(rows * columns): in turn a row is shifted by its column and back."""
    row, column = np.divmod(x, columns)
    for round_ in range(_ROUNDS):
        key = key + _GOLDEN
        if round_ % 2 == 0:
            row = (row + _hash(key + column * _STRIDE) % rows) % rows
        else:
            column = (column + _hash(key + row * _STRIDE) % columns) % columns
    return row * columns + column


def normalized_weights(weights: Sequence[float], names: Sequence[str]) -> NDArray[np.float64]:
    """The weights [D] as float64 that sum to 1.

    Raises:
        ValueError: where there is not one weight per domain, where one is negative or not finite, and
            where they do not sum to 1 within SUM_TOLERANCE.
    """
    if len(weights) != len(names):
        raise ValueError(
            f"proportion has {len(weights)} values, set_names has {len(names)} ({', '.join(names)}): "
            "give one weight for each domain"
        )
    array = np.asarray(weights, np.float64)
    for name, weight in zip(names, array, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"proportion of domain {name} is {weight}: expected a number from 0 to 1")
    total = float(array.sum())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"proportion sums to {total:.6g}: expected 1; correct data_loading.proportion")
    return array / total


def check_exhausted(policy: str) -> None:
    """Raise ValueError for a policy that is not one of EXHAUSTED_POLICIES."""
    if policy not in EXHAUSTED_POLICIES:
        raise ValueError(f"exhausted is {policy!r}: expected one of {', '.join(EXHAUSTED_POLICIES)}")


class Cursor(NamedTuple):
    """A place in the stream."""

    sample: int
    """Number of the next sample, which is how many samples came before."""
    counts: NDArray[np.int64]
    """How many of those each domain gave, [D]."""


class Plan(NamedTuple):
    """A run of consecutive samples, each field [N]."""

    domain: NDArray[np.int64]
    """Which domain."""
    index: NDArray[np.int64]
    """Which of the domain's sequences."""
    pass_: NDArray[np.int64]
    """In which pass over the domain, from 0."""


class Mixture:
    """The stream of samples of D domains under weights that change.

    Args:
        names: the domains.
        sizes: how many sequences each has.
        weights: the weights of the first sample on.
        seed: of the draws and of the permutations, not negative.
        exhausted: what happens once every sequence of a domain was used: `repeat` reads it again
            in another order, `stop` ends the stream at the next draw of that domain,
            `renormalize` continues with the others' weights scaled to sum to 1.
        shuffle: False reads each domain in the order of its files, every pass the same.

    Raises:
        ValueError: for an empty domain, an unknown policy, and weights that `normalized_weights` rejects.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        exhausted: str = "repeat",
        shuffle: bool = True,
    ):
        check_exhausted(exhausted)
        if seed < 0:
            raise ValueError(f"shuffle_seed is {seed}: expected 0 or more")
        for name, size in zip(names, sizes, strict=True):
            if size < 1:
                raise ValueError(f"domain {name} has no sequences: prepare more of its text or take it out")
        self.names = list(names)
        self.sizes = np.asarray(sizes, np.int64)
        self.seed = seed
        self.exhausted = exhausted
        self.shuffle = shuffle
        # The weights from sample _since[i] on are _weights[i].
        self._since = [0]
        self._weights = [normalized_weights(weights, names)]

    @property
    def weights(self) -> list[float]:
        """The latest weights, [D]."""
        return self._weights[-1].tolist()

    @property
    def history(self) -> list[tuple[int, list[float]]]:
        """Every (first sample, weights) so far."""
        return [(since, w.tolist()) for since, w in zip(self._since, self._weights, strict=True)]

    def start(self) -> Cursor:
        """The beginning of the stream."""
        return Cursor(0, np.zeros(len(self.names), np.int64))

    def set_weights(self, sample: int, weights: Sequence[float]) -> None:
        """Put weights in force from this sample on, which must not lie before the last change."""
        checked = normalized_weights(weights, self.names)
        assert sample >= self._since[-1], "weights are changed in the order of the samples"
        if sample == self._since[-1]:
            self._weights[-1] = checked
        else:
            self._since.append(sample)
            self._weights.append(checked)

    def plan(self, cursor: Cursor, count: int) -> tuple[Plan, Cursor]:
        """The next `count` samples and the place behind them; fewer where the stream ends."""
        domain, ordinal, cursor = self._draw(cursor, count)
        size = self.sizes[domain]
        pass_, position = np.divmod(ordinal, size)
        if self.shuffle:
            position = permute(position, size, permutation_keys(self.seed, domain, pass_))
        return Plan(domain, position, pass_), cursor

    def advance(self, cursor: Cursor, sample: int) -> Cursor:
        """The place at this sample, reached from an earlier one."""
        assert sample >= cursor.sample, "a cursor moves forward"
        return self._draw(cursor, sample - cursor.sample)[2]

    def _draw(self, cursor: Cursor, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Cursor]:
        """Domains of the next samples, which draw of its domain each is, and the place behind them."""
        domains, ordinals = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while count > 0:
            domain, ordinal = self._draw_stretch(cursor, count)
            if domain.size == 0:
                break
            domains.append(domain)
            ordinals.append(ordinal)
            counts = cursor.counts + np.bincount(domain, minlength=len(self.names))
            cursor, count = Cursor(cursor.sample + domain.size, counts), count - domain.size
        return np.concatenate(domains), np.concatenate(ordinals), cursor

    def _draw_stretch(self, cursor: Cursor, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `_draw`, but stops where the weights change or a domain runs out."""
        era = bisect.bisect_right(self._since, cursor.sample) - 1
        weights = self._weights[era]
        if era + 1 < len(self._since):
            count = min(count, self._since[era + 1] - cursor.sample)
        if self.exhausted == "renormalize":
            weights = np.where(cursor.counts < self.sizes, weights, 0.0)
            if weights.sum() == 0:
                return np.zeros(0, np.int64), np.zeros(0, np.int64)
        domain = draw_domains(weights, uniforms(self.seed, cursor.sample, count))
        ordinal = cursor.counts[domain] + occurrence(domain)
        if self.exhausted == "stop":
            count = _first(ordinal >= self.sizes[domain])
        elif self.exhausted == "renormalize":
            count = _first(ordinal == self.sizes[domain] - 1) + 1
        return domain[:count], ordinal[:count]

    def state_dict(self, cursor: Cursor) -> dict[str, Any]:
        """What another process needs to resume from `cursor`; JSON-able, grows with the updates only."""
        return {
            "names": self.names,
            "sizes": self.sizes.tolist(),
            "seed": self.seed,
            "exhausted": self.exhausted,
            "shuffle": self.shuffle,
            "since": list(self._since),
            "weights": [w.tolist() for w in self._weights],
            "sample": cursor.sample,
            "counts": cursor.counts.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Cursor:
        """Take over the history of a checkpoint; returns the place where it was saved.

        Raises:
            ValueError: where the checkpoint belongs to a different stream (domains, sizes, seed or policy):
                resuming would silently repeat or skip samples.
        """
        mine = self.state_dict(self.start())
        for key, setting in _IDENTITY.items():
            if state[key] != mine[key]:
                raise ValueError(
                    f"the checkpoint's {key} of the training data is {state[key]}, this run's is "
                    f"{mine[key]}: restore {setting}, or start a new run from "
                    "its weights: load_weights_only=true."
                )
        self._since = list(state["since"])
        self._weights = [np.asarray(w, np.float64) for w in state["weights"]]
        return Cursor(state["sample"], np.asarray(state["counts"], np.int64))


_IDENTITY = {
    "names": "callbacks.data_loading.set_names",
    "sizes": "the data below data_local",
    "seed": "train_loader.dataset.shuffle_seed",
    "exhausted": "train_loader.dataset.exhausted",
    "shuffle": "train_loader.dataset.shuffle",
}


def _first(where: NDArray[np.bool_]) -> int:
    """Index of the first True, or the length if there is none."""
    return int(np.argmax(where)) if where.any() else where.size
