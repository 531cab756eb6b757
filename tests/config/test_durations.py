"""Durations: one parser, and the steps they come to."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.config import Config, build
from llmshearing.config.durations import UNITS, Duration, batches, fits, parse, steps_in
from llmshearing.planning.sizes import settle, settled


@given(number=st.integers(0, 10**12), unit=st.sampled_from(["ba", "tok", "sp", "ep"]))
def test_a_duration_is_a_number_and_a_unit(number: int, unit: str) -> None:
    assert parse(f"{number}{unit}") == Duration(Fraction(number), unit)
    assert fits(f"{number}{unit}", (unit,))
    assert not fits(f"{number}{unit}", tuple(other for other in UNITS if other != unit))


@pytest.mark.parametrize(
    "text", ["", "ba", "3.5ba", "-3ba", "1.5dur", "1e3ba", "3 ba", "3min", "9" * 13 + "ba", "٣ba"]
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a duration; expected a whole number and a unit out of ba, tok"
    ):
        parse(text)


@given(
    batch=st.integers(1, 300),
    seq_len=st.integers(2, 5000),
    number=st.integers(1, 10**6),
    epoch=st.integers(1, 10**6),
)
def test_steps_hold_at_least_the_duration_and_not_a_step_more(
    batch: int, seq_len: int, number: int, epoch: int
) -> None:
    per_step = {"ba": 1, "sp": batch, "tok": batch * seq_len}
    for unit, each in per_step.items():
        steps = steps_in(f"{number}{unit}", batch, seq_len)
        assert (steps - 1) * each < number <= steps * each
    steps = steps_in(f"{number}ep", batch, seq_len, epoch)
    assert (steps - 1) * batch < number * epoch <= steps * batch


@pytest.mark.parametrize(
    ("text", "steps"), [("0.29dur", 29), ("0.295dur", 29), ("1dur", 100), (".5dur", 50), ("0dur", 0)]
)
def test_a_part_of_a_run_is_exact_and_rounded_down(text: str, steps: int) -> None:
    assert steps_in(text, 8, 16, steps=100) == steps


def test_what_a_unit_counts_in_must_be_known() -> None:
    with pytest.raises(ValueError, match="1ep is in epochs, but how much data there is is not known"):
        steps_in("1ep", 8, 16)
    with pytest.raises(ValueError, match=r"0.1dur is a part of a run whose length is not known"):
        steps_in("0.1dur", 8, 16)


def test_batches_are_read_with_and_without_unit() -> None:
    assert (batches("640ba"), batches("640"), batches(640)) == (640, 640, 640)
    with pytest.raises(ValueError, match="'640tok' is not in batches; expected a duration such as 640ba"):
        batches("640tok")


def config(**durations: str) -> Config:
    loader = {"dataset": {"local": "data", "max_seq_len": 16}}
    values = {"train_loader": loader, "global_train_batch_size": 8, "max_seq_len": 16, "max_duration": "1ep"}
    warmup, lagrangian = durations.pop("t_warmup", "0ba"), durations.pop("lagrangian", "0ba")
    values |= {
        "scheduler": {"t_warmup": warmup},
        "model": {"l0_module": {"lagrangian_warmup_steps": lagrangian}},
    }
    return build(Config, values | durations)


def shown(config: Config) -> tuple[str, ...]:
    l0 = config.model.l0_module
    assert l0 is not None
    run = (config.max_duration, config.eval_interval, config.save_interval)
    return (*run, config.scheduler.t_warmup, l0.lagrangian_warmup_steps)


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        (
            {"max_duration": "2ep", "eval_interval": "1ep", "save_interval": "1ep"},
            ("25ba", "13ba", "13ba", "0ba", "0ba"),
        ),
        (
            {"t_warmup": "1ep", "lagrangian": "0.5dur", "max_duration": "4ep"},
            ("50ba", "0ba", "1000ba", "13ba", "25ba"),
        ),
        ({"max_duration": "1290tok", "t_warmup": "3ba"}, ("11ba", "0ba", "1000ba", "3ba", "0ba")),
        ({"max_duration": "1290tok", "t_warmup": "0.1dur"}, ("1290tok", "0ba", "1000ba", "0.1dur", "0ba")),
        (
            {"max_duration": "80sp", "t_warmup": "16sp", "lagrangian": "300tok"},
            ("80sp", "0ba", "1000ba", "16sp", "3ba"),
        ),
        ({"max_duration": "12ba", "lagrangian": "4"}, ("12ba", "0ba", "1000ba", "0ba", "4ba")),
    ],
)
def test_a_run_takes_batches_where_nothing_else_will_do(
    durations: dict[str, str], expected: tuple[str, ...]
) -> None:
    """An epoch is 100 sequences here, and a step 8 of 16 tokens."""
    before = config(**durations)
    after = settled(before, 100)
    assert shown(after) == expected
    assert before == config(**durations)
    settle(before, 100)
    assert before == after


def test_epochs_stay_where_the_data_was_not_found() -> None:
    assert shown(settled(config(eval_interval="1ep"), None))[:2] == ("1ep", "1ep")
