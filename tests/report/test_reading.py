"""Reading a run's folder, finished or in the middle of being written."""

from pathlib import Path

import pytest
from runs_on_disk import SHAPE, TARGET, write_run

from llmshearing.report.reading import read_metrics, read_run


def test_reads_what_a_run_left(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "prune", steps=40, interval=10))
    assert (run.name, run.steps, run.tokens_per_step, run.prunes) == ("prune", 40, 8 * 16, True)
    assert run.source.d_model == SHAPE["d_model"]
    assert run.target is not None
    assert run.target.n_layers == TARGET["n_layers"]
    assert list(run.mask_files) == [10, 20, 30, 40]
    assert run.masks(10)["head"].shape == (4, 8)
    evaluated = run.domain_metric("books", "loss")
    assert evaluated is not None
    assert evaluated.steps.tolist() == [10, 20, 30, 40]


def test_leaves_out_a_line_that_is_being_written_and_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": NaN, "b": 1}\n{"step": 3, "a": 5}\n{"step": 2, "a": 4}\n{"step": 4, "a"'
    )
    metrics = read_metrics(path)
    assert (metrics["a"].steps.tolist(), metrics["a"].values.tolist()) == ([2, 3], [4.0, 5.0])
    assert metrics["b"].values.tolist() == [1.0]


def test_of_two_values_at_a_step_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 3}\n{"step": 1, "a": 7}\n')
    assert read_metrics(path)["a"].values.tolist() == [7.0]


def test_refuses_broken_lines_and_folders_of_no_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not JSON"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError, match=r"config.yaml; expected the save_folder of a run"):
        read_run(tmp_path)
