"""The number of operations of a step against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmshearing.models.composer_llama import ComposerMosaicLlama

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
