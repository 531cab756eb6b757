"""The constraint as a projection: on target after every step, in one go, within the limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_l0 import TARGET, config, randomize

from llmshearing.pruning import hard_concrete as hc
from llmshearing.pruning.l0 import L0Module
from llmshearing.pruning.projection import project_rows, sparsity_range
from llmshearing.shapes.units import rows

LEAST, MOST = sparsity_range()


def module(**l0):
    torch.manual_seed(0)
    return L0Module(config(constraint="projection", **l0), "cpu")


def sparsity(log_alpha):
    return 1 - hc.keep_probability(log_alpha).mean(-1)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    target=st.floats(0, 1),
    spread=st.sampled_from([0.0, 0.1, 3.0, 8.0]),
    seed=st.integers(0, 2**16),
)
def test_rows_reach_the_target_in_order_and_stay_there(shape, target, spread, seed):
    before = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    after = project_rows(before, target)
    reachable = min(max(target, LEAST), MOST)
    torch.testing.assert_close(sparsity(after), torch.full(shape[:1], reachable), atol=1e-5, rtol=0)
    assert after.abs().max() <= hc.LOG_ALPHA_LIMIT + 1e-6
    order = before.argsort(-1)
    assert (after.gather(-1, order).diff(dim=-1) >= 0).all(), "order is kept"
    inside = after.abs() < hc.LOG_ALPHA_LIMIT - 1e-4
    shift = (after - before)[inside]
    if len(shift) and shape[0] == 1:
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-4, rtol=0)
    assert torch.equal(project_rows(after, target), after), "a second time changes nothing, to the bit"


@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_is_on_schedule_after_each_step(grouped):
    sizes = {"n_kv_heads": 2} if grouped else {}
    target = {**TARGET, **sizes}
    cfg = config(target=target, constraint="projection")
    l0 = L0Module({**cfg, **sizes}, "cpu")
    optimizer = torch.optim.AdamW(l0.parameter_groups(_Settings)[0]["params"], lr=1.0)
    for step in range(14):
        l0.begin_step(step)
        for kind, gate in l0.sample().items():
            scheduled = min(l0._scheduled(step, kind), MOST)
            by_row = sparsity(rows(kind, l0.masks[kind].z_loga.detach(), l0.arch))
            torch.testing.assert_close(by_row, torch.full_like(by_row, scheduled), atol=1e-4, rtol=0)
            (gate * torch.linspace(-1, 1, gate.shape[-1])).sum().backward()
        loss, values = l0.term()
        assert loss is None
        assert not any(name.startswith("lambda") for name in values)
        for kind in l0.masks:
            expected, logged = (values[f"{what}_{kind}_sparsity"].item() for what in ("expected", "target"))
            assert expected == pytest.approx(logged, abs=1e-4)
            assert logged == pytest.approx(max(LEAST, min(1, step / 10) * l0.kind_target(kind)), abs=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        l0.done = step + 1
        l0.after_step()
    assert all(kind.reached for kind in l0.convergence().values())


class _Settings:
    lag_lr = 1.0


def test_before_the_first_step_nothing_that_was_projected_moves():
    l0 = module()
    randomize(l0)
    l0.done = 7
    l0.after_step()
    before = {name: value.clone() for name, value in l0.state_dict().items()}
    l0.after_step()  # as a resumed run does
    assert all(torch.equal(value, before[name]) for name, value in l0.state_dict().items())


def test_without_a_target_model_one_shift_meets_the_overall_target():
    kinds = ["head", "intermediate", "layer", "hidden"]
    l0 = module(target=None, target_sparsity=0.4, pruning_modules=kinds)
    randomize(l0)
    before = {kind: l0.masks[kind].z_loga.detach().clone() for kind in kinds}
    fresh = module(target=None, target_sparsity=0.4, pruning_modules=kinds).lagrangian(0)[1]
    assert fresh["target_sparsity"].item() > LEAST, "the nearest to 0 that log-alphas allow"
    assert fresh["expected_sparsity"].item() == pytest.approx(fresh["target_sparsity"].item(), abs=1e-4)
    l0.done = 5  # of 10 steps of warm-up
    l0.after_step()
    values = l0.lagrangian(5)[1]
    assert values["target_sparsity"].item() == pytest.approx(0.2)
    assert values["expected_sparsity"].item() == pytest.approx(0.2, abs=1e-4)
    shifts = [(l0.masks[kind].z_loga - before[kind]).flatten() for kind in kinds]
    inside = [l0.masks[kind].z_loga.flatten().abs() < hc.LOG_ALPHA_LIMIT - 1e-4 for kind in kinds]
    moved = torch.cat([shift[keep] for shift, keep in zip(shifts, inside, strict=True)])
    assert moved.std() < 1e-5


def test_checkpoints_of_both_constraints_have_the_same_tensors():
    projected, pushed = module().state_dict(), L0Module(config(), "cpu").state_dict()
    assert {n: v.shape for n, v in projected.items()} == {n: v.shape for n, v in pushed.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": {**TARGET, "d_model": 2}},
            r"of mask hidden is 0\.9688, but .* at most 0\.9529 .* prune in",
        ),
        ({"target": {**TARGET, "intermediate_size": 1}}, "raise that size of model.l0_module.target_model"),
        (
            {"target": None, "target_sparsity": 0.96, "pruning_modules": ["intermediate"]},
            "of the whole model is 0.9600, but .* lower model.l0_module.target_sparsity",
        ),
    ],
)
def test_a_target_beyond_the_limits_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        module(**changes)


def test_multipliers_take_such_a_target_with_a_warning():
    from llmshearing.config import as_model_config
    from llmshearing.shapes.model_section import architecture_of

    cfg = as_model_config(config(target={**TARGET, "d_model": 2}))
    aim = L0Module.aim(cfg, architecture_of(cfg))
    assert not aim.problems
    assert any("at most 0.9529 is expected to close" in warning for warning in aim.warnings)


def test_one_unit_of_few_can_be_the_target():
    l0 = module(target={**TARGET, "n_heads": 1, "n_layers": 1})
    l0.done = 10
    l0.after_step()
    assert l0.convergence()["head"].reached
    assert (l0.eval()()["head_z"].flatten(1) != 0).sum(1).tolist() == [1, 1, 1]
