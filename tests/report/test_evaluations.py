"""The tables of evaluations and of speed, where their files lie in the folders of the runs."""

from pathlib import Path

from runs_on_disk import write_run

from llmshearing.evaluation import results
from llmshearing.evaluation.results import Measured, Score
from llmshearing.report.page import render
from llmshearing.report.reading import read_run


def measured(name: str, value: float) -> Measured:
    score = Score("social_iqa", "acc", value, 0.01, 200)
    speeds = {"1 x 64": {"decode": 100 * value, "machine": "a <fast> one"}}
    return Measured(f"models/{name}", f"/m/{name}", "1", 1_000_000, {"social_iqa": score}, speeds)


def test_both_tables_are_shown_where_their_files_are(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("prune", "continue")]
    assert "What the models can do" not in render(runs)
    results.write(tmp_path / "prune" / "evaluation.json", [measured("source", 0.5), measured("cut", 0.4)])
    results.write(tmp_path / "continue" / "evaluation.json", [measured("continued", 0.45)])
    results.write(tmp_path / "prune" / "speed.json", [measured("source", 0.5), measured("cut", 1.0)])
    page = render(runs)
    assert "<th>source</th><th>cut</th><th>continued</th>" in page
    assert "<td>50.0 ± 1.0</td><td>40.0 ± 1.0</td><td>45.0 ± 1.0</td>" in page
    assert "<td>share of the first</td><td></td><td>100.0%</td><td>80.0%</td><td>90.0%</td>" in page
    assert "<td>100 (2.00x)</td>" in page
    assert "a &lt;fast&gt; one" in page
