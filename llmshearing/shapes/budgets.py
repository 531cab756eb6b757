"""Shapes near a budget of parameters, memory or speed: pure arithmetic over the table of units.

D hidden, H query heads, K KV heads, E head dim, F intermediate, L layers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import embedding_parameters, parameters, training_flops
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from llmshearing.shapes.units import is_grouped, needed_kinds

BYTES = 2  # of a weight, and of a number in the KV cache: bf16
NEAR = 0.05  # how far from its budget a shape still counts as near
_NARROWEST, _SHALLOWEST = 0.25, 0.5  # parts of the source's width and depth that are looked at
_DEPTHS = 8  # numbers of layers that are looked at
_LEANING = 4 / 3  # how much more one width may shrink than another
_ROUNDING = 1e-9  # of computing with that factor


@dataclass(frozen=True)
class Use:
    """How a model will be used: `batch` texts at a time, each of `context` tokens."""

    context: int
    batch: int = 1


def cache_bytes(arch: Architecture, use: Use) -> int:
    """Bytes of the KV cache: keys and values of every layer and KV head, for every token that is seen."""
    seen = min(use.context, arch.sliding_window or use.context)
    return 2 * BYTES * arch.n_layers * arch.n_kv_heads * arch.head_dim * seen * use.batch


def memory_bytes(arch: Architecture, use: Use) -> int:
    """Bytes of weights and KV cache."""
    return BYTES * parameters(arch) + cache_bytes(arch, use)


def step_bytes(arch: Architecture, use: Use) -> int:
    """Bytes read for one more token of each text: every weight but the embedding's rows, and the KV cache.

    Generation is as fast as memory delivers these bytes, as long as the batch is small.
    """
    looked_up = 0 if arch.tie_embeddings else embedding_parameters(arch) // 2
    return BYTES * (parameters(arch) - looked_up) + cache_bytes(arch, use)


def reading_flops(arch: Architecture, use: Use) -> float:
    """Operations to read the texts before the first new token: a third of those of a training step."""
    return training_flops(arch, use.batch, use.context) / 3


Cost = Callable[[Architecture], float]
"""What a budget limits; grows linearly with F."""


@dataclass(frozen=True)
class Budget:
    """A limit to a cost.

    Attributes:
        cost: of an architecture.
        limit: what it should come near to.
        strict: whether every cost up to the limit meets it, as of memory and of the bytes that a speed
            leaves; otherwise those near to it do, on both sides.
    """

    cost: Cost
    limit: float
    strict: bool = True

    def off(self, arch: Architecture) -> float:
        """How far an architecture is from the limit, relative to it."""
        return abs(self.cost(arch) / self.limit - 1)

    def met(self, arch: Architecture) -> bool:
        """Whether an architecture keeps to the limit."""
        return self.cost(arch) <= self.limit if self.strict else self.off(arch) <= NEAR


def shapes_near(source: Architecture, budget: Budget, multiple: int) -> list[Architecture]:
    """Shapes that meet a budget: for each number of layers the one whose widths shrink most alike.

    Those near to it or, where none is, the nearest. Each is homogeneous and reachable by pruning, its D and F
    are those of the source or multiples of `multiple`, and transformers 4 and 5 load it. The deepest come
    first.
    """
    best: dict[int, tuple[float, Architecture]] = {}
    for shape in _candidates(source, budget, multiple):
        if shape == source or not budget.met(shape):
            continue
        rank = _leaning(source, shape) + budget.off(shape)
        if shape.n_layers not in best or rank < best[shape.n_layers][0]:
            best[shape.n_layers] = (rank, shape)
    found = [best[layers][1] for layers in sorted(best, reverse=True)]
    return [shape for shape in found if budget.off(shape) <= NEAR] or sorted(found, key=budget.off)[:1]


def nearest_shape(source: Architecture, budget: Budget, multiple: int) -> Architecture:
    """The shape nearest to a budget that none meets; the source itself where no smaller one is nearer."""
    return min([source, *_candidates(source, budget, multiple)], key=budget.off)


def _candidates(source: Architecture, budget: Budget, multiple: int) -> Iterator[Architecture]:
    """Shapes near the budget, of which no width shrinks much more than another."""
    for n_layers in _depths(source.n_layers):
        for n_heads, n_kv_heads in _heads(source):
            for d_model in _multiples(source.d_model, multiple):
                shape = source.resized(
                    n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_model=d_model
                )
                if _width_ratio(source, shape) > math.log(_LEANING) or not _loads(source, shape):
                    continue
                if (size := _solved(source, shape, budget, multiple)) is not None:
                    yield shape.resized(intermediate_size=size)


def _solved(source: Architecture, shape: Architecture, budget: Budget, multiple: int) -> int | None:
    """The F with which `shape` comes nearest to the budget and that shrinks about as D and H do, if any.

    Found on the line through two points.
    """
    shrunk = shape.d_model / source.d_model, shape.n_heads / source.n_heads
    fewest = math.ceil(max(shrunk) / _LEANING * source.intermediate_size / multiple - _ROUNDING)
    most = math.floor(min(shrunk) * _LEANING * source.intermediate_size / multiple + _ROUNDING)
    one, two = (budget.cost(shape.resized(intermediate_size=i * multiple)) for i in (1, 2))
    wanted = 1 + (budget.limit - one) / (two - one)
    count = max(fewest, min(most, math.floor(wanted) if budget.strict else round(wanted)))
    if count > most or count < 1:
        return None
    return min(count * multiple, source.intermediate_size)


def _leaning(source: Architecture, shape: Architecture) -> float:
    """How differently D, H and F shrink: the largest difference of the logarithms of their ratios."""
    names = ("d_model", "n_heads", "intermediate_size")
    ratios = [math.log(getattr(shape, name) / getattr(source, name)) for name in names]
    return max(ratios) - min(ratios)


def _width_ratio(source: Architecture, shape: Architecture) -> float:
    return abs(math.log(shape.d_model * source.n_heads / (source.d_model * shape.n_heads)))


def _loads(source: Architecture, shape: Architecture) -> bool:
    """Whether pruning reaches a shape, and transformers 4 and 5 load it."""
    kinds = needed_kinds(source, shape)
    return not (kinds and pruning_problems(source, shape, kinds, "")) and not export_warnings(shape)


def _depths(layers: int) -> list[int]:
    fewest = max(1, math.ceil(layers * _SHALLOWEST))
    step = max(1, (layers - fewest) // (_DEPTHS - 1))
    return list(range(layers, fewest - 1, -step))


def _heads(source: Architecture) -> Iterator[tuple[int, int]]:
    """Query and KV heads: fewer KV heads, or fewer query heads for each."""
    fewest = max(1, math.ceil(source.n_kv_heads * _NARROWEST))
    groups = range(1, source.group_size + 1) if is_grouped(source) else [1]
    for n_kv_heads in range(fewest, source.n_kv_heads + 1):
        for group in groups:
            yield n_kv_heads * group, n_kv_heads


def _multiples(size: int, multiple: int) -> list[int]:
    """Multiples from a quarter of `size` on, and `size` itself."""
    fewest = max(1, math.ceil(size * _NARROWEST / multiple))
    return [*(i * multiple for i in range(fewest, math.ceil(size / multiple))), size]
