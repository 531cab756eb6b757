"""Runs of several processes on CPU: FSDP2 over gloo gives what one process gives."""

import pytest
import torch

from processes import Ranks, assert_close, metrics, run, weights, write_config
from runs import write_data

STEPS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruning"])
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path, data, prune):
    settings = {"max_duration": f"{STEPS}ba", "eval_interval": "10ba", "save_interval": "1000ba"}
    if prune:
        settings["model__l0_module__noise"] = "shared"
    for world_size in (1, 2, 4):
        run([write_config(tmp_path / str(world_size), data, prune, **settings)], world_size)
    assert sum("loss/train/total" in values for values in metrics(tmp_path / "1").values()) == STEPS
    assert_close(tmp_path / "1", tmp_path / "2")
    assert_close(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("section", [{"tied": False, "sparsity": 0.5}, {"target_model": {"d_model": 16}}])
def test_dimensions_chosen_by_scores_do_not_depend_on_the_number_of_processes(tmp_path, data, section):
    section = {**section, "window": 3, "warm_steps": "2ba", "final_steps": "3ba"}
    settings = {"max_duration": "12ba", "eval_interval": "6ba", "model__dimchop": section}
    for world_size in (1, 2):
        run([write_config(tmp_path / str(world_size), data, prune=False, **settings)], world_size)
    assert_close(tmp_path / "1", tmp_path / "2")
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    gates = [name for name in one if name.endswith(".gates")]
    assert gates
    assert all(torch.equal(one[name], two[name]) for name in gates)
    assert not all(one[name].all() for name in gates)


@pytest.mark.slow
@pytest.mark.world_size
def test_memory_savings_do_not_change_the_losses(tmp_path, data):
    savings = {
        "plain": {},
        "checkpointing": {"activation_checkpointing": True},
        "offload": {"sharding_strategy": "SHARD_GRAD_OP", "activation_cpu_offload": True},
    }
    for name, fsdp in savings.items():
        run([write_config(tmp_path / name, data, max_duration="3ba", fsdp_config=fsdp)], 2)
    assert_close(tmp_path / "plain", tmp_path / "checkpointing")
    assert_close(tmp_path / "plain", tmp_path / "offload")


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("checkpointing", [False, True])
def test_processes_that_leave_different_layers_out_reduce_the_same_gradients(tmp_path, data, checkpointing):
    """Masks differ by rank: two of three layers are closed in each on average, at times all in one alone."""
    settings = {
        "max_duration": "8ba",
        "model__l0_module__target_model__n_layers": 1,
        "model__l0_module__constraint": "projection",
        "model__l0_module__lagrangian_warmup_steps": "1ba",
        "fsdp_config": {"activation_checkpointing": checkpointing},
    }
    for execute in ("open", "all"):
        run([write_config(tmp_path / execute, data, model__execute=execute, **settings)], 2)
    assert_close(tmp_path / "open", tmp_path / "all")


@pytest.mark.slow
@pytest.mark.world_size
def test_weights_of_a_checkpoint_go_to_every_process(tmp_path, data):
    run([write_config(tmp_path / "source", data, prune=False, max_duration="2ba")])
    source = str(tmp_path / "source/ep0-ba2-rank0.pt")
    settings = {"max_duration": "2ba", "model__path": source, "model__l0_module__noise": "shared"}
    for world_size in (1, 2):
        run([write_config(tmp_path / str(world_size), data, **settings)], world_size)
    assert_close(tmp_path / "1", tmp_path / "2")


@pytest.mark.world_size
def test_a_batch_that_processes_cannot_share_is_rejected(tmp_path, data):
    ranks = Ranks([write_config(tmp_path, data), "global_train_batch_size=7"], 2)
    assert ranks.wait() == [2, 2]
    assert "global_train_batch_size is 7" in ranks.output()
    assert "Traceback" not in ranks.output()
