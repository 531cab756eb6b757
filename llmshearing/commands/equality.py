"""Whether two models compute the same: logits compared one by one, in fp32."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing import cli
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import Checkpoint
from llmshearing.checkpoints.weights import section_of
from llmshearing.config import ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.model_section import complete
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
    """An HF model by `transformers`, in fp32 and for evaluation; GGUF files too.

    Nothing of it comes through the code that converts. What `transformers` leaves out of a GGUF file, the
    rotary scaling, is put in from the file by the format's own definition.

    Raises:
        ValueError: when a parameter of the model is not among the weights.
    """
    place = Path(path)
    if place.suffix == ".gguf":
        options = {"pretrained_model_name_or_path": place.parent, "gguf_file": place.name}
    else:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "quantization_config"):  # left over, or the conversion would have failed
            delattr(config, "quantization_config")
        options = {"pretrained_model_name_or_path": path, "config": config}
    load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know of the second result
    # By the definition: other implementations of attention leave soft caps out.
    options |= {"attn_implementation": "eager", "trust_remote_code": False}
    model, loading = load(**options, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(
            f"transformers finds no {sorted(loading['missing_keys'])[0]} in {path} and fills it with random "
            "numbers: there is nothing to compare with."
        )
    if place.suffix == ".gguf":
        _scale_rotary(model, place)
    return torch.nn.Module.float(model).eval()  # transformers' own rejects what came from a GGUF file  # type: ignore[return-value]


def _scale_rotary(model: Any, path: Path) -> None:
    """Give a model the rotary frequencies that a GGUF file defines.

    As the format has it: `rope_freqs.weight` divides the frequencies one by one; linear scaling divides all
    by the factor; YaRN (arXiv 2309.00071) divides the slow ones and multiplies cos and sin by
    1 + 0.1 ln(factor).
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    name = reader.fields["general.architecture"].contents()

    def value(key: str, default: Any) -> Any:
        field = reader.fields.get(f"{name}.{key}")
        return default if field is None else field.contents()

    rotary = model.model.rotary_emb
    size, base = 2 * len(rotary.inv_freq), value("rope.freq_base", 10000.0)
    pairs = torch.arange(size // 2, dtype=torch.float64)
    frequencies = plain = base ** (-2 * pairs / size)
    scale = 1.0
    factor = value("rope.scaling.factor", value("rope.scale_linear", 0.0)) or 1.0
    kind = value("rope.scaling.type", "linear")
    if kind == "linear":
        frequencies = frequencies / factor
    elif kind == "yarn":
        length = value("rope.scaling.original_context_length", value("context_length", 0))
        bounds = []
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            turns = value(f"rope.scaling.yarn_{key}", default)
            bounds.append(size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)))
        low, high = max(0, math.floor(bounds[0])), min(size - 1, math.ceil(bounds[1]))
        slow = ((pairs - low) / max(1e-3, high - low)).clamp(0, 1)
        frequencies = frequencies * (1 - slow) + frequencies / factor * slow
        scale = value("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * math.log(factor))
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            frequencies = frequencies / torch.tensor(tensor.data.astype(float))
    if not torch.equal(frequencies, plain):
        rotary.inv_freq = frequencies.float()
        rotary.attention_scaling = scale


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
    """Print differences, and report those above the tolerance as an error.

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
