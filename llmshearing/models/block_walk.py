"""One-shot N:M sparsity over a decoder: block after block, each calibrated on what the pruned ones before it
give it, or all of them on the dense model.

N samples, B batch, S sequence, D hidden, O outputs and I inputs of a weight.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmshearing.models.calibration import TOKENS
from llmshearing.models.decoder import Decoder
from llmshearing.progress import bar
from llmshearing.pruning.nm_scores import INPUTS, MOMENTS, NORMS, inverse_factor, prune
from llmshearing.pruning.patterns import Pattern
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.units import Gates, gate_around, is_in_layer, weight_table


class _EndOfPass(Exception):
    """Ends a forward pass at its first block."""


@torch.no_grad()
def sparse_weights(
    decoder: Decoder,
    weights: Mapping[str, Tensor],
    samples_NS: Tensor,
    method: str,
    pattern: Pattern,
    update: bool = False,
    dense_inputs: bool = False,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Prune every linear layer inside the blocks: (weight, mask) by the names of `weights`, on the CPU.

    A block is calibrated as a whole, then its weights are pruned, then it runs again and gives its outputs to
    the next one, as Wanda and SparseGPT do; with `dense_inputs` it gives the dense ones, so that all blocks
    see the dense model, as MaskLLM's priors do.

    Args:
        decoder: in evaluation mode; its weights are replaced by the pruned ones.
        weights: the same weights by our names, as exact as they are.
        samples_NS: token ids.

    Raises:
        ValueError: when a block's inputs are not finite.
    """
    device = next(decoder.parameters()).device
    groups = reading_together(decoder.arch)
    size = max(1, TOKENS // samples_NS.shape[1])
    blocks: Any = decoder.transformer["blocks"]
    streams, rest = _first_inputs(decoder, [ids.to(device) for ids in samples_NS.split(size)])
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for layer, block in enumerate(bar("pruning", blocks, unit="block")):
        run = partial(_run, block, rest[layer])
        with _collecting(block, [parts[0] for parts in groups], INPUTS[method]) as sums:
            outputs = [run(x_BSD) for x_BSD in streams]
        for parts in groups:
            total = sums[parts[0]]
            if isinstance(total, Tensor) and not total.isfinite().all():
                raise ValueError(
                    f"Layer {layer}, {parts[0]}: its inputs on the calibration data are NaN, infinite or too "
                    "large to compute with, so no weight is more important than another."
                )
            if INPUTS[method] == MOMENTS:
                assert total is not None
                try:
                    total = inverse_factor(total * (2 / len(samples_NS)))
                except ValueError as error:
                    raise ValueError(f"Layer {layer}, {parts[0]}: {error}.") from error
            for part in parts:
                name = f"{PREFIX}blocks.{layer}.{part}.weight"
                source = weights[name].to(device)
                weight, mask = prune(source, method, pattern, total, update)
                block.get_submodule(part).weight.copy_(weight)
                found[name] = (weight.cpu(), mask.cpu())
        streams = outputs if dense_inputs else [run(x_BSD) for x_BSD in streams]
    return found


def reading_together(arch: Architecture) -> list[list[str]]:
    """The linear layers inside a block, in groups that read the same input."""
    found: dict[tuple[str | None, str | None], list[str]] = {}
    for part, weight in weight_table(arch).items():
        if is_in_layer(part) and weight.columns is not None:
            found.setdefault((gate_around(part), weight.columns.owner), []).append(part)
    return list(found.values())


def _first_inputs(decoder: Decoder, batches: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The residual stream before the first block, [B, S, D] a batch; and what each block gets beside it."""
    blocks: Any = decoder.transformer["blocks"]
    streams: list[Tensor] = []
    rest: list[Any] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rest.append((inputs[1:], named))

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        streams.append(inputs[0])
        raise _EndOfPass

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    decoder.hidden_states(batches[0][:1], Gates())
    for handle in handles:
        handle.remove()
    handle = blocks[0].register_forward_pre_hook(stop)
    for ids_BS in batches:
        try:
            decoder.hidden_states(ids_BS, Gates())
        except _EndOfPass:
            continue
    handle.remove()
    return streams, rest


def _run(block: nn.Module, rest: tuple[tuple[Any, ...], dict[str, Any]], x_BSD: Tensor) -> Tensor:
    return block(x_BSD, *rest[0], **rest[1])


@contextmanager
def _collecting(block: nn.Module, parts: list[str], what: str | None) -> Iterator[dict[str, Any]]:
    """Sums over the tokens that pass meanwhile, in fp32: of squares [I] or of products [I, I] of inputs."""
    sums: dict[str, Any] = dict.fromkeys(parts)

    def see(part: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        new = x.square().sum(0) if what == NORMS else x.T @ x
        sums[part] = new if sums[part] is None else sums[part].add_(new)

    watched: list[Callable[..., None]] = [partial(see, part) for part in parts] if what else []
    handles = [
        block.get_submodule(part).register_forward_pre_hook(watch)
        for part, watch in zip(parts, watched, strict=False)
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
