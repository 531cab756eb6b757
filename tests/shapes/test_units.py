"""Counts and targets of masks against a count by hand."""

import pytest
import torch
from torch.distributed.utils import _apply_to_tensors
from torch.utils._pytree import tree_map

from llmshearing.config import ModelConfig
from llmshearing.models import decoder
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.pruning import cut as pruning_cut
from llmshearing.shapes import counts, units
from llmshearing.shapes.architecture import Architecture
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.shapes.key_map import PREFIX
from llmshearing.shapes.layer_gates import layer_gates
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.reachable import export_warnings, pruning_problems
from twins import CONFIGS

MHA = Architecture(
    d_model=64,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    n_layers=3,
    intermediate_size=96,
    vocab_size=50,
    max_seq_len=32,
)
GQA = MHA.resized(n_heads=8, n_kv_heads=2, head_dim=8)


def keep(arch, names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.rand(units.KINDS[n].shape(arch), generator=generator) > 0.4).double() for n in names}


def count(arch, gates):
    """Parameters that survive binary gates, unit by unit."""
    total = 0.0
    hidden = gates["hidden"].sum() if "hidden" in gates else arch.d_model
    for layer in range(arch.n_layers):
        per_layer = gates["layer"][layer] if "layer" in gates else 1
        attention = gates["head_layer"][layer] if "head_layer" in gates else per_layer
        mlp = gates["mlp"][layer] if "mlp" in gates else per_layer
        for k in range(arch.n_kv_heads):
            group = gates["kv_head"][layer, k] if "kv_head" in gates else 1
            queries = range(k * arch.group_size, (k + 1) * arch.group_size)
            open_queries = sum(gates["head"][layer, q] if "head" in gates else 1 for q in queries)
            if arch.group_size == 1:
                group, open_queries = open_queries, 1
            total += attention * group * (2 + 2 * open_queries) * arch.head_dim * hidden
        width = gates["intermediate"][layer].sum() if "intermediate" in gates else arch.intermediate_size
        total += mlp * width * 3 * hidden
    return float(total)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (MHA, ["head", "intermediate", "layer", "hidden"]),
        (MHA, ["head", "head_layer", "mlp", "intermediate"]),
        (MHA, ["layer", "hidden"]),
        (GQA, ["head", "kv_head", "intermediate", "layer", "hidden"]),
        (GQA, ["kv_head", "intermediate", "mlp", "hidden"]),
        (GQA, ["head", "intermediate", "hidden"]),
    ],
)
def test_expected_parameters_counts_what_binary_gates_leave(arch, names, seed):
    gates = keep(arch, names, seed)
    assert counts.expected_parameters(gates, arch).item() == pytest.approx(count(arch, gates), rel=1e-12)


def test_all_gates_open_is_the_prunable_size():
    for arch in (MHA, GQA):
        for names in (["head", "hidden"], ["intermediate"], ["head"], ["layer"], ["mlp"]):
            gates = {n: torch.ones(units.KINDS[n].shape(arch), dtype=torch.float64) for n in names}
            assert counts.expected_parameters(gates, arch).item() == counts.prunable_parameters(names, arch)


def test_prunable_parts_follow_the_masks():
    attention = MHA.n_layers * 4 * 64 * 64
    mlp = MHA.n_layers * 3 * 64 * 96
    assert counts.prunable_parameters(["head"], MHA) == attention
    assert counts.prunable_parameters(["intermediate", "mlp"], MHA) == mlp
    assert counts.prunable_parameters(["hidden"], MHA) == attention + mlp


def test_needed_kinds_are_the_sizes_that_shrink():
    assert units.needed_kinds(MHA, MHA.resized(n_layers=2)) == ["layer"]
    assert units.needed_kinds(MHA, MHA.resized(n_heads=2, n_kv_heads=2, d_model=32)) == ["head", "hidden"]
    assert units.needed_kinds(GQA, GQA.resized(n_heads=4, n_kv_heads=1)) == ["kv_head"]
    assert units.needed_kinds(GQA, GQA.resized(n_heads=4, n_kv_heads=2)) == ["head"]
    assert units.needed_kinds(GQA, GQA.resized(n_heads=2, n_kv_heads=1)) == ["head", "kv_head"]


def test_grouped_heads_compete_within_their_group():
    log_alpha = torch.arange(24.0).view(3, 8)
    assert units.rows("head", log_alpha, GQA).shape == (6, 4)
    assert units.rows("head", torch.zeros(3, 4), MHA).shape == (3, 4)


