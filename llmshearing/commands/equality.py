"""Whether two models compute the same: logits compared one by one, in fp32."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.checkpoints.weights import section_of
from llmshearing.config.keys import ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.families import complete
from llmshearing.shapes.units import Gates, to_z

TOLERANCE = 2e-3  # largest difference of a logit between two fp32 models of real size


@dataclass(frozen=True)
class Difference:
    """Of all logits over sequences of `length` tokens: the largest difference and the largest logit."""

    length: int
    largest: float
    scale: float


def load_ours(checkpoint: Checkpoint) -> ComposerMosaicLlama:
    """The model in a checkpoint without its masks, in fp32 and for evaluation."""
    cfg = complete(ModelConfig(init_device="meta"), describe(checkpoint)[0], str(checkpoint.path))
    model = ComposerMosaicLlama(cfg)
    weights = {n: w.float() for n, w in checkpoint.weights.items() if section_of(n) is None}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_theirs(path: str | Path) -> PreTrainedModel:
    """An HF model by `transformers`, in fp32 and for evaluation; GGUF files too."""
    place = Path(path)
    if place.suffix == ".gguf":
        options = {"pretrained_model_name_or_path": place.parent, "gguf_file": place.name}
    else:
        options = {"pretrained_model_name_or_path": path}
    return AutoModelForCausalLM.from_pretrained(**options).float().eval()


@torch.no_grad()
def differences(
    ours: ComposerMosaicLlama,
    theirs: PreTrainedModel,
    lengths: Iterable[int],
    gates: Gates | None = None,
    seed: int = 0,
) -> list[Difference]:
    """Compare the logits of ours, under `gates`, with those of theirs on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(0, ours.model.arch.vocab_size, (1, length), generator=generator)
        a, b = ours({"input_ids": ids, **to_z(gates or Gates())})["logits"], theirs(ids).logits
        found.append(Difference(length, float((a - b).abs().max()), float(b.abs().max())))
    return found


def lengths_up_to(limit: int) -> list[int]:
    """Three lengths to compare on: short, middling, and the limit or 512, whichever is less."""
    longest = min(limit, 512)
    return sorted({min(8, longest), (longest + 1) // 2, longest})


def conclude(found: Iterable[Difference]) -> None:
    """Print differences, and refuse those over the tolerance.

    Raises:
        ValueError: when the models are not equal, so that a command fails.
    """
    found = list(found)
    for row in found:
        cli.say(
            f"{row.length:>6} tokens: logits of up to {row.scale:.3f} differ by {row.largest:.2e} at most"
        )
    worst = max(row.largest for row in found)
    if not worst <= TOLERANCE:
        raise ValueError(f"The models are not equal: logits differ by {worst:.2e}, more than {TOLERANCE:g}.")
    cli.say("equal")
