"""Ranks that die, hang, see NaN; launchers that are killed; two hosts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import faults
import pytest

from llmshearing.callbacks.watchdog import HUNG
from llmshearing.checkpoints import run_folder
from processes import TRAIN, Ranks, assert_close, free_port, metrics, run, write_config


@pytest.mark.world_size
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_all_and_is_named(tmp_path, data, table, rank):
    path = write_config(tmp_path, data)
    fault = partial(faults.kill_at, "after_forward", 3, rank, after=6)
    ranks = Ranks([path, "dist_timeout=20"], 2, fault)
    statuses = ranks.wait(120)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] > 0
    survivor = (ranks.log / f"{1 - rank}.txt").read_text()
    assert f"rank {rank} on " in survivor
    assert "DEAD or out of reach; when last heard of: after_forward of step 3" in survivor
    table("a rank dies in a step", "all end; the rank and its stage are named")


@pytest.mark.world_size
def test_a_rank_that_never_starts_ends_the_others(tmp_path, data, table):
    path = write_config(tmp_path, data)
    ranks = Ranks([path, "dist_timeout=5"], 1, env={"WORLD_SIZE": "2"})
    assert ranks.wait(120) == [2], ranks.output()[-3000:]
    assert "error: Rank 0 did not find all 2 processes within dist_timeout (5 s)" in ranks.output()
    assert "Traceback" not in ranks.output()
    table("a rank never starts", "the others end within dist_timeout, saying so")


@pytest.mark.world_size
def test_a_hang_ends_with_the_stacks_of_every_rank(tmp_path, data, table):
    path = write_config(tmp_path, data)
    fault = partial(faults.hang_at, "after_backward", 3, 1)
    ranks = Ranks([path, "dist_timeout=15"], 2, fault)
    assert ranks.wait(200) == [HUNG, HUNG], ranks.output()[-3000:]
    for rank in (0, 1):
        own = (ranks.log / f"{rank}.txt").read_text()
        assert "No progress for" in own
        assert f"Stacks of rank {rank}:" in own
        assert "most recent call first" in own
    assert "in sleep_for_ever" in (ranks.log / "1.txt").read_text()
    assert "rank 1 on" in (ranks.log / "0.txt").read_text()
    assert "after_backward of step 3" in (ranks.log / "0.txt").read_text()
    table("a rank hangs in a step", "all end within dist_timeout; stages and stacks are printed")


PATIENT = {"max_duration": "5ba", "eval_interval": "0ba", "save_interval": "1000ba", "dist_timeout": 12}


def ends_well(ranks):
    statuses = ranks.wait(200)
    assert not any(statuses), ranks.output()[-3000:]
    assert "No progress for" not in ranks.output()


@pytest.mark.world_size
def test_a_slow_save_is_not_a_hang(tmp_path, data, table):
    path = write_config(tmp_path, data, **PATIENT)
    ends_well(Ranks([path], 2, partial(faults.slow_disk, 15)))
    assert run_folder.latest_checkpoint(tmp_path).name == "ep0-ba5-rank0.pt"
    table("a save that takes longer than dist_timeout", "every byte counts as progress: the run goes on")


@pytest.mark.world_size
def test_suspended_run_continues(tmp_path, data, table):
    path = write_config(tmp_path, data, **{**PATIENT, "dist_timeout": 20})
    ranks = Ranks([path], 2, partial(faults.linger_at, "batch_start", 2, (0, 1), 10))
    end = time.monotonic() + 100
    while time.monotonic() < end and not ((tmp_path / "metrics.jsonl").exists() and 2 in metrics(tmp_path)):
        time.sleep(0.1)
    time.sleep(2.5)  # the watch has looked since the last progress
    ranks.signal(signal.SIGSTOP)
    time.sleep(16)
    ranks.signal(signal.SIGCONT)
    ends_well(ranks)
    table("SIGSTOP and SIGCONT, or a suspended machine", "the watch starts over: the run goes on")


@pytest.mark.world_size
def test_progress_while_ranks_are_asked_keeps_the_run_alive(tmp_path, data, table):
    path = write_config(tmp_path, data, **PATIENT)
    ends_well(Ranks([path], 2, partial(faults.linger_at, "after_backward", 3, (1,), 9.6)))
    table("a rank that was nearly given up", "goes on")


def test_a_process_alone_is_not_watched(tmp_path, data, table):
    path = write_config(tmp_path, data, **{**PATIENT, "dist_timeout": 2})
    ends_well(Ranks([path], 1, partial(faults.linger_at, "after_backward", 3, (0,), 5)))
    table("a long step of one process", "goes on: it waits for nobody")


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_not_finite_ends_the_run(tmp_path, data, table, world_size):
    path = write_config(tmp_path, data)
    ranks = Ranks([path], world_size, partial(faults.nan_at, 6))
    assert ranks.wait(200) == [2] * world_size, ranks.output()[-3000:]
    assert "Step 6 is not finite" in ranks.output()
    listed = re.search(r"gradient norm nan\. Its samples: (.*)\.", ranks.output())
    assert listed is not None
    assert len(re.findall(r"\d+(?=[,\]])", listed[1])) == 8, "of all ranks"
    assert "Traceback" not in ranks.output()
    assert run_folder.latest_checkpoint(tmp_path).name == "ep0-ba4-rank0.pt"
    table("a gradient turns into NaN", "ends with step, domains and samples; last checkpoint untouched")


def test_steps_that_are_not_finite_can_be_skipped(tmp_path, data, table):
    path = write_config(tmp_path, data)
    ranks = Ranks([path, "max_skipped_steps=1"], 1, partial(faults.nan_at, 6))
    assert ranks.wait(200) == [0], ranks.output()[-3000:]
    assert "Skipped, 1 of 1." in ranks.output()
    losses = [v["loss/train/ce_loss"] for v in metrics(tmp_path).values() if "loss/train/ce_loss" in v]
    assert len(losses) == 12
    assert all(loss == loss for loss in losses)
    table("a gradient turns into NaN, max_skipped_steps=1", "the step is skipped, the run ends well")


@pytest.mark.world_size
def test_nothing_that_a_killed_launch_leaves_stops_the_next(tmp_path, data, table):
    """The real command, on the same port both times; launcher and ranks get kill -9."""
    path = write_config(tmp_path, data)
    command = [
        sys.executable,
        "-m",
        "composer.cli.launcher",
        "--nproc",
        "2",
        "--master_port",
        str(free_port()),
    ]
    command += [str(TRAIN), path, "autoresume=true"]
    with (tmp_path / "log.txt").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 200
        while time.monotonic() < end and not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=400)
    assert max(metrics(tmp_path)) == 12
    assert not (tmp_path / ".incomplete").exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if path in command_line(p)]
    table(
        "composer launcher and ranks killed, launched again on the same port", "goes on; nothing left behind"
    )


def command_line(entry):
    try:
        return entry.read_text()
    except OSError:  # it has ended
        return ""


# ------------------------------------------------------------------ two hosts

HOSTS = {"shear-a": "10.77.0.1", "shear-b": "10.77.0.2"}


@pytest.fixture
def hosts():
    """Two network namespaces with an address each, joined by a pair of virtual interfaces."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    steps = [f"netns add {name}" for name in HOSTS]
    steps.append("link add shear-va netns shear-a type veth peer name shear-vb netns shear-b")
    for (name, address), device in zip(HOSTS.items(), ("shear-va", "shear-vb"), strict=True):
        steps += [f"-n {name} addr add {address}/24 dev {device}", f"-n {name} link set {device} up"]
        steps += [f"-n {name} link set lo up"]
    try:
        for step in steps:
            done = subprocess.run(["ip", *step.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
        yield list(HOSTS.values())
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def launch(launcher, node, address, port):
    """The command that a user gives on one of two nodes."""
    if launcher == "composer":
        command = [sys.executable, "-m", "composer.cli.launcher", "--nproc", "1", "--world_size", "2"]
        command += ["--base_rank", str(node), "--node_rank", str(node)]
        return [*command, "--master_addr", address, "--master_port", port, str(TRAIN)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2"]
    command += ["--node-rank", str(node), "--master-addr", address, "--master-port", port]
    return [*command, str(TRAIN)]


def in_namespaces(commands, log):
    """Run one command in each namespace at the same time; their statuses."""
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *command],
            env={**os.environ, "GLOO_SOCKET_IFNAME": device},
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
        )
        for name, device, command in zip(HOSTS, ("shear-va", "shear-vb"), commands, strict=True)
    ]
    return [process.wait(400) for process in processes]


