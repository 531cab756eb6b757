"""The L0 module: shapes, the Lagrangian by hand, noise keys, the original's names."""

from dataclasses import replace

import pytest
import torch

from llmshearing.config import as_model_config
from llmshearing.pruning import hard_concrete as hc
from llmshearing.pruning import l0 as l0_module
from llmshearing.pruning.l0 import L0Module
from llmshearing.pruning.lagrangian import scheduled_target
from llmshearing.pruning.score_file import Origin, Scores, fingerprint, shape_of, write_scores
from llmshearing.pruning.scores import random as random_scores
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.model_section import architecture_of
from llmshearing.shapes.units import rows

TARGET = {"d_model": 32, "n_heads": 2, "n_layers": 2, "intermediate_size": 48, "vocab_size": 50}


def config(target=TARGET, **l0):
    sizes = {"d_model": 64, "n_heads": 4, "n_layers": 3, "intermediate_size": 96, "vocab_size": 50}
    l0_module = {"lagrangian_warmup_steps": "10ba", "target_model": target, **l0}
    return {**sizes, "max_seq_len": 32, "l0_module": l0_module}


def module(**kwargs):
    torch.manual_seed(0)
    return L0Module(config(**kwargs), "cpu")


def randomize(l0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for mask in l0.masks.values():
        mask.z_loga.data.uniform_(-4, 4, generator=generator)
    for multiplier in l0.lambdas.values():
        multiplier.data.uniform_(-1, 1, generator=generator)


def test_state_dict_has_the_names_and_shapes_of_the_original():
    shapes = {name: tuple(value.shape) for name, value in module().state_dict().items()}
    expected = {"masks.head.z_loga": (3, 4), "masks.intermediate.z_loga": (3, 96), "masks.layer.z_loga": (3,)}
    expected["masks.hidden.z_loga"] = (64,)
    for suffix in ("", "_head", "_intermediate", "_layer", "_hidden"):
        expected |= {f"lambdas.lambda_{i}{suffix}": () for i in (1, 2)}
    assert shapes == expected


def test_masks_start_open_at_the_limit():
    l0 = module()
    for mask in l0.masks.values():
        assert mask.z_loga.max() <= hc.LOG_ALPHA_LIMIT + 1e-6
        assert mask.z_loga.mean() > 4.5


def test_shapes_handed_to_the_model():
    l0 = module()
    shapes = {name: tuple(z.shape) for name, z in l0().items()}
    assert shapes == {
        "head_z": (3, 1, 4, 1),
        "intermediate_z": (3, 1, 1, 96),
        "head_layer_z": (3,),
        "mlp_z": (3,),
        "hidden_z": (64,),
    }


@pytest.mark.parametrize("step", [0, 3, 10, 25])
def test_lagrangian_with_a_target_equals_the_formula(step):
    l0 = module()
    randomize(l0)
    loss, values = l0(calculate_lagrangian=True, pruned_steps=step)
    expected = 0.0
    for name, target in {"head": 0.5, "intermediate": 0.5, "layer": 1 / 3, "hidden": 0.5}.items():
        now = target * min(1.0, step / 10)
        sparsity = 1 - hc.keep_probability(l0.masks[name].z_loga).mean(-1)
        first, second = l0.lambdas[f"lambda_1_{name}"], l0.lambdas[f"lambda_2_{name}"]
        expected += (first * (sparsity - now) + second * (sparsity - now) ** 2).mean()
        assert values[f"target_{name}_sparsity"].item() == pytest.approx(now)
        assert values[f"expected_{name}_sparsity"].item() == pytest.approx(sparsity.mean().item(), rel=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_targets_rise_from_their_start_and_stay():
    targets = [scheduled_target(step, 10, 0.2, 0.6) for step in (0, 5, 10, 25)]
    assert targets == pytest.approx([0.2, 0.4, 0.6, 0.6])
    assert scheduled_target(0, 0, 0.2, 0.6) == pytest.approx(0.6)


def test_lagrangian_without_a_target_constrains_the_whole_model():
    l0 = module(target=None, target_sparsity=0.4, pruning_modules=["head", "intermediate", "layer", "hidden"])
    randomize(l0)
    assert set(l0.lambdas) == {"lambda_1", "lambda_2"}
    loss, values = l0(calculate_lagrangian=True, pruned_steps=100)
    p = {name: hc.keep_probability(mask.z_loga) for name, mask in l0.masks.items()}
    heads = (p["layer"][:, None] * p["head"]).sum() * 4 * 64 * 16
    width = (p["layer"][:, None] * p["intermediate"]).sum() * 3 * 64
    left = (heads + width) * p["hidden"].mean() / (3 * (4 * 64 * 64 + 3 * 64 * 96))
    excess = (1 - left) - 0.4
    assert values["expected_sparsity"].item() == pytest.approx((1 - left).item(), rel=1e-5)
    assert loss.item() == pytest.approx(
        (l0.lambdas["lambda_1"] * excess + l0.lambdas["lambda_2"] * excess**2).item()
    )


def test_overall_target_is_that_of_the_target_model():
    full, small = 3 * (4 * 64 * 64 + 3 * 64 * 96), 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert module().target_sparsity == pytest.approx(1 - small / full)


def test_multipliers_ascend_and_masks_descend_under_one_optimizer():
    l0 = module()
    optimizer = torch.optim.SGD(l0.parameters(), lr=1.0)
    l0(calculate_lagrangian=True, pruned_steps=100)[0].backward()
    optimizer.step()
    for name in l0.masks:
        assert l0.lambdas[f"lambda_1_{name}"] < 0, "sparsity below its target must lower lambda_1"
        assert l0.lambdas[f"lambda_2_{name}"] > 0, "lambda_2 never falls"


def test_after_step_keeps_log_alpha_within_its_limit():
    l0 = module()
    l0.masks["head"].z_loga.data.fill_(9.0)
    l0.after_step()
    assert l0.masks["head"].z_loga.max().item() == pytest.approx(hc.LOG_ALPHA_LIMIT)


def test_evaluation_takes_the_target_shape_or_the_expected_one():
    for to_target in (True, False):
        l0 = module(eval_target_model=to_target).eval()
        randomize(l0)
        zeros = (l0()["head_z"].flatten(1) == 0).sum(1)
        expected = torch.full((3,), 2) if to_target else hc.expected_zeros(l0.masks["head"].z_loga)
        assert zeros.tolist() == expected.tolist()


def test_noise_is_keyed_by_step_microbatch_and_seed_not_by_global_state():
    l0 = module()
    l0.begin_step(5)
    first, second = l0()["hidden_z"], l0()["hidden_z"]
    torch.manual_seed(123)
    torch.rand(7)
    l0.begin_step(5)
    assert torch.equal(l0()["hidden_z"], first)
    assert torch.equal(l0()["hidden_z"], second)
    assert not torch.equal(first, second)
    l0.begin_step(6)
    assert not torch.equal(l0()["hidden_z"], first)
    l0.seed = 1
    l0.begin_step(5)
    assert not torch.equal(l0()["hidden_z"], first)


def test_shared_noise_is_one_draw_a_step():
    l0 = module(noise="shared")
    l0.begin_step(2)
    assert torch.equal(l0()["hidden_z"], l0()["hidden_z"])


@pytest.mark.parametrize(("noise", "same"), [("per_rank", False), ("shared", True)])
def test_each_rank_draws_its_own_noise_unless_it_is_shared(monkeypatch, noise, same):
    l0 = module(noise=noise)
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(l0_module, "_rank", lambda rank=rank: rank)
        l0.begin_step(2)
        drawn.append(l0()["hidden_z"])
    assert torch.equal(*drawn) == same


def test_masks_stay_fp32_under_autocast():
    l0 = module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(z.dtype == torch.float32 for z in l0().values())
        assert l0(calculate_lagrangian=True)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("l0", "message"),
    [
        ({"target_model": {**TARGET, "d_model": 128}}, "d_model is 128, more than the source's 64"),
        (
            {"pruning_modules": ["head", "intermediate", "layer"]},
            "add hidden to model.l0_module.pruning_modules",
        ),
        ({"pruning_modules": ["head", "head_layer", "mlp", "intermediate", "hidden"]}, "half a layer"),
        ({"pruning_modules": ["haed"]}, "did you mean head"),
        ({"pruning_modules": ["qk_head_dim"]}, "not supported"),
        ({"pruning_modules": ["layer", "mlp", "head", "hidden", "intermediate"]}, "keep layer"),
        ({"target_model": {**TARGET, "vocab_size": 40}}, "a vocabulary is not pruned"),
        ({"target_model": {}}, "nothing would be pruned"),
        ({"target_model": None}, "neither target_model nor pruning_modules: nothing would be pruned"),
        ({"pruning_modules": []}, "add head to model.l0_module.pruning_modules"),
        ({"pruning_modules": ["head", "head", "intermediate", "layer", "hidden"]}, "names a mask twice"),
        ({"pruning_modules": ["kv_head", "head", "intermediate", "layer", "hidden"]}, "use head"),
        ({"target_modle": None}, "did you mean"),
    ],
)
def test_impossible_targets_are_rejected_with_the_key_to_change(l0, message):
    cfg = config()
    cfg["l0_module"] |= l0
    with pytest.raises(ValueError, match=message):
        L0Module(cfg, "cpu")


# ------------------------------------------------------------ start by importance


def scores_file(path, source, seed=0, weights=None):
    scores = random_scores(source, seed)
    write_scores(path, Scores(scores, Origin("random", shape_of(source), fingerprint(weights or {}), {})))
    return scores


@pytest.mark.parametrize("constraint", ["lagrangian", "projection"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_masks_start_in_the_order_of_scores_and_all_but_open(tmp_path, kv_heads, constraint):
    cfg = config({**TARGET, "n_kv_heads": kv_heads // 2}, init=str(tmp_path / "s"), constraint=constraint)
    cfg["n_kv_heads"] = kv_heads
    scores = scores_file(tmp_path / "s", architecture_of(as_model_config(cfg)))
    l0 = L0Module(cfg)
    for kind, mask in l0.masks.items():
        by_row, score = (rows(kind, values, l0.arch) for values in (mask.z_loga, scores[kind]))
        assert torch.equal(by_row.argsort(-1), score.argsort(-1))
        assert by_row.max() == hc.LOG_ALPHA_LIMIT
        assert hc.keep_probability(mask.z_loga).min() > 0.98
    before = {kind: mask.z_loga.clone() for kind, mask in l0.masks.items()}
    l0.after_step()  # as before the first step of a run
    assert all(torch.equal(mask.z_loga, before[kind]) for kind, mask in l0.masks.items())


@pytest.mark.parametrize("target", [{}, {"intermediate_size": 399}, None])
def test_masks_in_order_are_projected_on_schedule_and_keep_their_order_from_the_start(tmp_path, target):
    kinds = ["head", "kv_head", "intermediate", "layer", "hidden"]
    if target is not None:
        target = {**TARGET, "n_heads": 1, "n_kv_heads": 1, **target}
    cfg = config(target, init=str(tmp_path / "s"), constraint="projection", pruning_modules=kinds)
    cfg["l0_module"] |= {"lagrangian_warmup_steps": "1000ba", "target_sparsity": 0.4}
    cfg |= {"n_kv_heads": 2, "intermediate_size": 400}
    scores = scores_file(tmp_path / "s", architecture_of(as_model_config(cfg)))
    l0 = L0Module(cfg)
    for step in [*range(6), 900, 1000]:  # at first the schedule asks for less than is closed at the start
        l0.done = step
        l0.after_step()
        values = l0.lagrangian(step)[1]
        for name in [""] if target is None else [f"{kind}_" for kind in kinds]:
            expected, scheduled = (values[f"{what}_{name}sparsity"].item() for what in ("expected", "target"))
            assert expected == pytest.approx(scheduled, abs=1e-5), (step, name)
        for kind in kinds if step < 900 else []:
            by_row, score = (rows(kind, x, l0.arch) for x in (l0.masks[kind].z_loga, scores[kind]))
            rising = by_row.gather(-1, score.argsort(-1)).diff(dim=-1)
            opens = target is not None and l0.kind_target(kind) < 0.005  # less than is closed at the start
            assert (rising >= 0 if opens else rising > 0).all(), (step, kind)
    for kind in kinds if target is not None else []:
        assert values[f"target_{kind}_sparsity"].item() == pytest.approx(l0.kind_target(kind), abs=1e-6)


def test_scores_of_another_model_are_problems_and_an_export_needs_none(tmp_path):
    cfg = as_model_config(config(init=str(tmp_path / "s")))
    source = architecture_of(cfg)
    assert L0Module.aim(cfg, source).problems == [
        f"model.l0_module.init: {tmp_path / 's'} not found; expected a file of scores, as `llmshearing "
        "oneshot ... --scores FILE` writes."
    ]
    weights = {f"{PREFIX}wte.weight": torch.ones(3)}
    scores_file(tmp_path / "s", source, weights=weights)
    assert not L0Module.aim(cfg, source).problems
    assert (
        "a different shape: d_model 64 (the model has 72)"
        in L0Module.aim(replace(cfg, d_model=72), source.resized(d_model=72)).problems[0]
    )
    assert not L0Module.source_problems(cfg, weights, "model")
    (problem,) = L0Module.source_problems(cfg, {f"{PREFIX}wte.weight": torch.zeros(3)}, "model")
    assert "were made from other weights than those of model" in problem
    modules = ["head_layer", "head", "intermediate", "hidden"]
    cfg.l0_module = replace(cfg.l0_module, pruning_modules=modules, target_model=None, target_sparsity=0.5)
    assert "has no scores of head_layer" in L0Module.aim(cfg, source).problems[0]
    cfg = as_model_config(config(init=str(tmp_path / "s")))
    trained = L0Module(cfg)
    (tmp_path / "s").unlink()
    restored = L0Module.restored(trained.state_dict(), cfg, None, "m.pt")
    assert torch.equal(restored.masks["head"].z_loga, trained.masks["head"].z_loga)
