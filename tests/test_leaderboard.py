"""The leaderboard: cells from a file, their runs, what they measure and how it is shown."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from benchmarks.evidence import PAGES, TABLES, filled, parts
from benchmarks.leaderboard.cells import finished, measured, run_all
from benchmarks.leaderboard.page import block, loss_at
from benchmarks.leaderboard.plan import read_leaderboard

# Stands for a training run: writes the metrics and configuration of one whose loss is LR + SEED / 1000.
TRAIN = """
import json, pathlib, sys
folder, loss = pathlib.Path(sys.argv[1]), float(sys.argv[2]) + float(sys.argv[3]) / 1000
if len(sys.argv) > 4 and pathlib.Path(sys.argv[4]).exists(): sys.exit("no room")
folder.mkdir(parents=True)
(folder / "config.yaml").write_text("global_train_batch_size: 2\\nmax_seq_len: 4\\n")
lines = [
    {"step": 0, "metrics/eval/LanguageCrossEntropy": 9.0, "metrics/eval/web_LanguageCrossEntropy": 9.0},
    {"step": 0, "time/train": 1 / 3600},
    {"step": 9, "time/train": 10 / 3600},
    {"step": 10, "metrics/eval/LanguageCrossEntropy": loss, "metrics/eval/web_LanguageCrossEntropy": loss},
]
(folder / "metrics.jsonl").write_text("\\n".join(map(json.dumps, lines)))
with open(folder.parents[4] / "ran", "a") as file: file.write(str(folder) + "\\n")
"""


@pytest.fixture
def board(tmp_path):
    """A leaderboard's file with two methods, two trials and two seeds."""
    (tmp_path / "train.py").write_text(TRAIN)
    values = {
        "title": "Tiny",
        "out": str(tmp_path / "out"),
        "seeds": [1, 2],
        "domains": ["web"],
        "targets": {"half": {"width": {"d_model": 8}}},
        "trials": [{"lr": 3}, {"lr": 2}],
        "define": {"train": f"python {tmp_path}/train.py {{cell}}/train {{lr}} {{seed}}"},
        "prepare": [f'{sys.executable} -c \'open("{tmp_path}/out/prepared", "a").write("x")\''],
        "methods": [
            {"name": name, "about": name, "shape": "width", "commands": [command], "runs": ["train"]}
            for name, command in {"good": "{train}", "frail": f"{{train}} {tmp_path}/full"}.items()
        ],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_every_method_chooses_among_the_trials_by_the_first_seed(board):
    cells = run_all(read_leaderboard(board), jobs=2)
    chosen = [(c["method"], c["trial"], c["seed"]) for c in cells if c["chosen"]]
    assert sorted(chosen) == [("frail", 1, 1), ("frail", 1, 2), ("good", 1, 1), ("good", 1, 2)]
    assert len(cells) == 6
    assert {round(c["loss"], 4) for c in cells if c["method"] == "good"} == {3.001, 2.001, 2.002}


def test_a_cell_whose_commands_changed_is_run_again(board, tmp_path):
    def losses():
        cells = run_all(read_leaderboard(board), jobs=1, only=["good"])
        return sorted(cell["loss"] for cell in cells if cell["trial"] == 0)

    before = losses()
    ran = len((tmp_path / "out" / "ran").read_text().splitlines())
    board.write_text(board.read_text().replace("lr: 3", "lr: 4"))
    assert losses() == pytest.approx([loss + 1 for loss in before])
    assert len((tmp_path / "out" / "ran").read_text().splitlines()) == ran + len(before)
    (cell,) = (tmp_path / "out").rglob("good/trial0-seed1/cell.json")
    cell.write_text("{")
    assert losses() == pytest.approx([loss + 1 for loss in before])


def test_a_loss_that_is_not_finite_is_a_failure_and_never_the_best(board, tmp_path):
    board.write_text(board.read_text().replace("lr: 3", "lr: nan"))
    cells = run_all(read_leaderboard(board), jobs=1, only=["good"])
    assert [cell.get("failed") for cell in cells if cell["trial"] == 0] == ["the loss is nan"]
    assert all(cell["trial"] == 1 for cell in cells if cell["chosen"])


@pytest.mark.parametrize("other", ["good", "Good!", "-good"])
def test_names_that_share_a_folder_are_rejected(board, other):
    values = yaml.safe_load(board.read_text())
    values["methods"][1]["name"] = other
    board.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"methods 'good' and .* have the same folder, good"):
        read_leaderboard(board)


