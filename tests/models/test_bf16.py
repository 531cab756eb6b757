"""Masked training in bf16, as every recipe trains, against fp32: loss, gradients, types."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmshearing.config import L0Config, TargetConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from twins import SIZES, TWO_A_FAMILY, masked_model, tokens

# Every kind of mask that the family has.
TARGET = TargetConfig(d_model=8, n_heads=1, n_kv_heads=1, n_layers=1, intermediate_size=28)
STEPS = 12
# bf16 has 8 significant bits: one rounding is off by up to 2^-9 = 0.2 %. A gradient of these models lies
# behind some 50 roundings in a row, which add up like a random walk to sqrt(50) * 0.2 % = 1.4 %. Observed:
# up to 2.8 % of a gradient's norm, 2.2 % for masks (7.6 % for one of OLMo 2 on torch 2.14). A factor, cast or
# mask left out is off by far more.
# A loss is a mean over tokens, whose errors cancel: 0.05 % were observed.
GRADIENT, LOSS = 0.1, 1e-3


def step(model: ComposerMosaicLlama, number: int, bf16: bool) -> dict[str, Any]:
    """Forward and backward pass of a step over random tokens; its outputs."""
    model.model.l0_module.begin_step(number)
    model.zero_grad()
    torch.manual_seed(number)
    ids = tokens(24, rows=4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outputs = model({"input_ids": ids, "labels": ids})
    outputs["ce_loss"].backward()
    return outputs


def run(model: ComposerMosaicLlama, bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of some steps, each with its own masks, and the gradients of all of them by parameter."""
    losses, grads = [], {}
    for number in range(STEPS):
        losses.append(step(model, number, bf16)["ce_loss"].detach())
        for name, parameter in model.named_parameters():
            if "lambdas" not in name:
                # Gates that act on nothing in a step, in which every block is closed, have none.
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                assert grad.dtype == torch.float32, name
                grads.setdefault(name, []).append(grad.flatten().clone())
    return torch.stack(losses), {name: torch.cat(parts) for name, parts in grads.items()}


@pytest.mark.parametrize("name", TWO_A_FAMILY)
def test_loss_and_gradients_are_those_of_fp32(name):
    model = masked_model(name, L0Config(target_model=TARGET))
    for mask in model.model.l0_module.masks.values():
        torch.nn.init.uniform_(mask.z_loga, -2.0, 4.0)  # gates of all three sorts: 0, between, 1
    losses, grads = run(model, bf16=False)
    narrow_losses, narrow_grads = run(model, bf16=True)
    assert not torch.equal(losses, narrow_losses), "nothing ran in bf16"
    torch.testing.assert_close(narrow_losses, losses, rtol=LOSS, atol=0)
    typical = torch.stack([grad.norm() for grad in grads.values()]).median()
    for parameter, grad in grads.items():
        # Some are 0 but for rounding: a bias of k that is not rotated moves all scores of a query alike.
        size = grad.norm().clamp(min=typical / 10)
        assert (narrow_grads[parameter] - grad).norm() / size < GRADIENT, parameter


@pytest.mark.parametrize("name", TWO_A_FAMILY)
def test_masks_and_losses_stay_fp32_and_logits_are_bf16(name):
    outputs = step(masked_model(name, L0Config(target_model=TARGET)), 0, bf16=True)
    assert outputs["zs"]
    assert {gate.dtype for gate in outputs["zs"].values()} == {torch.float32}
    assert outputs["logits"].dtype == torch.bfloat16
    lagrangian, values = outputs["l0_output"]
    wide = [outputs["ce_loss"], outputs["token_loss"], lagrangian, *values.values()]
    assert {value.dtype for value in wide} == {torch.float32}
    assert outputs["logits"].shape == (4, 24, SIZES["vocab_size"])
