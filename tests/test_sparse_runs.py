"""Runs that learn N:M masks, or train under fixed ones: frozen weights, resuming, export, mask files."""

import numpy as np
import pytest
import torch

from llmshearing import training
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.hf_files import read_hf
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.apply_masks import apply_masks
from llmshearing.commands.check_pruning import check
from llmshearing.commands.equality import load_theirs
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.pruning import patterns
from llmshearing.shapes.key_map import to_hf
from processes import assert_close, assert_same, interrupted, metrics, run, weights, write_config
from runs import run_config, write_data

TWO_FOUR = patterns.Pattern(2, 4)
LEARNED = {
    "model__maskllm": {"weight_reg": 1e-4, "prior": "magnitude"},
    "optimizer__lr": 1e-2,
    "optimizer__weight_decay": 0.1,
    "max_duration": "9ba",
    "eval_interval": "3ba",
}
SHARDED = {"state_dict_type": "sharded"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(tmp_path_factory, data):
    """A dense model trained for a few steps."""
    folder = tmp_path_factory.mktemp("source")
    training.train(run_config(data, folder, prune=False, max_duration="8ba", eval_interval="0ba"))
    return folder / "latest-rank0.pt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, source):
    """The folder of a run that learned masks over the source."""
    folder = tmp_path_factory.mktemp("masks")
    settings = {**LEARNED, "model__path": str(source), "precision": "fp32"}
    training.train(run_config(data, folder, prune=False, **settings))
    return folder


def dense_of(folder):
    return {name: weight for name, weight in weights(folder).items() if "mask" not in name}


def logits_of(folder):
    return {name: weight for name, weight in weights(folder).items() if name.endswith("mask_logits")}


def test_frozen_weights_do_not_change_by_a_bit(finished, source):
    before = read_checkpoint(source).weights
    after = dense_of(finished)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(logits_of(finished)) == 3 * 7


def test_logits_learn_and_the_schedules_run(finished):
    steps = metrics(finished)
    scale = [values["metrics/train/mask_scale"] for values in steps.values() if "loss/train/total" in values]
    assert scale == pytest.approx([100 + 400 * t / 9 for t in range(9)])
    last = steps[max(step for step, values in steps.items() if "loss/train/total" in values)]
    assert {"loss/train/ce_loss", "loss/train/mask_loss", "loss/train/total"} <= last.keys()
    assert last["loss/train/total"] == pytest.approx(
        last["loss/train/ce_loss"] + last["loss/train/mask_loss"]
    )
    first, end = read_checkpoint(finished / "ep0-ba4-rank0.pt").weights, logits_of(finished)
    moved = torch.cat([(end[name] - first[name]).abs().flatten() for name in end])
    assert moved.median() > 1e-3


def test_only_logits_have_optimizer_state(finished):
    from llmshearing.checkpoints.safe_load import load_tensors

    state = load_tensors(run_folder.checkpoints(finished)[0])["state"]["optimizers"]["AdamW"]["state"]
    assert set(state) == set(logits_of(finished))
    moments = sum(t.nbytes for moment in state.values() for t in moment.values() if t.dim())
    assert moments == 2 * sum(logits.nbytes for logits in logits_of(finished).values())


def test_the_export_keeps_exactly_what_its_masks_name(tmp_path, finished, source):
    """Zeros are exact, masks come from logits, everything else is the source's to the bit."""
    out = tmp_path / "sparse.pt"
    prune_and_save_model(finished / "latest-rank0.pt", out, hf=tmp_path / "hf")
    dense, sparse = read_checkpoint(source).weights, read_checkpoint(out).weights
    assert dense.keys() == sparse.keys()
    masks = np.load(tmp_path / "sparse.masks.npz")
    assert len(masks.files) == 21
    for name, weight in sparse.items():
        key = f"{to_hf(name, 'llama')}.mask"
        if key not in masks.files:
            assert torch.equal(weight, dense[name]), name
            continue
        mask = patterns.unpack_bits(torch.from_numpy(masks[key]), tuple(weight.shape))
        assert (patterns.kept_counts(mask, TWO_FOUR) == 2).all()
        assert torch.equal(weight, torch.where(mask, dense[name], 0.0))
    hf = read_hf(tmp_path / "hf").weights
    assert all(torch.equal(hf[to_hf(name, "llama")], weight) for name, weight in sparse.items())


def test_a_kept_weight_may_be_zero(tmp_path, finished):
    """Masks come from the logits: a weight that is 0 and stays is in the mask all the same."""
    checkpoint = read_checkpoint(finished / "latest-rank0.pt")
    name = "model.transformer.blocks.0.attn.wq.weight"
    changed = dict(checkpoint.weights) | {name: torch.zeros_like(checkpoint.weights[name])}
    write_checkpoint(tmp_path / "zeros.pt", changed, checkpoint.record)
    prune_and_save_model(tmp_path / "zeros.pt", tmp_path / "out.pt")
    bits = np.load(tmp_path / "out.masks.npz")["model.layers.0.self_attn.q_proj.weight.mask"]
    mask = patterns.unpack_bits(torch.from_numpy(bits), tuple(changed[name].shape))
    assert (patterns.kept_counts(mask, TWO_FOUR) == 2).all()


def test_dense_weights_and_masks_equal_the_export(tmp_path, finished, source):
    prune_and_save_model(finished / "latest-rank0.pt", tmp_path / "sparse.pt", hf=tmp_path / "hf")
    prune_and_save_model(finished / "latest-rank0.pt", tmp_path / "dense.pt", dense_weights=True)
    dense = read_checkpoint(tmp_path / "dense.pt").weights
    assert all(torch.equal(weight, dense[name]) for name, weight in read_checkpoint(source).weights.items())
    assert (tmp_path / "dense.masks.npz").read_bytes() == (tmp_path / "sparse.masks.npz").read_bytes()
    apply_masks(source, tmp_path / "dense.masks.npz", tmp_path / "applied.pt")
    applied, sparse = (read_checkpoint(tmp_path / name).weights for name in ("applied.pt", "sparse.pt"))
    assert all(torch.equal(weight, sparse[name]) for name, weight in applied.items())
    apply_masks(source, tmp_path / "dense.masks.npz", tmp_path / "applied")
    ids = torch.arange(16)[None]
    one, other = (load_theirs(tmp_path / name)(ids).logits for name in ("applied", "hf"))
    assert torch.equal(one, other)
    check(finished / "latest-rank0.pt")


def test_masks_that_are_not_applied_stop_other_runs(data, finished, tmp_path):
    path = str(finished / "latest-rank0.pt")
    with pytest.raises(
        ValueError, match=r"whose masks are not applied yet, and this run has no model\.maskllm"
    ):
        training.prepare_run(run_config(data, tmp_path, prune=False, model__path=path))
    with pytest.raises(ValueError, match=r"this run has no model\.maskllm"):
        training.prepare_run(run_config(data, tmp_path, prune=True, model__path=path))
    with pytest.raises(ValueError, match="whose masks are not applied yet"):
        apply_masks(path, tmp_path / "m.npz", tmp_path / "out")


def test_fixed_masks_stay_while_the_weights_train(tmp_path, data, finished):
    prune_and_save_model(finished / "latest-rank0.pt", tmp_path / "dense.pt", dense_weights=True)
    settings = {
        "model__path": str(tmp_path / "dense.pt"),
        "model__maskllm": {"fixed": True, "prior": str(tmp_path / "dense.masks.npz")},
        "max_duration": "3ba",
    }
    training.train(run_config(data, tmp_path / "run", prune=False, **settings))
    prune_and_save_model(tmp_path / "run/latest-rank0.pt", tmp_path / "tuned.pt")
    assert (tmp_path / "tuned.masks.npz").read_bytes() == (tmp_path / "dense.masks.npz").read_bytes()
    dense, tuned = (read_checkpoint(tmp_path / name).weights for name in ("dense.pt", "tuned.pt"))
    name = "model.transformer.blocks.0.mlp.up_proj.weight"
    zeros = (tuned[name] == 0).unflatten(-1, (-1, 4)).sum(-1)
    assert (zeros == 2).all()
    assert not torch.equal(tuned[name][tuned[name] != 0], dense[name][tuned[name] != 0])


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize(
    ("world_size", "fsdp", "name"),
    [(1, {}, "ep0-ba4-rank0.pt"), (2, {}, "ep0-ba4-rank0.pt"), (2, SHARDED, "ep0-ba4")],
    ids=["1", "2", "2-sharded"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, data, source, world_size, fsdp, name):
    settings = {**LEARNED, "model__path": str(source), "fsdp_config": fsdp}
    run([write_config(tmp_path / "whole", data, False, **settings)], world_size)
    path = interrupted(tmp_path / "whole", tmp_path / "resumed", name)
    assert "resuming from" in run([path, "autoresume=true"], world_size)
    assert_same(tmp_path / "whole", tmp_path / "resumed")
    before = read_checkpoint(source).weights
    assert all(torch.equal(before[name], weight) for name, weight in dense_of(tmp_path / "whole").items())


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_learn_what_one_does(tmp_path, data, source, checkpointing):
    """With masks that all ranks share, and from the same initial logits."""
    section = {**LEARNED["model__maskllm"], "noise": "shared"}
    settings = {**LEARNED, "model__path": str(source), "model__maskllm": section}
    fsdp = {"activation_checkpointing": checkpointing}
    for world_size in (1, 2):
        run([write_config(tmp_path / str(world_size), data, False, **settings, fsdp_config=fsdp)], world_size)
    assert_close(tmp_path / "1", tmp_path / "2")
