"""Pruning makes exactly the target, keeps what masks open, and says how converged they were."""

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from command_line import status_of
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.hf_files import HFModel, from_hf
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands import prune as prune_command
from llmshearing.commands.prune import prune_and_save_model, prune_checkpoint
from llmshearing.pruning.cut import cut
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.utils import post_pruning_processing, test_pruning
from twins import CONFIGS, TWO_A_FAMILY, make, masked_checkpoint, shares_kv_heads

PREFIX = "model.transformer."


def twin(name="llama grouped"):
    return from_hf(HFModel("twin", CONFIGS[name].to_dict(), dict(make(CONFIGS[name]).state_dict()), {}))


def sizes(arch):
    return arch.d_model, arch.n_heads, arch.n_kv_heads, arch.n_layers, arch.intermediate_size


# --------------------------------------------------------------- the pure core


def test_open_masks_change_nothing():
    weights, arch = twin()
    pruned, smaller = cut(weights, {}, arch)
    assert smaller == arch
    assert all(torch.equal(pruned[name], weights[name]) for name in weights)


def test_what_stays_are_the_weights_times_their_masks():
    weights, arch = twin()
    hidden, inner = torch.rand(32) + 0.5, torch.rand(2, 56) + 0.5
    hidden[5:9], inner[0, 10:20], inner[1, 30:40] = 0, 0, 0
    pruned, smaller = cut(weights, {"hidden": hidden, "intermediate": inner}, arch)
    assert sizes(smaller) == (28, 4, 2, 2, 46)
    alive, kept = hidden > 0, inner[1] > 0
    down = weights[f"{PREFIX}blocks.1.mlp.down_proj.weight"]
    expected = (down * hidden[:, None] * inner[1])[alive][:, kept]
    assert torch.allclose(pruned[f"{PREFIX}blocks.1.mlp.down_proj.weight"], expected)
    wte, output = weights[f"{PREFIX}wte.weight"], weights[f"{PREFIX}output.weight"]
    assert torch.equal(pruned[f"{PREFIX}wte.weight"], wte[:, alive] * hidden[alive])
    assert torch.equal(pruned[f"{PREFIX}output.weight"], output[:, alive])


def test_a_layer_goes_when_both_its_blocks_do_and_others_are_renumbered():
    weights, arch = twin()
    pruned, smaller = cut(weights, {"attention": torch.tensor([0.0, 1]), "mlp": torch.tensor([0.0, 1])}, arch)
    assert smaller.n_layers == 1
    name = "mlp.up_proj.weight"
    assert torch.equal(pruned[f"{PREFIX}blocks.0.{name}"], weights[f"{PREFIX}blocks.1.{name}"])
    assert f"{PREFIX}blocks.1.{name}" not in pruned


def test_a_layer_with_one_closed_block_stays_with_that_block_at_zero():
    weights, arch = twin("llama biases")
    pruned, smaller = cut(weights, {"attention": torch.tensor([0.0, 1])}, arch)
    assert smaller == arch
    assert not pruned[f"{PREFIX}blocks.0.attn.out_proj.weight"].any()
    assert not pruned[f"{PREFIX}blocks.0.attn.out_proj.bias"].any()
    assert pruned[f"{PREFIX}blocks.0.mlp.down_proj.bias"].any()


def test_layers_keep_as_many_units_as_the_widest_and_groups_stay_equal():
    weights, arch = twin()
    heads = torch.tensor([[0.0, 0, 1, 0], [1, 0, 1, 0]])  # 2 KV heads of 2: layer 0 opens 1, layer 1 both
    inner = torch.zeros(2, 56)
    inner[0, :3], inner[1, :7] = 1, 1
    pruned, smaller = cut(weights, {"head": heads, "intermediate": inner}, arch)
    assert sizes(smaller) == (32, 2, 2, 2, 7)
    wq = weights[f"{PREFIX}blocks.1.attn.wq.weight"].unflatten(0, (4, 8))
    assert torch.equal(pruned[f"{PREFIX}blocks.1.attn.wq.weight"], wq[[0, 2]].flatten(0, 1))
    assert not pruned[f"{PREFIX}blocks.0.attn.out_proj.weight"][:, :8].any()
    assert not pruned[f"{PREFIX}blocks.0.mlp.down_proj.weight"][:, 3:].any()


