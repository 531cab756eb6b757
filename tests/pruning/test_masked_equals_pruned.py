"""The masked model and the model that pruning exports, reloaded by transformers, compute the same."""

import tempfile
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_models import VOCABULARY, architectures, random_gates
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmshearing.commands.convert import export
from llmshearing.config import ModelConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning.cut import cut
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.families import hf_class_name
from llmshearing.shapes.hf_config import architecture_to_hf
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import KINDS, to_z

TOLERANCE = 1e-4


@torch.no_grad()
def largest_difference(arch: Architecture, kinds: list[str], closed: float, even: bool, seed: int) -> float:
    """Between logits of the masked model and of the exported one, at the size of the logits' spread."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = ComposerMosaicLlama(complete(ModelConfig(), arch, "test")).eval()
    for name, parameter in model.named_parameters():
        scales = "norm" in name or ("ln_" in name and "weight" in name)
        parameter.normal_(
            1.0 - arch.norm_offset if scales else 0.0, 0.2
        )  # a norm that doubles doubles rounding
    gates = random_gates(arch, kinds, closed, even, generator)
    ids = torch.randint(0, VOCABULARY, (2, 17), generator=generator)
    masked = model({"input_ids": ids, **to_z(gates)})["logits"]
    weights, smaller = cut(model.state_dict(), gates, arch)
    assume(is_loaded_by_transformers(smaller))
    with tempfile.TemporaryDirectory() as folder:
        config = architecture_to_hf(smaller)
        export(weights, smaller, config, {}, Path(folder) / "hf")
        exported = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "hf", attn_implementation="eager"
        ).eval()
    assert type(exported).__name__ == hf_class_name(arch.family)
    return (exported(ids).logits - masked).abs().max().item()


def is_loaded_by_transformers(arch: Architecture) -> bool:
    """Whether the installed version does: 5 rejects a LLaMA whose width is no multiple of its heads."""
    try:
        CONFIG_MAPPING[arch.family](**architecture_to_hf(arch))
    except StrictDataclassError:
        return False
    return True


MASKS = {
    "kinds": st.lists(st.sampled_from(sorted(KINDS)), min_size=2, unique=True),
    "closed": st.sampled_from([0.0, 0.3, 0.6]),
    "even": st.booleans(),
    "seed": st.integers(0, 2**16),
}
CASES = {"arch": architectures(), **MASKS}
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
LATER = ("smollm3", "olmo2", "olmo3", "phi3", "granite", "granitemoehybrid", "gemma2", "gemma3_text")


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(**CASES)
def test_masked_equals_exported(arch, kinds, closed, even, seed):
    assert largest_difference(arch, kinds, closed, even, seed) <= TOLERANCE


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=QUIET)
@given(**CASES)
def test_masked_equals_exported_on_many(arch, kinds, closed, even, seed):
    assert largest_difference(arch, kinds, closed, even, seed) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", LATER)
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(data=st.data(), **MASKS)
def test_masked_equals_exported_in_every_later_family(family, data, kinds, closed, even, seed):
    arch = data.draw(architectures(family))
    assert largest_difference(arch, kinds, closed, even, seed) <= TOLERANCE
