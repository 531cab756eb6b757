"""Statistics of a pass against definitions written out, however the samples are divided into batches."""

import pytest
import torch

from llmshearing.models import calibration
from llmshearing.models.calibration import activation_scores, taylor_scores
from llmshearing.pruning.scores import UnitSums, kinds_of
from llmshearing.shapes.units import KINDS, Gates
from twins import TWO_A_FAMILY, plain_model, tokens


def decoder_of(name):
    return plain_model(name).model.eval()


@pytest.mark.parametrize("name", TWO_A_FAMILY)
@pytest.mark.parametrize("compute", [activation_scores, taylor_scores])
def test_scores_have_their_shapes_do_not_depend_on_batches_and_leave_no_trace(name, compute, monkeypatch):
    decoder, ids = decoder_of(name), tokens(16, rows=5)
    scores = compute(decoder, ids)
    shapes = {kind: KINDS[kind].shape(decoder.arch) for kind in kinds_of(decoder.arch)}
    assert {kind: tuple(values.shape) for kind, values in scores.items()} == shapes
    assert all(bool((values > 0).all()) for values in scores.values())
    monkeypatch.setattr(calibration, "TOKENS", 32)
    again = compute(decoder, ids[[3, 1, 0, 2, 4]])
    for kind, values in scores.items():
        torch.testing.assert_close(again[kind], values, rtol=1e-4, atol=1e-7)
    assert all(weight.grad is None for weight in decoder.parameters())
    hooks = [module for module in decoder.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks
    assert not any(weight._post_accumulate_grad_hooks for weight in decoder.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "llama grouped", "gpt_neox"])
def test_activations_are_minitrons(name):
    decoder, ids = decoder_of(name), tokens(16, rows=5)
    arch, seen = decoder.arch, {}
    blocks = decoder.transformer["blocks"]
    named = {"down": "mlp.down_proj", "out": "attn.out_proj", "ln_1": "ln_1", "ln_2": "ln_2"}
    for layer, block in enumerate(blocks):
        for key, part in named.items():
            module = block.get_submodule(part)
            hook = lambda m, x, y, key=key, layer=layer: seen.update({(key, layer): (x[0], y)})  # noqa: E731
            module.register_forward_hook(hook)
        block.register_forward_hook(lambda m, x, y, layer=layer: seen.update({("block", layer): (x[0], y)}))
    last = decoder.hidden_states(ids, Gates())
    found = activation_scores(decoder, ids)

    def norm(x_BS_):
        return x_BS_.mean(1).square().sum(0).sqrt()

    hidden = norm(last.abs())
    for layer in range(arch.n_layers):
        torch.testing.assert_close(found["intermediate"][layer], norm(seen["down", layer][0].abs()))
        heads = norm(seen["out", layer][0].unflatten(-1, (arch.n_heads, -1)).norm(dim=-1))
        torch.testing.assert_close(found["head"][layer], heads)
        if "kv_head" in found:
            torch.testing.assert_close(found["kv_head"][layer], heads.view(arch.n_kv_heads, -1).sum(1))
        hidden = hidden + norm(seen["ln_1", layer][1].abs()) + norm(seen["ln_2", layer][1].abs())
        cosine = torch.cosine_similarity(*seen["block", layer], dim=-1).mean()
        torch.testing.assert_close(found["layer"][layer], 1 - cosine, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["hidden"], hidden)


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt_neox"])
def test_taylor_is_weight_times_gradient_of_each_sample(name):
    decoder, ids = decoder_of(name), tokens(16, rows=3)
    found = taylor_scores(decoder, ids)
    sums = UnitSums(decoder.arch)
    for row in ids:
        decoder(row[None], labels=row[None])["ce_loss"].backward()
        for weight_name, weight in decoder.transformer.named_parameters():
            sums.add(weight_name, (weight.detach() * weight.grad).abs() / len(ids))
            weight.grad = None
    for kind, values in sums.scores().items():
        if kind != "layer":
            torch.testing.assert_close(found[kind], values)
