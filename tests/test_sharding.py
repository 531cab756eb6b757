"""Runs of several processes on CPU: FSDP2 over gloo gives what one process gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import Ranks, run

from llmshearing.config import FsdpConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.sharding import parallelize
from runs import run_values, write_data

STEPS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def config_file(folder: Path, data: Path, prune: bool, **changes: Any) -> Path:
    """A configuration whose run writes to `folder`."""
    values = run_values(data, folder, prune)
    values |= {"device_train_microbatch_size": 2, "save_interval": "1000ba", **changes}
    if prune:
        values["model"]["l0_module"]["noise"] = "shared"
    folder.mkdir()
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("prune", [False, True], ids=["dense", "pruning"])
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path, data, prune):
    for world_size in (1, 2, 4):
        folder = tmp_path / str(world_size)
        path = config_file(folder, data, prune, max_duration=f"{STEPS}ba", eval_interval="10ba")
        run([str(path)], world_size)
    one = metrics(tmp_path / "1")
    assert sum("loss/train/total" in line for line in one) == STEPS
    for world_size in (2, 4):
        for mine, theirs in zip(one, metrics(tmp_path / str(world_size)), strict=True):
            assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)


@pytest.mark.world_size
@pytest.mark.parametrize(
    "fsdp",
    [
        {"activation_checkpointing": True},
        {"sharding_strategy": "SHARD_GRAD_OP", "activation_cpu_offload": True},
    ],
)
def test_memory_savings_do_not_change_the_losses(tmp_path, data, fsdp):
    for name, settings in (("plain", {}), ("saving", fsdp)):
        path = config_file(tmp_path / name, data, True, max_duration="3ba", fsdp_config=settings)
        run([str(path)], 2)
    for mine, theirs in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "saving"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6, abs=1e-6)


@pytest.mark.world_size
def test_weights_of_a_checkpoint_go_to_every_process(tmp_path, data):
    first = config_file(tmp_path / "first", data, False, max_duration="2ba")
    run([str(first), "save_interval=2ba"])
    source = tmp_path / "first/ep0-ba2-rank0.pt"
    for world_size in (1, 2):
        path = config_file(tmp_path / str(world_size), data, True, max_duration="2ba")
        run([str(path), f"model.path={source}"], world_size)
    for mine, theirs in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)


@pytest.mark.world_size
def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, data):
    path = config_file(tmp_path / "run", data, False)
    ranks = Ranks([str(path), "global_train_batch_size=7"], 2)
    assert ranks.wait() == [2, 2]
    assert "global_train_batch_size is 7" in ranks.output()
    assert "Traceback" not in ranks.output()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sharding_strategy": "NO_SHARD"}, "sharding_strategy is 'NO_SHARD'; expected one of FULL_SHARD"),
        ({"mixed_precision": "HALF"}, "mixed_precision is 'HALF'; expected one of DEFAULT"),
        ({"state_dict_type": "local"}, "state_dict_type is 'local'; expected one of FULL, SHARDED"),
    ],
)
def test_settings_that_fsdp2_does_not_have_are_refused(setting, message):
    values = run_values(Path("data"))["model"]
    with pytest.raises(ValueError, match=message):
        parallelize(ComposerMosaicLlama(values), FsdpConfig(**setting), "fp32")
