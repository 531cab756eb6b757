"""Lines of progress: what they say, when they come, and that their rate and time left are right."""

import io
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Time, Timestamp

from llmshearing import building, training
from llmshearing.callbacks import progress_lines
from llmshearing.callbacks.progress_lines import ProgressLines, evaluation_line, step_line
from runs import DOMAINS, run_config, write_data


def at_step(step: int, steps: int, tokens: int) -> Any:
    """What the logger reads of Composer's state."""
    timestamp = Timestamp(batch=step, token=tokens)
    elapsed = Time(step / steps, "dur")
    return SimpleNamespace(timestamp=timestamp, get_elapsed_duration=lambda: elapsed)


def test_line_of_a_pruning_step() -> None:
    values = {
        "loss/train/ce_loss": torch.tensor(2.15342),
        "loss/train/lag_loss": -0.01234,
        "metrics/train/expected_sparsity": 0.0314,
        "metrics/train/target_sparsity": 0.034,
    }
    line = step_line(20, 3200, values, 14751.6, timedelta(seconds=28262))
    assert line == (
        "step    20/3200  loss 2.1534  lagrangian -0.0123  sparsity 0.031 of 0.034     14,752 tokens/s  "
        "7:51:02 left"
    )


def test_line_of_a_training_step_has_no_masks() -> None:
    line = step_line(7, 10, {"loss/train/ce_loss": 3.0}, 10.0, timedelta(0))
    assert "lagrangian" not in line
    assert "sparsity" not in line


def test_line_of_an_evaluation_names_every_domain() -> None:
    values = {"metrics/eval/LanguageCrossEntropy": 2.5, "metrics/eval/wiki_LanguageCrossEntropy": 3.0}
    assert evaluation_line(50, values) == "evaluation after step 50: loss 2.5000  wiki 3.0000"


def test_rate_leaves_evaluations_out_and_time_left_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress_lines, "time", SimpleNamespace(monotonic=lambda: clock.now))
    lines = ProgressLines("2ba", stream)
    lines.log_metrics({"loss/train/ce_loss": 1.0})
    lines.fit_start(at_step(0, 8, 0), None)  # type: ignore[arg-type]
    clock.now = 1.0
    lines.batch_end(at_step(1, 8, 100), None)  # type: ignore[arg-type]
    lines.eval_start(at_step(1, 8, 100), None)  # type: ignore[arg-type]
    clock.now = 9.0
    lines.eval_end(at_step(1, 8, 100), None)  # type: ignore[arg-type]
    clock.now = 10.0
    lines.batch_end(at_step(2, 8, 200), None)  # type: ignore[arg-type]
    evaluation, step = stream.getvalue().splitlines()
    assert evaluation.startswith("evaluation after step 1")
    assert step.startswith("step  2/8 ")
    assert "100 tokens/s" in step  # 200 tokens in 2 seconds of training
    assert step.endswith("0:00:30 left")  # 6 steps at 5 seconds each


@pytest.mark.parametrize(("rank", "steps"), [(0, ["4", "8", "10"]), (1, [])])
def test_rank_0_writes_at_the_interval_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, rank: int, steps: list[str]
) -> None:
    monkeypatch.setattr(progress_lines.dist, "get_global_rank", lambda: rank)
    stream = io.StringIO()
    lines = ProgressLines("4ba", stream)
    lines.fit_start(at_step(0, 10, 0), None)  # type: ignore[arg-type]
    for step in range(1, 11):
        lines.batch_end(at_step(step, 10, step), None)  # type: ignore[arg-type]
    assert re.findall(r"step +(\d+)/10", stream.getvalue()) == steps


def test_run_without_a_terminal_writes_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    config = run_config(data, max_duration="6ba", console_log_interval="2ba", log_to_console=True)
    training.train(config)
    written = capfd.readouterr().err.splitlines()
    steps = [line for line in written if line.startswith("step ")]
    assert [re.findall(r"\d+/6", line)[0] for line in steps] == ["2/6", "4/6", "6/6"]
    assert len({line.index("tokens/s") for line in steps}) == 1
    evaluations = [line for line in written if line.startswith("evaluation after step 4")]
    assert len(evaluations) == 1
    assert all(f"{domain} " in evaluations[0] for domain in DOMAINS)
    assert all("lagrangian" in line and "sparsity" in line for line in steps)


@pytest.mark.parametrize(
    ("bar", "console", "terminal", "lines"),
    [(True, False, True, 0), (True, False, False, 1), (False, True, True, 1), (False, False, False, 0)],
)
def test_either_bar_or_lines(
    bar: bool, console: bool, terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building.sys.stderr, "isatty", lambda: terminal, raising=False)
    config = run_config(Path("nowhere"), progress_bar=bar, log_to_console=console)
    assert sum(isinstance(made, ProgressLines) for made in building.build_loggers(config)) == lines


def test_first_evaluation_before_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    config = run_config(data, max_duration="1ba", eval_first=True, log_to_console=True)
    training.train(config)
    assert "evaluation after step 0: loss" in capfd.readouterr().err
