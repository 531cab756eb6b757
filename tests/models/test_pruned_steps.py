"""The step in a batch, at which the original takes the targets of the constraint."""

from typing import Any

import pytest
import torch

from llmshearing.config import as_model_config
from llmshearing.models.composer_llama import ComposerMosaicLlama
from runs import SEQ_LEN, SIZES, TARGET, VOCABULARY

STEP, WARMUP, SEQUENCES = 3, 8, 4


@pytest.fixture(scope="module")
def model() -> ComposerMosaicLlama:
    l0 = {"lagrangian_warmup_steps": f"{WARMUP}ba", "target_model": dict(TARGET)}
    model = ComposerMosaicLlama(as_model_config({**SIZES, "max_seq_len": SEQ_LEN, "l0_module": l0}))
    with torch.no_grad():
        for multiplier in model.model.l0_module.lambdas.values():
            multiplier.fill_(0.3)
    return model


def batch(**steps: Any) -> dict[str, Any]:
    ids = torch.arange(SEQUENCES * SEQ_LEN).view(SEQUENCES, SEQ_LEN) % VOCABULARY
    return {"input_ids": ids, "labels": ids, **steps}


@pytest.mark.parametrize(
    "steps",
    [STEP, torch.tensor(STEP), torch.full((SEQUENCES,), STEP), torch.full((1,), STEP)],
    ids=["number", "scalar", "one a sequence", "one sequence"],
)
def test_targets_are_those_of_the_step_in_the_batch(model, steps):
    loss, values = model(batch(pruned_steps=steps))["l0_output"]
    final = 1 - TARGET["d_model"] / SIZES["d_model"]
    assert values["target_hidden_sparsity"].item() == pytest.approx(final * STEP / WARMUP)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(model.model.l0_module.lagrangian(STEP)[0].item())
    assert loss.item() != pytest.approx(model.model.l0_module.lagrangian(0)[0].item())


def test_targets_are_those_of_the_step_last_set_when_the_batch_has_none(model):
    model.model.l0_module.begin_step(STEP)
    loss, _ = model(batch())["l0_output"]
    model.model.l0_module.begin_step(0)
    assert loss.item() == pytest.approx(model.model.l0_module.lagrangian(STEP)[0].item())
