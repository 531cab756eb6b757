"""Checkpoints that are damaged, foreign, malicious, or have no room."""

import os
import pickle
import shutil
import subprocess

import pytest
import torch

from llmshearing.checkpoints import run_folder
from processes import Ranks, run, write_config

SHARDED = {"fsdp_config__state_dict_type": "sharded"}


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run with checkpoints of the steps 2 and 4, whole and sharded."""
    folders = {}
    for kind, world_size, changes in (("whole", 1, {}), ("sharded", 2, SHARDED)):
        folders[kind] = tmp_path_factory.mktemp(kind) / "run"
        path = write_config(folders[kind], data, max_duration="4ba", save_interval="2ba", **changes)
        run([path], world_size, timeout=300)
    return folders


def copy(finished, kind, folder):
    shutil.copytree(finished[kind], folder, symlinks=True)
    config = folder / "run.yaml"
    config.write_text(config.read_text().replace(str(finished[kind]), str(folder)))
    last = run_folder.latest_checkpoint(folder)
    return str(config), last if kind == "whole" else last / "__1_0.distcp"


def refused(arguments, world_size=1):
    """The message of a run that a user's mistake ends; nothing else may be in its output."""
    ranks = Ranks(arguments, world_size)
    assert ranks.wait(200) == [2] * world_size, ranks.output()[-3000:]
    assert "Traceback" not in ranks.output()
    return ranks.output()


@pytest.mark.world_size
@pytest.mark.parametrize("kind", ["whole", "sharded"])
@pytest.mark.parametrize("fault", ["truncated", "bit-flipped"])
def test_damaged_checkpoint(tmp_path, finished, table, kind, fault):
    path, file = copy(finished, kind, tmp_path / "run")
    size = file.stat().st_size
    if fault == "truncated":
        os.truncate(file, size - 100)
    else:
        contents = bytearray(file.read_bytes())
        contents[size // 2] ^= 1
        file.write_bytes(contents)
    message = refused([path, "autoresume=true", "max_duration=6ba"], 2 if kind == "sharded" else 1)
    assert "is damaged" in message
    assert "were written" in message if fault == "truncated" else "SHA-256 differs" in message
    earlier = run_folder.checkpoints(tmp_path / "run")[1]
    assert f"The one before it is {earlier}" in message
    run_folder.remove(run_folder.latest_checkpoint(tmp_path / "run"))
    run([path, "autoresume=true", "max_duration=3ba"], 2 if kind == "sharded" else 1, timeout=300)
    table(f"checkpoint {fault}, {kind}", "refused with the reason; the one before offered, and goes on")


def test_checkpoint_with_a_different_configuration(tmp_path, finished, table):
    path, _ = copy(finished, "whole", tmp_path / "run")
    message = refused([path, "autoresume=true", "model.l0_module.noise=shared", "max_duration=6ba"])
    assert "model.l0_module.noise was 'per_rank', is 'shared'" in message
    assert "load_weights_only=true" in message
    table("checkpoint of another configuration", "refused, naming the keys")


@pytest.mark.parametrize("key", ["load_path", "model.path"])
def test_malicious_checkpoint(tmp_path, finished, table, key):
    path, last = copy(finished, "whole", tmp_path / "run")
    contents = torch.load(last, weights_only=False)
    marker = tmp_path / "was-run"
    contents["state"]["callbacks"]["RunRecord"] = Payload(marker)
    evil = tmp_path / "evil.pt"
    torch.save(contents, evil)
    message = refused([path, f"{key}={evil}", f"save_folder={tmp_path}/new"])
    assert "more than tensors and plain containers" in message
    assert not marker.exists()
    table("malicious pickle in a checkpoint", "refused, nothing run")


def test_text_that_composer_would_evaluate(tmp_path, finished, table):
    """Composer's own resume evaluates the text under state.algorithms."""
    path, last = copy(finished, "whole", tmp_path / "run")
    contents = torch.load(last, weights_only=False)
    marker = tmp_path / "was-run"
    attack = f"BlurPool.__init__.__globals__['__builtins__']['open']('{marker}', 'w')"
    contents["state"]["algorithms"] = [("BlurPool", {"repr": attack})]
    evil = tmp_path / "evil.pt"
    torch.save(contents, evil)
    run([path, f"load_path={evil}", f"save_folder={tmp_path}/new", "max_duration=5ba"], timeout=200)
    assert not marker.exists()
    table("code as text in a checkpoint", "not evaluated")


@pytest.mark.world_size
def test_malicious_sharded_checkpoint(tmp_path, finished, table):
    path, _ = copy(finished, "sharded", tmp_path / "run")
    marker = tmp_path / "was-run"
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / ".metadata").write_bytes(pickle.dumps(Payload(marker)))
    refused([path, f"load_path={evil}", f"save_folder={tmp_path}/new"], 2)
    assert not marker.exists()
    table("malicious pickle in a sharded checkpoint", "refused, nothing run")


def test_malicious_configuration(tmp_path, table):
    marker = tmp_path / "was-run"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: !!python/object/apply:os.system ['touch {marker}']\n")
    refused([str(config)])
    assert not marker.exists()
    table("malicious tag in a configuration", "refused, nothing run")


def test_full_disk(tmp_path, data, table):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        path = write_config(folder, data, max_duration="40ba", eval_interval="0ba", save_interval="2ba")
        message = refused([path])
        assert "could not be saved" in message
        assert "bytes left: make room" in message
        saved = run_folder.checkpoints(folder)
        assert saved
        assert not run_folder.damage(saved[0], [saved[0].name])
        assert not (folder / ".incomplete").exists()
        step = run_folder.step_of(saved[0])
        elsewhere = [f"load_path={saved[0]}", f"save_folder={tmp_path}/roomy", f"max_duration={step + 1}ba"]
        run([path, *elsewhere], timeout=200)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    table("full file system", "reported; the checkpoint before goes on elsewhere")


def test_retention(tmp_path, data, table):
    path = write_config(tmp_path, data, max_duration="5ba", eval_interval="0ba", save_interval="1ba")
    run([path, "save_num_checkpoints_to_keep=2"], timeout=200)
    names = [checkpoint.name for checkpoint in run_folder.checkpoints(tmp_path)]
    assert names == ["ep0-ba5-rank0.pt", "ep0-ba4-rank0.pt"]
    assert sorted(file.name for file in tmp_path.glob("ep0-*")) == sorted(
        [*names, *(f"{name}.json" for name in names)]
    )
    run([path, "autoresume=true", "max_duration=7ba", "save_num_checkpoints_to_keep=0"], timeout=200)
    assert [checkpoint.name for checkpoint in run_folder.checkpoints(tmp_path)] == ["ep0-ba7-rank0.pt"]
    table("checkpoints beyond save_num_checkpoints_to_keep", "deleted, also those of the launch before")
