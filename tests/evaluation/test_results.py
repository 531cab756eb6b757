"""What is kept, what is reused, and the table."""

import math
import subprocess
import sys

import pytest

from llmshearing.evaluation import results
from llmshearing.evaluation.results import Measured, Score


def measured(name, **scores):
    found = {
        task: Score(task, "acc", value, 0.02, 100) for task, value in scores.items() if task != "perplexity"
    }
    if "perplexity" in scores:
        found["text: a"] = Score("text: a", "perplexity", scores["perplexity"], math.nan, 9)
    return Measured(f"models/{name}", f"/models/{name}", "1", 2_500_000, found)


def test_means_and_shares_are_over_the_tasks_that_all_have():
    models = [measured("a", x=0.8, y=0.4, z=0.5, perplexity=12.0), measured("b", x=0.6, y=0.3)]
    head, rows = results.score_rows(models, ["y", "x", "z", "text: a"])
    assert head == ["task", "metric", "a", "b"]
    assert rows == [
        ["y", "acc", "40.0 ± 2.0", "30.0 ± 2.0"],
        ["x", "acc", "80.0 ± 2.0", "60.0 ± 2.0"],
        ["z", "acc", "50.0 ± 2.0", ""],
        ["mean of 2", "", "60.0 ± 1.4", "45.0 ± 1.4"],
        ["share of the first", "", "100.0%", "75.0%"],
        ["text: a", "perplexity", "12.0", ""],
        ["parameters", "", "2.5M", "2.5M"],
    ]
    assert results.as_text(head, rows).splitlines()[0].startswith("task   ")


def test_results_come_back_as_they_were_written(tmp_path):
    models = [measured("a", x=0.5, perplexity=3.0), Measured("b", "/b", "2")]
    results.write(tmp_path / "e.json", models)
    assert repr(results.read(tmp_path / "e.json")) == repr(models)  # NaN is not equal to itself
    assert results.read(tmp_path / "none.json") == []


def test_what_another_process_kept_meanwhile_stays(tmp_path):
    path = tmp_path / "new" / "e.json"
    results.keep(path, measured("a", x=0.5))
    results.keep(path, measured("b", x=0.7))
    results.keep(path, measured("a", y=0.2))  # by a process that began before the others
    assert {each.place: list(each.scores) for each in results.read(path)} == {
        "/models/a": ["x", "y"],
        "/models/b": ["x"],
    }
    assert [file.name for file in path.parent.iterdir()] == ["e.json"]


KEEPER = """
import sys
from pathlib import Path
from llmshearing.evaluation.results import Measured, keep

for number in range(20):
    keep(Path(sys.argv[1]), Measured("m", f"/{sys.argv[2]}/{number}", "1"))
"""


def test_processes_that_keep_at_the_same_time_lose_nothing(tmp_path):
    command = [sys.executable, "-c", KEEPER, str(tmp_path / "e.json")]
    running = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(results.read(tmp_path / "e.json")) == 60
    assert [file.name for file in tmp_path.iterdir()] == ["e.json"]


def test_a_model_whose_files_changed_loses_its_results():
    models = [measured("a", x=0.5), measured("b", x=0.5)]
    assert results.entry(models, "a", "/models/a", "1").scores
    assert not results.entry(models, "a", "/models/a", "2").scores
    assert not results.entry(models, "c", "/models/c", "1").scores
    assert [each.place for each in models] == ["/models/a", "/models/b", "/models/c"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"models": [{"name": 1}]}', "{"])
def test_a_file_that_holds_something_else_is_rejected(text, tmp_path):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(ValueError, match="does not hold results as this package writes them"):
        results.read(tmp_path / "e.json")


def test_the_report_takes_each_model_of_several_folders_once(tmp_path):
    for folder, models in {
        "one": [measured("a", x=0.5)],
        "two": [measured("a", y=0.2), measured("b")],
    }.items():
        results.write(tmp_path / folder / "evaluation.json", models)
    found = results.in_folders([tmp_path / name for name in ("one", "two", "three")], "evaluation.json")
    assert [each.place for each in found] == ["/models/a", "/models/b"]
    assert results.tasks_of(found) == ["x", "y"]


def test_names_lose_the_folders_that_they_share():
    assert results.short_names(["runs/a/x", "runs/a/y"]) == ["x", "y"]
    assert results.short_names(["/m/a", "hub/name"]) == ["/m/a", "hub/name"]
    assert results.short_names(["a/b/model"]) == ["model"]
