"""When a run saves, what it keeps, and what a failed save leaves behind."""

import errno
from types import SimpleNamespace

import pytest
import torch
from composer.core import Time, Timestamp

from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.safe_load import load_tensors
from stubs import NO_LOGGER, state

STATE = {
    "model": {"model.w": torch.arange(3.0)},
    "optimizers": {"AdamW": {}},
    "callbacks": {"RunRecord": {"config": "seed: 1"}, "Other": {"a": 1}},
}


def at(step, steps=100):
    return state(
        step,
        previous_timestamp=Timestamp(batch=step - 1) if step else None,
        get_elapsed_duration=lambda: step / steps,
        state_dict=lambda: dict(STATE),
        train_dataloader=SimpleNamespace(batch_size=8),
        device_train_microbatch_size=4,
        max_duration=Time.from_batch(steps),
        get_model_state_dict=lambda: STATE["model"],
    )


def callback(folder, interval="2ba", keep=-1, weights_only=False):
    made = Checkpointing(folder, interval, keep, weights_only, sharded=False)
    made.fit_start(at(0), NO_LOGGER)
    return made


def run(saving, last):
    """Steps 1 to `last`, of which `last` ends the run."""
    for step in range(1, last + 1):
        saving.batch_checkpoint(at(step, last), NO_LOGGER)
    saving.fit_end(at(last, last), NO_LOGGER)


def saved_steps(folder):
    return sorted(run_folder.step_of(path) for path in run_folder.checkpoints(folder))


def test_saves_at_every_interval_and_at_the_end(tmp_path):
    run(callback(tmp_path), 5)
    assert saved_steps(tmp_path) == [2, 4, 5]
    assert run_folder.latest_checkpoint(tmp_path).name == "ep0-ba5-rank0.pt"
    assert not run_folder.damage(tmp_path / "ep0-ba5-rank0.pt", ["ep0-ba5-rank0.pt"])


def test_the_end_of_the_data_between_two_intervals_is_saved_once(tmp_path, monkeypatch):
    saving = callback(tmp_path, "10ba")
    saving.batch_checkpoint(at(3), NO_LOGGER)
    assert saved_steps(tmp_path) == []
    writes = []
    write = saving._write_whole
    monkeypatch.setattr(saving, "_write_whole", lambda *a: writes.append(1) or write(*a))
    saving.fit_end(at(3), NO_LOGGER)
    saving.fit_end(at(3), NO_LOGGER)
    assert (saved_steps(tmp_path), writes) == ([3], [1])


def test_a_run_resumed_at_its_end_saves_nothing_new(tmp_path):
    saving = Checkpointing(tmp_path, "2ba", -1, weights_only=False, sharded=False)
    saving.fit_start(at(6), NO_LOGGER)
    saving.fit_end(at(6), NO_LOGGER)
    assert saved_steps(tmp_path) == []


def test_only_the_last_ones_are_kept(tmp_path):
    run(callback(tmp_path, keep=2), 8)
    assert saved_steps(tmp_path) == [6, 8]


@pytest.mark.parametrize(
    ("weights_only", "keys"), [(False, ["division", "max_duration", "rng", "state"]), (True, ["state"])]
)
def test_a_checkpoint_holds_the_state_or_the_weights_with_their_record(tmp_path, weights_only, keys):
    callback(tmp_path, weights_only=weights_only).save(at(1))
    contents = load_tensors(tmp_path / run_folder.LATEST)
    assert sorted(contents) == keys
    assert torch.equal(contents["state"]["model"]["model.w"], STATE["model"]["model.w"])
    assert contents.get("division") == (None if weights_only else {"processes": 1, "microbatch": 4})
    assert contents["state"]["callbacks"]["RunRecord"] == {"config": "seed: 1"}
    assert ("optimizers" in contents["state"]) != weights_only
    assert ("Other" in contents["state"]["callbacks"]) != weights_only


def test_a_failed_save_ends_the_run_with_the_reason_and_keeps_what_was_there(tmp_path, monkeypatch):
    saving = callback(tmp_path)
    saving.save(at(2))

    def fail(contents, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "_write_whole", fail)
    with pytest.raises(OSError, match=r"checkpoint of step 4.*No space left on device"):
        saving.batch_checkpoint(at(4), NO_LOGGER)
    assert saved_steps(tmp_path) == [2]
    assert not run_folder.place_of_writing(tmp_path).exists()
