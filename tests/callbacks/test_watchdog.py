"""What the watchdog notes, what it says of other ranks, and when it ends the process."""

import json
import time

import pytest
from composer.core import Event
from composer.utils import dist

from llmshearing.callbacks import watchdog
from llmshearing.callbacks.watchdog import HUNG, Watchdog
from stubs import NO_LOGGER, state


class Store(dict[str, str]):
    """The key-value store of the ranks; `beating` ranks renew their note whenever it is read."""

    def __init__(self, beating: set[int]) -> None:
        super().__init__()
        self.beating = beating
        for rank in (1, 2):
            self.note(rank, 0.0)

    def note(self, rank: int, beat: float) -> None:
        fields = {"beat": beat, "stage": f"stage {rank}", "age": 3.0, "host": f"host{rank}", "pid": 7}
        self.set(f"llmshearing/watchdog/{rank}", json.dumps(fields))

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def get(self, key: str) -> str:  # type: ignore[override]
        for rank in self.beating:
            if key.endswith(f"/{rank}"):
                self.note(rank, json.loads(self[key])["beat"] + 1)
        return self[key]


class Gone(Store):
    """A store whose process has ended."""

    def get(self, key: str) -> str:
        raise RuntimeError("connection reset")


def watching(timeout: float = 0.02) -> Watchdog:
    return Watchdog(timeout)


def test_every_event_is_a_sign_of_life():
    dog = watching()
    dog._since -= 100
    dog.run_event(Event.AFTER_BACKWARD, state(3), NO_LOGGER)
    assert time.monotonic() - dog._since < 50
    assert "rank 0 (this one): after_backward of step 3, 0 s before" in dog.explain()


@pytest.mark.parametrize(("silent", "ends"), [(0.65, False), (0.75, True)])
def test_a_process_ends_when_it_made_no_progress_for_most_of_the_timeout(monkeypatch, silent, ends):
    dog = watching(timeout=1000)
    dog._since = time.monotonic() - silent * 1000
    waits = iter([False, True])  # one look, then the run is over
    monkeypatch.setattr(dog._stop, "wait", lambda beat: next(waits))
    given_up = []
    monkeypatch.setattr(dog, "_give_up", lambda: given_up.append(True))
    dog._watch()
    assert bool(given_up) == ends


def test_giving_up_prints_the_stages_and_the_stacks_and_ends_with_its_own_status(monkeypatch, capfd):
    dog = watching()
    dog.run_event(Event.BATCH_START, state(4), NO_LOGGER)
    ends = []
    monkeypatch.setattr(watchdog.os, "_exit", ends.append)
    dog._give_up()
    text = capfd.readouterr().err
    assert ends == [HUNG]
    assert "No progress for" in text
    assert "batch_start of step 4" in text
    assert "Stacks of rank 0:" in text
    assert "_give_up" in text, "the stack that gave up is among them"


def test_dead_ranks_are_told_from_those_that_wait(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    dog = watching()
    dog._store = Store(beating={1})
    dog._exchange()  # as at the start of a run
    first, one, two = dog.explain().splitlines()
    assert first.startswith("  rank 0 (this one)")
    assert one == "  rank 1 on host1, process 7: stage 1, 3 s before"
    assert two.startswith("  rank 2 on host2, process 7: DEAD")
    assert two.endswith("stage 2, 3 s before")


def test_when_the_store_is_gone_the_last_note_of_its_rank_is_what_is_known(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    dog = watching()
    store = Store(beating=set())
    store.set("llmshearing/watchdog/0", store.get("llmshearing/watchdog/2"))
    dog._store = store
    dog._exchange()
    dog._store = Gone(beating=set())
    own, first = dog.explain().splitlines()
    assert own.startswith("  rank 1 (this one)")
    assert first.startswith("  rank 0 on host2, process 7: DEAD")
    assert dog._store is None


def test_one_process_needs_no_store_and_its_thread_ends_with_the_run():
    dog = watching(timeout=1000)
    dog.init(state(), NO_LOGGER)
    assert dog._thread.is_alive()
    dog.close(state(), NO_LOGGER)
    assert not dog._thread.is_alive()
    assert dog._store is None