def test_products_are_made_in_fp32_and_types_kept():
    weights, arch = twin()
    weights = {name: weight.bfloat16() for name, weight in weights.items()}
    z, mlp = torch.rand(32), torch.rand(2)
    pruned, _ = cut(weights, {"hidden": z, "mlp": mlp}, arch)
    name = f"{PREFIX}blocks.0.mlp.down_proj.weight"
    assert torch.equal(pruned[name], (weights[name].float() * (z * mlp[0])[:, None]).bfloat16())


def test_masks_that_close_everything_are_rejected():
    weights, arch = twin()
    with pytest.raises(ValueError, match="leave 2 layers and 0 hidden dimensions: no model is left"):
        cut(weights, {"hidden": torch.zeros(32)}, arch)
    with pytest.raises(ValueError, match="leave 0 layers and 32 hidden"):
        cut(weights, {"attention": torch.zeros(2), "mlp": torch.zeros(2)}, arch)


# ---------------------------------------------------------------- the commands

TARGET = {"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "n_layers": 1, "intermediate_size": 24}
WORDS = [f"{key}={value}" for key, value in TARGET.items()]


def run_yaml(target):
    """The configuration of a run, which evaluated at the sparsity of the moment."""
    l0 = {"target_model": target, "eval_target_model": False}
    return OmegaConf.to_yaml(OmegaConf.create({"model": {"l0_module": l0}}))


@pytest.mark.parametrize("told_by", ["record", "config.yaml", "config.pt", "arguments"])
def test_the_target_shape_is_exact_wherever_it_is_given(tmp_path, told_by):
    config = run_yaml(TARGET) if told_by == "record" else None
    path = masked_checkpoint(tmp_path / "m.pt", config=config, **TARGET)
    if told_by == "config.yaml":
        (tmp_path / "config.yaml").write_text(run_yaml(TARGET))
    if told_by == "config.pt":
        torch.save(OmegaConf.create(run_yaml(TARGET)), tmp_path / "config.pt")
    out = prune_and_save_model(path, target=TARGET if told_by == "arguments" else None)
    assert out == tmp_path / "pruned-m.pt"
    pruned = read_checkpoint(out)
    assert not pruned.section
    assert sizes(describe(pruned)[0]) == tuple(TARGET.values())


def test_without_a_target_the_command_asks_for_it(tmp_path):
    path = masked_checkpoint(tmp_path / "m.pt", **TARGET)
    with pytest.raises(ValueError, match=r"target of its masks is.*such as d_model=2048"):
        prune_and_save_model(path)
    with pytest.raises(ValueError, match=r"unknown key d_modle; did you mean d_model\?"):
        prune_and_save_model(path, target={"d_modle": 16})


def test_a_target_that_the_masks_cannot_make_is_rejected(tmp_path):
    path = masked_checkpoint(tmp_path / "m.pt", n_layers=1)
    with pytest.raises(ValueError, match="has no mask"):
        prune_and_save_model(path, target={"n_layers": 1, "d_model": 16})
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_a_run_without_target_model_is_pruned_to_the_sparsity_of_its_masks(tmp_path):
    l0 = {"target_sparsity": 0.5, "pruning_modules": ["intermediate", "hidden"]}
    config = OmegaConf.to_yaml(OmegaConf.create({"model": {"l0_module": l0}}))
    path = masked_checkpoint(tmp_path / "m.pt", config=config, d_model=16, intermediate_size=24)
    pruned = prune_checkpoint(read_checkpoint(path), {})
    assert list(pruned.convergence) == ["overall"]
    assert pruned.arch.d_model < 32
    assert pruned.arch.intermediate_size < 56


def test_half_layers_are_rejected_by_name(tmp_path):
    path = masked_checkpoint(tmp_path / "m.pt", n_layers=1)
    checkpoint = read_checkpoint(path)
    weights = dict(checkpoint.weights)
    weights["model.l0_module.masks.head_layer.z_loga"] = torch.tensor([4.0, -4.0])
    weights["model.l0_module.masks.mlp.z_loga"] = torch.tensor([-4.0, 4.0])
    for name in list(weights):
        if "masks.layer" in name or (name.endswith("_layer") and "head_layer" not in name):
            del weights[name]
    write_checkpoint(path, weights, checkpoint.record)
    with pytest.raises(ValueError, match="head_layer and mlp may leave half a layer"):
        prune_and_save_model(path, target={"n_layers": 1})


@pytest.mark.parametrize("name", [name for name in TWO_A_FAMILY if shares_kv_heads(name)])
def test_the_command_writes_both_forms_and_the_check_passes(tmp_path, monkeypatch, capsys, name):
    path = masked_checkpoint(tmp_path / "m.pt", name, **TARGET)
    words = ["prune_and_save_model", path, tmp_path / "small.pt", "--hf", tmp_path / "hf", *WORDS]
    assert status_of(monkeypatch, post_pruning_processing, *words) == 0
    said = capsys.readouterr().out
    assert "before  d_model 32, 4 heads (2 KV)" in said
    assert "after   d_model 16, 2 heads (1 KV)" in said
    assert "not converged" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    small = read_checkpoint(tmp_path / "small.pt")
    assert architecture_from_hf(model.config.to_dict()) == describe(small)[0]
    assert torch.equal(model.get_input_embeddings().weight, small.weights[f"{PREFIX}wte.weight"])
    assert status_of(monkeypatch, test_pruning, path, *WORDS) == 0
    assert capsys.readouterr().out.endswith("equal\n")


def test_pythia_is_pruned_too(tmp_path, monkeypatch):
    words = ["d_model=16", "n_heads=2", "n_layers=1"]
    path = masked_checkpoint(tmp_path / "m.pt", "gpt_neox", d_model=16, n_heads=2, n_layers=1)
    assert status_of(monkeypatch, test_pruning, path, *words) == 0


def test_the_check_fails_when_pruning_is_wrong(tmp_path, monkeypatch, capsys):
    path = masked_checkpoint(tmp_path / "m.pt", **TARGET)

    def wrong(weights, gates, arch):
        pruned, smaller = cut(weights, gates, arch)
        pruned[f"{PREFIX}ln_f.weight"] = pruned[f"{PREFIX}ln_f.weight"] * 1.1
        return pruned, smaller

    monkeypatch.setattr(prune_command, "cut", wrong)
    assert status_of(monkeypatch, test_pruning, path, *WORDS) == 2
    assert "error: The models are not equal" in capsys.readouterr().err


def test_convergence_is_the_distance_of_expected_from_target_sparsity(tmp_path):
    path = masked_checkpoint(tmp_path / "m.pt", intermediate_size=28)
    checkpoint = read_checkpoint(path)
    loga = checkpoint.weights["model.l0_module.masks.intermediate.z_loga"].clone()
    loga[:, :28], loga[:, 28:] = -4.605, 4.605  # keep probabilities 0.0471 and 0.9980
    loga[0, 27] = 4.605
    checkpoint.weights["model.l0_module.masks.intermediate.z_loga"] = loga
    row = prune_checkpoint(checkpoint, {"intermediate_size": 28}).convergence["intermediate"]
    low, high = 0.0471, 0.9980
    first, second = 1 - (27 * low + 29 * high) / 56, 1 - (28 * low + 28 * high) / 56
    assert row.target == 0.5
    assert row.expected == pytest.approx((first + second) / 2, abs=1e-4)
    assert row.worst == pytest.approx(max(abs(first - 0.5), abs(second - 0.5)), abs=1e-4)
    assert not row.reached
