"""One pass over calibration samples that collects what scores need.

Statistics are sums over samples, so that they do not depend on how the samples are divided into batches;
beside the model they take one number a unit and, for gradients, one weight at a time.

N samples, B batch, S sequence, L layers, D hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from llmshearing.models.decoder import Decoder
from llmshearing.progress import bar
from llmshearing.pruning.scores import LAYER, UnitSums, mean_activations, turned, with_dependants
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.units import GATES, KINDS, Gates, gate_around, is_in_layer, weight_table

TOKENS = 8192
"""Tokens of a batch."""


def batches(samples_NS: Tensor, tokens: int = TOKENS) -> Iterator[Tensor]:
    """Samples in batches [B, S] of about so many tokens."""
    size = max(1, tokens // samples_NS.shape[1])
    return iter(bar("calibrating", samples_NS.split(size), unit="batch"))


@torch.no_grad()
def activation_scores(decoder: Decoder, samples_NS: Tensor) -> dict[str, Tensor]:
    """Scores by activations (Minitron, arXiv 2407.14679 section 2), by kind.

    The activation of a unit is what the weights that read it get as input: a head's output, an MLP's inner
    activation, the output of the norms. Its score is the mean of its absolute value over the sequence, then
    the L2 norm over all samples; for hidden dimensions the sum of that over all norms. A layer's score is
    1 - cos(input, output), the mean over tokens.

    Args:
        decoder: without masks, in evaluation mode.
        samples_NS: token ids.
    """
    arch = decoder.arch
    places = _readers(arch)
    squares: dict[tuple[str, int | None], Tensor] = {}

    def see(place: tuple[str, int | None], each: int, x: Tensor) -> None:
        found = mean_activations(x, each).square().sum(0)
        squares[place] = squares[place] + found if place in squares else found

    handles = []
    for layer, block in enumerate(decoder.transformer["blocks"]):  # type: ignore[arg-type]
        for part, (_, each) in places.items():
            watch = partial(see, (part, layer), each)
            handles.append(block.get_submodule(part).register_forward_pre_hook(_input(watch)))
    watch = partial(see, ("ln_f", None), 1)
    handles.append(decoder.transformer["ln_f"].register_forward_hook(_output(watch)))
    try:
        with _turning(decoder) as turns:
            for ids_BS in batches(samples_NS):
                decoder.hidden_states(ids_BS.to(turns.device), Gates())
    finally:
        for handle in handles:
            handle.remove()
    scores = {
        kind: torch.zeros(KINDS[kind].shape(arch)) for kind in {"hidden", *(k for k, _ in places.values())}
    }
    for (part, layer), total in squares.items():
        kind = places[part][0] if layer is not None else "hidden"
        (scores[kind][layer] if GATES[kind].per_layer else scores[kind]).add_(total.sqrt().cpu())
    return with_dependants(scores, arch) | {LAYER: _importance(turns, samples_NS)}


def taylor_scores(decoder: Decoder, samples_NS: Tensor) -> dict[str, Tensor]:
    """Scores by |weight x gradient|, summed over all that is removed with a unit, by kind.

    The gradient is that of the loss of one sample; scores are means over samples. A gradient is used as soon
    as it is there, weight by weight, and dropped. A layer's score is that of `activation_scores`.

    Args:
        decoder: without masks, in evaluation mode.
        samples_NS: token ids.
    """
    device = next(decoder.parameters()).device
    sums = UnitSums(decoder.arch, device)

    def use(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad, None
        sums.add(name, gradient.float().mul_(weight.detach()).abs_())  # in the gradient's memory

    handles = []
    for name, weight in decoder.transformer.named_parameters():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(partial(use, name)))
    try:
        with _turning(decoder) as turns:
            for ids_BS in batches(samples_NS, tokens=1):
                ids_BS = ids_BS.to(device)
                decoder(ids_BS, labels=ids_BS, logits=False)["ce_loss"].backward()
    finally:
        for handle in handles:
            handle.remove()
    scores = {kind: (total / len(samples_NS)).cpu() for kind, total in sums.scores().items()}
    return scores | {LAYER: _importance(turns, samples_NS)}


@contextmanager
def _turning(decoder: Decoder) -> Iterator[Tensor]:
    """Sums of `turned` over the tokens that pass each layer meanwhile, [L] in fp64."""
    blocks = list(decoder.transformer["blocks"])  # type: ignore[arg-type]
    turns = torch.zeros(len(blocks), dtype=torch.float64, device=next(decoder.parameters()).device)

    def see(layer: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        turns[layer] += turned(inputs[0].detach(), output.detach())

    handles = [block.register_forward_hook(partial(see, layer)) for layer, block in enumerate(blocks)]
    try:
        yield turns
    finally:
        for handle in handles:
            handle.remove()


def _importance(turns: Tensor, samples_NS: Tensor) -> Tensor:
    return (turns / samples_NS.numel()).float().cpu()


def _readers(arch: Architecture) -> dict[str, tuple[str, int]]:
    """The first weight that reads each input of a block: the kind of the units it reads, channels of each."""
    found: dict[tuple[str | None, str], tuple[str, int]] = {}
    for part, weight in weight_table(arch).items():
        columns = weight.columns
        if is_in_layer(part) and columns is not None and columns.owner is not None:
            found.setdefault((gate_around(part), columns.owner), (part, columns.each))
    return {part: (kind, each) for (_, kind), (part, each) in found.items()}


def _input(see: Callable[[Tensor], None]) -> Callable[..., None]:
    return lambda module, inputs: see(inputs[0])


def _output(see: Callable[[Tensor], None]) -> Callable[..., None]:
    return lambda module, inputs, output: see(output)
