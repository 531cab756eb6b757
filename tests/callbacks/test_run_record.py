"""The record of a run in its checkpoints."""

from llmshearing.callbacks.run_record import RunRecord


def test_a_checkpoint_carries_the_record_and_a_resumed_run_keeps_its_own():
    before = {"config": "max_duration: 4ba", "hf_files": {"config.json": "{}"}, "data": None}
    now = {**before, "config": "max_duration: 8ba"}
    assert RunRecord(before).state_dict() == before
    resumed = RunRecord(now)
    resumed.load_state_dict(RunRecord(before).state_dict())
    assert resumed.state_dict() == now
