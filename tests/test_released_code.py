"""Figures that the released code computed (`golden/released_code.json`), computed by ours."""

import json
from pathlib import Path

import pytest
import torch

from llmshearing.callbacks.dynamic_loading_callback import DynamicLoadingCallback
from llmshearing.models.l0_module import L0Module
from llmshearing.shapes.counts import prunable_parameters

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_code.json").read_text())
TOLERANCE = 1e-6
WARMUP = 640  # steps; the targets of step 160 are a quarter of the final ones


def close(expected):
    """Equal to `expected` within the tolerance, which is absolute: the figures are of the size of 1."""
    return pytest.approx(expected, rel=0, abs=TOLERANCE)


def fill(index: torch.Tensor, k: int) -> torch.Tensor:
    """log_alpha of the k-th module at flat indices: the file's `fill`."""
    return (4.0 * torch.sin(0.37 * index.double() + 1.3 * k) + 0.5).float()


def module_of(case: dict) -> L0Module:
    """The L0 module of a case, with the log_alphas and multipliers that the file gives it."""
    l0 = {
        "pruning_modules": case["modules"],
        "lagrangian_warmup_steps": f"{WARMUP}ba",
        "eval_target_model": case["eval_target_model"],
        "target_model": GOLDEN["target"] if case["use_target"] else None,
        "target_sparsity": 0.0 if case["use_target"] else case["target_sparsity"],
    }
    module = L0Module({**GOLDEN["base"], "l0_module": l0}, "cpu").eval()
    with torch.no_grad():
        for k, name in enumerate(case["modules"]):
            log_alpha = module.masks[name].z_loga
            log_alpha.copy_(fill(torch.arange(log_alpha.numel()), k).view_as(log_alpha))
        assert set(module.lambdas) == set(case["lambdas"])
        for name, value in case["lambdas"].items():
            module.lambdas[name].fill_(value)
    return module


def name_of(case: dict) -> str:
    return f"{'target' if case['use_target'] else 'sparsity'}-{'-'.join(case['modules'])}"


cases = pytest.mark.parametrize("case", GOLDEN["l0"], ids=name_of)


@cases
def test_prunable_parameters_and_overall_target(case):
    module = module_of(case)
    assert prunable_parameters(module.masks, module.arch) == case["prunable"]
    assert module.target_sparsity == close(case["target_sparsity"])


@cases
def test_lagrangian_and_its_values(case):
    module = module_of(case)
    for figures in case["lag"]:
        loss, values = module(calculate_lagrangian=True, pruned_steps=figures["step"])
        assert loss.item() == close(figures["loss"])
        assert {name: float(value) for name, value in values.items()} == close(figures["values"])


@cases
def test_deterministic_gates(case):
    gates = module_of(case)()
    assert gates.keys() == case["det_z"].keys()
    for name, figures in case["det_z"].items():
        gate = gates[name].detach()
        assert list(gate.shape) == figures["shape"], name
        assert (gate.flatten() == 0).nonzero().flatten().tolist() == figures["zero_index"], name
        assert torch.count_nonzero(gate) == figures["nonzero"], name
        # A sum of n gates in fp32 is off by as much as n of its gates' last bits.
        assert gate.double().sum().item() == pytest.approx(figures["sum"], rel=0, abs=1e-6), name


@pytest.mark.parametrize("case", GOLDEN["doremi"], ids=lambda case: case["update_type"])
def test_domain_weights(case):
    names = GOLDEN["set_names"]
    callback = DynamicLoadingCallback(case["target"], case["prop"], names, case["update_type"])
    assert callback.update_proportion(case["prop"], case["loss"]) == close(case["new"])
