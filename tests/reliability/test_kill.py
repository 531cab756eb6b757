"""kill -9 at random moments: the run that goes on each time is the run that was never killed, to the bit."""

import random
import signal
from functools import partial

import faults
import pytest

from processes import Ranks, assert_same, metrics, run, write_config

KILLS, FEW = 20, 3
STEPS = {KILLS: 36, FEW: 20}
SETTINGS = {"eval_interval": "3ba", "save_interval": "2ba"}


def random_fault(generator, step):
    """A moment soon after `step`: in a step, an evaluation or the writing of a checkpoint."""
    kind = generator.choice(["step", "evaluation", "checkpoint"])
    if kind == "step":
        event = generator.choice(["after_forward", "after_backward", "after_train_batch", "batch_end"])
        return partial(faults.kill_at, event, step + generator.randint(1, 3))
    if kind == "evaluation":
        event = generator.choice(["eval_start", "eval_batch_end", "eval_end"])
        return partial(faults.kill_at, event, (step // 3 + 1) * 3)
    moment = generator.choice(["bytes", "rename 1", "rename 2", "rename 3"])
    return partial(faults.kill_in_save, moment, generator.randint(1, 2))


def steps_done(folder):
    return max(metrics(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


def kill_at_random_moments(tmp_path, data, world_size, wanted, prune=True, **changes):
    """Compare runs that were killed `wanted` times in all with one that never was."""
    settings = {**SETTINGS, "max_duration": f"{STEPS[wanted]}ba", **changes}
    run([write_config(tmp_path / "whole", data, prune, **settings)], world_size, timeout=300)
    generator = random.Random(world_size)
    kills, runs = 0, 0
    while kills < wanted:
        folder = tmp_path / f"killed-{runs}"
        arguments = [write_config(folder, data, prune, **settings), "autoresume=true"]
        while kills < wanted and steps_done(folder) < STEPS[wanted] - 6:
            ranks = Ranks(arguments, world_size, random_fault(generator, steps_done(folder)))
            ranks.processes[0].join(300)
            ranks.kill()  # as a launcher does when one rank is gone
            assert ranks.processes[0].exitcode == -signal.SIGKILL, ranks.output()[-3000:]
            kills += 1
        run(arguments, world_size, timeout=300)
        assert_same(tmp_path / "whole", folder)
        runs += 1


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_random_moments(tmp_path, data, table, world_size):
    kill_at_random_moments(tmp_path, data, world_size, KILLS)
    table(f"kill -9 at random moments, {world_size} process(es)", "equal to the bit", KILLS)


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_while_it_learns_masks_on_single_weights(tmp_path, data, table, world_size):
    section = {"prior": "magnitude", "weight_reg": 1e-4}
    kill_at_random_moments(
        tmp_path, data, world_size, FEW, prune=False, model__maskllm=section, optimizer__lr=1e-2
    )
    table(f"kill -9 while learning 2:4 masks, {world_size} process(es)", "equal to the bit", FEW)


CHOPS = {
    "layers one after another": {
        "model__n_layers": 5,
        "model__layerchop": {"n_layers": 3, "warm_steps": "4ba", "layers_per_cut": 1, "interval": "6ba"},
    },
    "units by scores": {
        "model__dimchop": {"target_model": {"d_model": 16, "n_heads": 2}, "window": 5, "warm_steps": "4ba"}
    },
    "columns by scores": {
        "model__dimchop": {"tied": False, "sparsity": 0.5, "window": 5, "warm_steps": "4ba"}
    },
}


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", CHOPS)
def test_killed_while_it_removes(tmp_path, data, table, world_size, name):
    kill_at_random_moments(tmp_path, data, world_size, FEW, prune=False, **CHOPS[name])
    table(f"kill -9 while it removes {name}, {world_size} process(es)", "equal to the bit", FEW)