def test_shapes_that_cannot_be_reached_or_exported_are_rejected():
    (problem,) = pruning_problems(GQA, GQA.resized(n_heads=6, n_kv_heads=1), ["head", "kv_head"], "model.x")
    assert "6 query heads for each KV head, the source has 4; groups only shrink" in problem
    assert problem.endswith("raise target_model.n_kv_heads or lower target_model.n_heads.")
    for source, heads in ((MHA, 7), (GQA, 12)):  # KV heads follow from heads, or cannot help
        kv_heads = heads if source is MHA else source.n_kv_heads
        (problem,) = pruning_problems(source, source.resized(n_heads=heads, n_kv_heads=kv_heads), [], "", "")
        assert problem.startswith(f"n_heads is {heads}, more than the source's {source.n_heads};")
    neox = MHA.resized(family="gpt_neox")
    kinds = ["head", "hidden"]
    (problem,) = pruning_problems(neox, neox.resized(n_heads=2, n_kv_heads=2, d_model=48), kinds, "model.x")
    assert problem.endswith("d_model must be n_heads times 16: set target_model.d_model=32.")
    assert not pruning_problems(neox, neox.resized(n_heads=2, n_kv_heads=2, d_model=32), kinds, "model.x")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_table_has_every_weight_of_a_model_in_its_shape(name):
    arch = architecture_from_hf(CONFIGS[name].to_dict())
    model = ComposerMosaicLlama(complete(ModelConfig(init_device="meta"), arch, name))
    found = {n: tuple(weight.shape) for n, weight in model.state_dict().items()}
    assert found == {PREFIX + n: shape for n, shape in units.weight_shapes(arch)}


@pytest.mark.parametrize("arch", [MHA, GQA], ids=["MHA", "GQA"])
def test_gates_convert_to_the_originals_masks_and_back(arch):
    gates = units.Gates({name: torch.rand(gate.shape(arch)) for name, gate in units.GATES.items()})
    zs = units.to_z(gates)
    assert zs["head_z"].shape == (arch.n_layers, 1, arch.n_heads, 1)
    assert zs["intermediate_z"].shape == (arch.n_layers, 1, 1, arch.intermediate_size)
    assert zs["head_layer_z"].shape == zs["mlp_z"].shape == (arch.n_layers,)
    back = units.from_z(zs, arch)
    assert back.keys() == gates.keys()
    assert all(torch.equal(back[name], gate) for name, gate in gates.items())
    with pytest.raises(ValueError, match=r"hidden_z has shape \[3\]; expected \[64\] gates"):
        units.from_z({"hidden_z": torch.ones(3)}, arch)


def test_a_row_of_the_table_is_all_that_a_new_gate_needs(monkeypatch):
    """Forward pass and export read the table alone: gates on another axis, and still masked equals cut."""
    real = units.weight_table

    def changed(arch):
        table = real(arch)
        up = table["mlp.up_proj"]
        rows = units.Axis(arch.intermediate_size, "intermediate", ("wide",))
        return table | {"mlp.up_proj": units.Weight(rows, up.columns, up.bias)}

    monkeypatch.setitem(units.GATES, "wide", units.Gate("intermediate_size", True, "wide_z", (1, 1, -1)))
    for module in (units, decoder, pruning_cut, counts):
        monkeypatch.setattr(module, "weight_table", changed)
    arch = GQA.resized(vocab_size=48)
    torch.manual_seed(0)
    model = ComposerMosaicLlama(complete(ModelConfig(init_std=0.2), arch, "test")).eval()
    gates = units.Gates(wide=torch.rand(3, 96), intermediate=(torch.rand(3, 96) > 0.3).float())
    batch = {"input_ids": torch.randint(0, 48, (2, 9))}
    masked, plain = model({**batch, **units.to_z(gates)})["logits"], model(batch)["logits"]
    weights, smaller = pruning_cut.cut(model.state_dict(), gates, arch)
    small = ComposerMosaicLlama(complete(ModelConfig(), smaller, "test")).eval()
    small.load_state_dict(weights)
    torch.testing.assert_close(small(batch)["logits"], masked)
    assert (plain - masked).abs().max() > 1e-3


def test_a_width_that_transformers_5_rejects_is_warned_about():
    (warning,) = export_warnings(GQA.resized(d_model=60))
    assert "d_model 60, not a multiple of its 8 heads: transformers 5 rejects" in warning
    assert not export_warnings(GQA)
    assert not export_warnings(GQA.resized(d_model=60, family="mistral"))


@pytest.mark.parametrize("walk", [_apply_to_tensors, tree_map], ids=["newer FSDP2", "older FSDP2"])
def test_gates_keep_their_type_where_fsdp_casts_inputs(walk):
    gates = units.Gates(hidden=torch.rand(4), mlp=torch.rand(2))
    of_layer = layer_gates({}, gates, 0)
    passed = walk(lambda x: x.bfloat16() if torch.is_tensor(x) else x, ([torch.ones(1)], gates, of_layer))
    assert passed[0][0].dtype == torch.bfloat16
    assert passed[1] is gates
    assert passed[2] is of_layer
