"""One-shot masks over a decoder: which inputs each block is calibrated on, against transformers."""

import pytest
import torch

from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.config import ModelConfig
from llmshearing.models.block_walk import reading_together, sparse_weights
from llmshearing.models.decoder import Decoder
from llmshearing.pruning import nm_scores
from llmshearing.pruning.patterns import Pattern, kept_counts
from llmshearing.shapes.key_map import renamed_to_hf, to_composer, to_hf
from llmshearing.shapes.model_section import complete
from twins import BY_FAMILY, CONFIGS, make, tokens

TWO_FOUR = Pattern(2, 4)


def twin(name):
    """A model by transformers, our decoder with its weights, and the weights by our names."""
    theirs = make(CONFIGS[name])
    weights, arch = from_hf(HFModel("twin", CONFIGS[name].to_dict(), dict(theirs.state_dict()), {}))
    weights = {key: weight.detach().clone() for key, weight in weights.items()}
    decoder = Decoder(complete(ModelConfig(), arch, name)).eval()
    decoder.load_state_dict({key.removeprefix("model."): weight for key, weight in weights.items()})
    return theirs, decoder, weights


def their_inputs(theirs, name, ids):
    """What a linear layer of theirs reads for `ids`, [N, I] in fp64."""
    seen = []
    module = theirs.get_submodule(name)
    handle = module.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        theirs(ids)
    handle.remove()
    return torch.cat(seen)


def replace(theirs, weights):
    """Put weights by HF names into a model."""
    with torch.no_grad():
        for name, weight in weights.items():
            theirs.get_parameter(name).copy_(weight)


@pytest.mark.parametrize("dense_inputs", [False, True], ids=["pruned inputs", "dense inputs"])
@pytest.mark.parametrize("name", [names[0] for names in BY_FAMILY.values()] + ["llama grouped", "llama tied"])
def test_wanda_reads_what_the_model_of_transformers_reads(name, dense_inputs) -> None:
    theirs, decoder, weights = twin(name)
    samples = tokens(16, rows=6)
    found = sparse_weights(decoder, weights, samples, "wanda", TWO_FOUR, dense_inputs=dense_inputs)
    arch = decoder.arch
    names = [name for name in theirs.state_dict() if name.endswith(".weight")]
    places = {ours: name for name in names for ours in to_composer(name, arch.family)}
    for layer in range(arch.n_layers):
        pruned = {}
        for key, (weight, mask) in found.items():
            if f"blocks.{layer}." in key:
                module = places[key].removesuffix(".weight")
                norms = their_inputs(theirs, module, samples).square().sum(0)
                assert torch.equal(mask, nm_scores.prune(weights[key], "wanda", TWO_FOUR, norms)[1]), key
                assert torch.equal(weight, weights[key].masked_fill(~mask, 0))
                pruned[key] = weight
        if not dense_inputs:
            replace(theirs, renamed_to_hf(pruned, arch))


@pytest.mark.parametrize("update", [False, True])
def test_sparsegpt_of_every_layer_is_that_of_its_inputs(update) -> None:
    theirs, decoder, weights = twin("llama grouped")
    samples = tokens(16, rows=8)
    found = sparse_weights(decoder, weights, samples, "sparsegpt", TWO_FOUR, update=update)
    for layer in range(2):
        own = {name: pair for name, pair in found.items() if f"blocks.{layer}." in name}
        for name, (weight, mask) in own.items():
            x = their_inputs(theirs, to_hf(name, "llama").removesuffix(".weight"), samples)
            factor = nm_scores.inverse_factor(2 * x.T @ x / len(samples))
            expected = nm_scores.prune(weights[name], "sparsegpt", TWO_FOUR, factor, update)
            assert torch.equal(mask, expected[1])
            assert torch.allclose(weight, expected[0], atol=1e-4)
        replace(theirs, {to_hf(name, "llama"): weight for name, (weight, _) in own.items()})


def test_every_weight_has_a_mask_and_the_decoder_computes_with_it() -> None:
    _, decoder, weights = twin("llama grouped")
    found = sparse_weights(decoder, weights, tokens(16, rows=2), "sparsegpt", Pattern(1, 4), update=True)
    assert len(found) == 2 * 7
    state = decoder.state_dict()
    for name, (weight, mask) in found.items():
        assert (kept_counts(mask, Pattern(1, 4)) == 1).all()
        assert torch.equal(state[name.removeprefix("model.")], weight)


def test_inputs_are_shared_by_the_weights_that_read_them() -> None:
    _, decoder, _ = twin("llama")
    assert reading_together(decoder.arch) == [
        ["attn.wq", "attn.wk", "attn.wv"],
        ["attn.out_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