def config_of_two_hosts(folder, data):
    return write_config(folder, data, model__l0_module__noise="shared", max_duration="6ba")


@pytest.mark.world_size
def test_two_hosts(tmp_path, data, table, hosts):
    """One process on each of two hosts equals one process on one; gloo goes over the wire between them."""
    run([config_of_two_hosts(tmp_path / "one", data)], timeout=200)
    for launcher in ("composer", "torchrun"):
        path = config_of_two_hosts(tmp_path / launcher, data)
        port, log = str(free_port()), tmp_path / f"{launcher}.txt"
        commands = [[*launch(launcher, node, hosts[0], port), path] for node in (0, 1)]
        assert in_namespaces(commands, log) == [0, 0], log.read_text()[-3000:]
        assert_close(tmp_path / "one", tmp_path / launcher)
        table(f"two hosts (network namespaces), {launcher}", "losses of one process to 1e-5")


FAKE_SLURM = {
    # srun: the same command on both nodes, which are namespaces here; the largest status of theirs.
    "srun": """#!/usr/bin/env bash
trap : USR1
shift
for node in 0 1; do
  [ $node = 0 ] && host=shear-a device=shear-va || { host=shear-b; device=shear-vb; }
  SLURM_NODEID=$node GLOO_SOCKET_IFNAME=$device ip netns exec $host "$@" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  while kill -0 $pid 2> /dev/null; do wait $pid && last=0 || last=$?; done # a signal interrupts a wait
  [ $last = 0 ] || status=$last
done
exit $status
""",
    "scontrol": """#!/usr/bin/env bash
[ "$1" = requeue ] && { touch "$FAKE_REQUEUED"; exit; }
echo 10.77.0.1; echo 10.77.0.2
""",
}


@pytest.mark.world_size
def test_slurm_script_on_two_hosts(tmp_path, data, table, hosts):
    """Slurm's own commands are stand-ins; the script, the launchers, the hosts and the signal are real."""
    for name, text in FAKE_SLURM.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = write_config(tmp_path / "run", data, max_duration="60ba", save_interval="1000ba")
    requeued = tmp_path / "requeued"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(TRAIN.parent),
        "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_NNODES": "2",
        "FAKE_REQUEUED": str(requeued),
    }
    command = ["bash", str(TRAIN.parent / "scripts/slurm.sbatch"), path]
    log = (tmp_path / "log.txt").open("w")
    job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 300
    while time.monotonic() < end and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGUSR1)  # as Slurm: to every process of the job
    text = "the log: " + (tmp_path / "log.txt").read_text()[-3000:]
    assert job.wait(300) == 75, text
    assert requeued.exists()
    saved = run_folder.latest_checkpoint(tmp_path / "run")
    assert saved is not None
    assert run_folder.step_of(saved) < 60
    table("Slurm's time limit on two hosts (scripts/slurm.sbatch)", "saved, exit status 75, queued again")