def test_a_finished_cell_is_kept_and_a_failed_one_is_shown_and_repeated(board, tmp_path):
    (tmp_path / "full").touch()
    cells = run_all(read_leaderboard(board), jobs=1)
    assert finished(read_leaderboard(board)) == [cell for cell in cells if "loss" in cell]
    result = {"config": {"title": "Tiny", "domains": ["web"], "trials": [{}]}, "values": {}}
    shown = block("tiny", {**result, "values": {"cells": cells}})
    assert "| frail | FAILED: status 1: no room |" in shown
    assert "| good | 2.002 ± 0.001 | 9.000 ± 0.000 | 80 | 10 | 2.002 ± 0.001 | 2.002 | 2 |" in shown
    assert shown.count("Cells ran on ") == 1
    assert f"(torch {version('torch')}, transformers {version('transformers')}): 6." in shown
    (tmp_path / "full").unlink()
    cells = run_all(read_leaderboard(board), jobs=1)
    assert all("loss" in cell for cell in cells)
    ran = (tmp_path / "out" / "ran").read_text().splitlines()
    assert len(ran) == len(set(ran)) == 6
    assert (tmp_path / "out" / "prepared").read_text() == "x"


def test_runs_of_a_cell_are_counted_one_after_the_other(tmp_path):
    for name, loss in (("prune", 5.0), ("continue", 4.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("global_train_batch_size: 2\nmax_seq_len: 4\n")
        lines = [
            {
                "step": 0,
                "metrics/eval/LanguageCrossEntropy": loss + 1,
                "metrics/eval/a_LanguageCrossEntropy": 0,
            },
            {"step": 4, "time/train": 5 / 3600},
            {"step": 5, "metrics/eval/LanguageCrossEntropy": loss, "metrics/eval/a_LanguageCrossEntropy": 7},
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = measured([tmp_path / "prune", tmp_path / "continue"], ["a"])
    assert found["curve"] == [[0, 0, 0.0, 6.0], [0, 40, 5.0, 5.0], [1, 40, 5.0, 5.0], [1, 80, 10.0, 4.0]]
    assert (found["loss"], found["cut"], found["tokens"], found["seconds"]) == (4.0, 5.0, 80, 10.0)
    assert found["losses"] == {"a": 7}


def test_loss_at_a_second_lies_between_its_evaluations():
    curve = [[0, 0, 0.0, 8.0], [0, 1, 10.0, 6.0], [1, 1, 10.0, 7.0], [1, 2, 20.0, 5.0]]
    assert [loss_at(curve, seconds) for seconds in (0, 5, 10, 15, 20, 99)] == [8, 7, 7, 6, 5, 5]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_their_result_files_give(path):
    text = path.read_text()
    assert parts(text)
    assert filled(text) == text, "run python -m benchmarks.evidence"


def test_a_part_of_the_evidence_without_an_end_is_reported():
    with pytest.raises(ValueError, match="<!-- constraints --> stands without <!-- end of constraints -->"):
        filled("before\n<!-- constraints -->\nafter")


def test_the_table_of_tasks_has_models_side_by_side_with_their_mean_and_share():
    def model(parameters, **means):
        tasks = {
            task: {"metric": "acc", "mean": mean, "stderr": 0.03, "examples": 200}
            for task, mean in means.items()
        }
        return {"parameters": parameters, "dtype": "bfloat16", "tasks": tasks}

    values = {"source": model(134_515_008, sums=0.8, verbs=0.4), "cut": model(85e6, sums=0.5, verbs=0.25)}
    assert TABLES["tasks"]({"values": values}).splitlines() == [
        "| task | metric | source | cut |",
        "| --- | --- | --- | --- |",
        "| sums | acc | 80.0 ± 3.0 | 50.0 ± 3.0 |",
        "| verbs | acc | 40.0 ± 3.0 | 25.0 ± 3.0 |",
        "| mean of 2 |  | 60.0 ± 2.1 | 37.5 ± 2.1 |",
        "| share of the first |  | 100.0% | 62.5% |",
        "| parameters |  | 134.5M | 85.0M |",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, "unknown key sedes"),
        ({"seeds": None}, "seeds is missing"),
        ({"targets": {"half": {"depth": {}}}}, "target 'half' has no shape width"),
    ],
)
def test_mistakes_in_the_file_are_named(board, change, message):
    values = yaml.safe_load(board.read_text()) | change
    board.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        read_leaderboard(board)


def test_a_command_names_only_what_is_defined(board):
    plan = read_leaderboard(board)
    broken = plan.methods[0].__class__("x", "x", "width", ("run {nothing}",), ("train",))
    with pytest.raises(ValueError, match="names nothing, which nothing defines"):
        plan.cell(broken, "half", 0, 1)


@pytest.mark.parametrize("path", sorted(Path("benchmarks/leaderboard").glob("*.yaml")), ids=str)
def test_committed_leaderboards_name_only_what_they_define(path):
    plan = read_leaderboard(path)
    plan.preparation()
    for method in plan.methods:
        for target in plan.targets:
            for trial in range(len(plan.trials)):
                plan.cell(method, target, trial, plan.seeds[0])


def test_definitions_can_be_changed_without_editing_the_file(board):
    changed = read_leaderboard(board, {"train": "python {cell} {seed}"})
    words = changed.cell(changed.methods[0], "half", 0, 1).commands[0]
    assert (words[0], words[2]) == ("python", "1")
    with pytest.raises(ValueError, match=r"does not define trian; it defines train\."):
        read_leaderboard(board, {"trian": "x"})
