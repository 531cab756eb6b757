"""What the watchdog counts as progress, what it says of other ranks, and when it ends the process.

Time is a number here that waiting moves on; nothing depends on how busy the machine is.
"""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from composer.core import Event
from composer.utils import dist

from llmshearing.callbacks import watchdog
from llmshearing.callbacks.watchdog import HUNG, Watchdog
from stubs import NO_LOGGER, state

TIMEOUT = 100  # seconds: a look every 5, and the end after 70 without progress


class Clock:
    """The time, which only waiting moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Store(dict[str, str]):
    """The key-value store of three ranks; those in `beating` renew their note whenever it is read."""

    def __init__(self, beating: set[int], age: float = 3.0) -> None:
        super().__init__()
        self.beating, self.age = beating, age
        for rank in range(3):
            self.note(rank, 0.0)

    def note(self, rank: int, beat: float) -> None:
        fields = {"beat": beat, "stage": f"stage {rank}", "age": self.age, "host": f"host{rank}", "pid": 7}
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


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    time = SimpleNamespace(monotonic=made.read, time=made.read, sleep=made.wait)
    monkeypatch.setattr(watchdog, "time", time)
    return made


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)


def looks(
    dog: Watchdog, clock: Clock, count: int, between: Callable[[int], None] = lambda look: None
) -> bool:
    """Whether the watchdog gave up within `count` looks; `between` happens before each of them."""
    given_up, looked = [], iter(range(count))

    def wait(seconds: float) -> bool:
        look = next(looked, None)
        if look is None or given_up:
            return True
        clock.wait(seconds)
        between(look)
        return False

    dog._stop.wait = wait  # type: ignore[method-assign]
    dog._give_up = lambda: given_up.append(True)  # type: ignore[method-assign]
    dog._watch()
    return bool(given_up)


@pytest.mark.parametrize(("count", "ends"), [(14, False), (15, True)])
def test_gives_up_after_most_of_the_timeout_without_progress(clock, count, ends):
    assert looks(Watchdog(TIMEOUT), clock, count) == ends


def test_every_event_is_progress(clock):
    dog = Watchdog(TIMEOUT)

    def event(look: int) -> None:
        if look == 10:
            dog.run_event(Event.AFTER_BACKWARD, state(3), NO_LOGGER)

    assert not looks(dog, clock, 24, event)
    assert "rank 0 (this one): after_backward of step 3, 65 s before" in dog.explain()


def test_bytes_of_a_checkpoint_are_progress(clock, tmp_path):
    def write(look: int) -> None:
        (tmp_path / "part").write_bytes(b"1" * look)

    assert not looks(Watchdog(TIMEOUT, tmp_path), clock, 40, write)
    assert looks(Watchdog(TIMEOUT, tmp_path), clock, 40)


def test_a_process_that_was_stopped_starts_over(clock):
    def stop(look: int) -> None:
        if look == 10:
            clock.wait(1000)

    assert not looks(Watchdog(TIMEOUT), clock, 24, stop)


@pytest.mark.parametrize(
    ("beating", "age", "ends"), [({1}, 3.0, False), ({1}, 60.0, True), (set(), 3.0, True)]
)
def test_waits_as_long_as_another_rank_lives_and_progresses(clock, ranks, beating, age, ends):
    dog = Watchdog(TIMEOUT)
    dog._store = Store(beating, age)
    assert looks(dog, clock, 40) == ends


def test_giving_up_prints_stages_and_stacks_and_ends_with_its_own_status(clock, monkeypatch, capfd):
    dog = Watchdog(TIMEOUT)
    dog.run_event(Event.BATCH_START, state(4), NO_LOGGER)
    dog._progressed()  # seen
    dog._age = 71
    ends = []
    monkeypatch.setattr(watchdog.os, "_exit", ends.append)
    dog._give_up()
    text = capfd.readouterr().err
    assert ends == [HUNG]
    assert "No progress for 71 s (dist_timeout is 100)" in text
    assert "batch_start of step 4, 71 s before" in text
    assert "Stacks of rank 0:" in text
    assert "_give_up" in text, "the stack that gave up is among them"


def test_progress_while_the_ranks_are_asked_saves_the_process(clock, monkeypatch, capfd):
    dog = Watchdog(TIMEOUT)
    dog._age = 71
    monkeypatch.setattr(watchdog.os, "_exit", lambda status: pytest.fail("ended"))
    monkeypatch.setattr(dog, "explain", dog.beat)
    dog._give_up()
    assert dog._age == 0
    assert not capfd.readouterr().err


def test_dead_ranks_are_distinguished_from_those_that_wait(clock, ranks):
    dog = Watchdog(TIMEOUT)
    dog._store = Store(beating={1})
    own, one, two = dog.explain().splitlines()
    assert own.startswith("  rank 0 (this one)")
    assert one == "  rank 1 on host1, process 7: stage 1, 3 s before"
    assert (
        two == "  rank 2 on host2, process 7: DEAD or out of reach; when last heard of: stage 2, 3 s before"
    )


def test_when_the_store_is_gone_the_last_note_of_its_rank_is_what_is_known(clock, ranks, monkeypatch):
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    dog = Watchdog(TIMEOUT)
    dog._store = Store(beating=set())
    dog._exchange()
    dog._store = Gone(beating=set())
    own, first = dog.explain().splitlines()
    assert own.startswith("  rank 1 (this one)")
    assert first.startswith("  rank 0 on host0, process 7: DEAD")
    assert dog._store is None


def test_one_process_is_not_watched():
    dog = Watchdog(TIMEOUT)
    dog.init(state(), NO_LOGGER)
    assert not dog._thread.is_alive()
    dog.close(state(), NO_LOGGER)
