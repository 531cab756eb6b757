"""A plan compares every schedule with the length of the run, in whatever unit either is given."""

from pathlib import Path

import pytest

from llmshearing.planning.prepared import prepare
from runs import run_config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_warm_up_as_long_as_the_run_is_a_warning(data: Path) -> None:
    config = run_config(data, scheduler__t_warmup="12ba", model__l0_module__lagrangian_warmup_steps="13ba")
    assert [warning.split(" is ")[0] for warning in prepare(config).warnings] == [
        "scheduler.t_warmup",
        "model.l0_module.lagrangian_warmup_steps",
    ]


@pytest.mark.parametrize(
    ("interval", "run", "last"),
    [
        ("5ba", "12ba", "2ba + 2 x 5ba"),
        ("640tok", "12ba", "2ba + 2 x 640tok"),
        ("639tok", "12ba", "2ba + 2 x 639tok"),  # in whole batches of 128 tokens
        ("40sp", "1536tok", "2ba + 2 x 40sp"),
        ("0.42dur", "96sp", "2ba + 2 x 0.42dur"),
        ("1ep", "44ba", "2ba + 2 x 1ep"),  # of 21 batches
        ("2ba", "6ba", "3 x 2ba"),
        *(("4ba", "12ba", None), ("512tok", "12ba", None), ("0.41dur", "12ba", None), ("1ep", "45ba", None)),
    ],
)
def test_a_schedule_of_cuts_that_ends_after_the_run_is_a_warning_in_any_unit(
    data: Path, interval: str, run: str, last: str | None
) -> None:
    section = {"n_layers": 2, "warm_steps": "2ba", "layers_per_cut": 1, "interval": interval}
    settings = {"model__n_layers": 5, "model__layerchop": section, "max_duration": run}
    found = prepare(run_config(data, prune=False, **settings)).warnings
    assert [each.split(",")[0] for each in found] == (
        [f"The last cut of model.layerchop is {last}"] if last else []
    )


def test_a_warm_up_in_epochs_is_compared_with_the_run(data: Path) -> None:
    (found,) = prepare(run_config(data, model__l0_module__lagrangian_warmup_steps="1ep")).warnings
    assert "lagrangian_warmup_steps is 1ep, but the run ends after 12 steps" in found
