"""The cluster wants its machine back: save at the end of the step, exit with 75, go on later."""

import signal
import time

import pytest

from llmshearing.callbacks.signals import INTERRUPTED
from llmshearing.checkpoints import run_folder
from processes import Ranks, assert_same, metrics, run, write_config

SETTINGS = {"max_duration": "30ba", "eval_interval": "10ba", "save_interval": "1000ba"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("whole")
    run([write_config(folder, data, **SETTINGS)], 2, timeout=300)
    return folder


@pytest.mark.world_size
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_signal_saves_and_the_next_launch_resumes(tmp_path, data, table, whole, number):
    path = write_config(tmp_path, data, **SETTINGS)
    ranks = Ranks([path, "autoresume=true"], 2)
    end = time.monotonic() + 200
    while time.monotonic() < end and not ((tmp_path / "metrics.jsonl").exists() and metrics(tmp_path)):
        time.sleep(0.02)
    if number == signal.SIGUSR1:
        ranks.signal(number)  # Slurm: every process of the job
    else:
        ranks.processes[1].terminate()  # one rank is enough
    assert ranks.wait(200) == [INTERRUPTED, INTERRUPTED], ranks.output()[-3000:]
    saved = run_folder.latest_checkpoint(tmp_path)
    assert saved is not None
    assert 0 < run_folder.step_of(saved) < 30
    run([path, "autoresume=true"], 2, timeout=300)
    assert_same(whole, tmp_path)
    table(f"{number.name} in a run of 2 processes", "saved, exit status 75, equal to the bit")
