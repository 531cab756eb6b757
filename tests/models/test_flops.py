"""The number of operations of a step against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes import executed
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.counts import expected_flops, training_flops

SIZES = {"d_model": 64, "n_layers": 2, "intermediate_size": 96, "vocab_size": 101, "max_seq_len": 32}


MULTI, GROUPED, WIDE = {"n_heads": 4}, {"n_heads": 4, "n_kv_heads": 2}, {"n_heads": 2, "head_dim": 24}


@pytest.mark.parametrize("heads", [MULTI, GROUPED, WIDE])
def test_flops_per_batch_equals_a_count_of_matrix_products(heads):
    model = ComposerMosaicLlama({**SIZES, **heads, "attn_impl": "eager", "loss_chunk_tokens": 16})
    model.return_logits = False
    ids = torch.randint(0, 101, (3, 32))
    batch = {"input_ids": ids, "labels": ids}
    with FlopCounterMode(display=False) as counter:
        model.loss(model(batch), batch)["total"].backward()
    assert model.flops_per_batch(batch) == counter.get_total_flops()


@pytest.mark.parametrize("heads", [MULTI, GROUPED, WIDE])
def test_while_pruning_the_units_really_executed_count(heads, monkeypatch):
    monkeypatch.setattr(executed, "MULTIPLES", {})
    l0 = {"pruning_modules": ["head", "intermediate", "layer", "hidden"], "target_sparsity": 0.5}
    config = {**SIZES, **heads, "attn_impl": "eager", "loss_chunk_tokens": 16, "l0_module": l0}
    model = ComposerMosaicLlama(config)
    model.return_logits = False
    for mask in model.model.l0_module.masks.values():
        torch.nn.init.uniform_(mask.z_loga, -2, 2)
    model.model.l0_module.masks["layer"].z_loga.data.copy_(torch.tensor([4.6, -4.6]))
    ids = torch.randint(0, 101, (3, 32))
    batches = [{"input_ids": ids[:2], "labels": ids[:2]}, {"input_ids": ids[2:], "labels": ids[2:]}]
    for step in (1, 2):
        model.model.method.begin_step(step)
        with FlopCounterMode(display=False) as counter:
            for batch in batches:
                model.loss(model(batch), batch)["total"].backward()
        found = model.flops_per_batch({"input_ids": ids})
        # the gradients of gates, products with vectors, are not counted
        assert found == pytest.approx(counter.get_total_flops(), rel=1e-2)
        assert found < 0.8 * training_flops(model.model.arch, 3, 32)


def test_operations_in_expectation_are_those_of_the_units_left():
    source = Architecture(64, 8, 8, 8, 4, 96, 101, 32)
    target = source.resized(d_model=32, n_heads=2, n_kv_heads=2, n_layers=3, intermediate_size=24)
    shares = {"hidden": 1 / 2, "head": 1 / 4, "layer": 3 / 4, "intermediate": 1 / 4}
    assert expected_flops(source, shares, 2, 32) == pytest.approx(training_flops(target, 2, 32))
    assert expected_flops(source, {}, 2, 32) == training_flops(source, 2, 32)
    alone = expected_flops(source, {"intermediate": 1 / 4}, 2, 32)
    assert alone == pytest.approx(training_flops(source.resized(intermediate_size=24), 2, 32))
