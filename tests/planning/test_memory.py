"""The plan's memory beside the peak of a real process."""

from pathlib import Path

import pytest
import torch

from benchmarks.common import BODY_25M, hf_model
from benchmarks.memory import measured
from llmshearing.planning import estimates
from llmshearing.planning.activations import saved_bytes
from llmshearing.planning.prepared import Prepared
from llmshearing.pruning import Aim
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import KINDS
from runs import run_config

VOCABULARY, SEQUENCES, LENGTH = 16_000, 4, 512
BODY = BODY_25M | {"n_layers": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pruning", "dense"])
def test_the_estimate_is_near_the_peak_of_real_steps(kind: str) -> None:
    """13 million parameters without embeddings, fp32 on CPU; the peak counts what comes after the imports."""
    config = run_config(Path("nowhere"), prune=kind == "pruning")
    config.max_seq_len = config.model.max_seq_len = LENGTH
    config.model.vocab_size = VOCABULARY
    for name, size in BODY.items():
        setattr(config.model, name, size)
    config.global_train_batch_size = config.device_train_microbatch_size = SEQUENCES
    kinds = list(KINDS) if kind == "pruning" else []
    prepared = Prepared(config, source=architecture_of(config.model), aim=Aim(kinds=kinds))
    estimate = estimates.memory(prepared, devices=1).total(checkpointing=False)
    assert estimate == pytest.approx(measured(kind, VOCABULARY, BODY, LENGTH), rel=0.15)


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_keeps_no_more_than_transformers_for_its_backward_pass(masked: bool) -> None:
    sizes = {"d_model": 64, "n_heads": 4, "n_layers": 1, "intermediate_size": 176}
    tokens, kept = 128, {}
    hf = hf_model(sizes, 128, tokens)
    own = {parameter.untyped_storage().data_ptr() for parameter in hf.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(4, tokens, 64, requires_grad=True)
    rope = hf.model.rotary_emb(x, torch.arange(tokens)[None])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hf.model.layers[0](x, position_embeddings=rope)
    theirs = sum(storage.nbytes() for storage in kept.values())
    arch = Architecture(64, 4, 4, 16, 1, 176, 128, tokens)
    ours = saved_bytes(arch, torch.float32, torch.float32, masked)
    assert ours.of(4 * tokens) <= 1.01 * theirs
    assert ours.fixed < 64 * 64 * 4  # no weight times its masks
