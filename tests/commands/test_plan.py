"""The command that prints a plan, and the recipes that print it before they run."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmshearing.commands import plan
from llmshearing.planning.prepared import prepare
from runs import run_config, run_values, write_data

ROOT = Path(__file__).parents[2]
SEVEN = ROOT / "configs" / "llama2" / "7b.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_command_prints_plan_and_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(SEVEN), "data_local=nowhere", "--devices", "8", "seed=three"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        plan.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    for part in (
        "1,345,423,360",
        "419,430,400 tokens",
        "64 evaluations",
        "80.9 GB",
        "There is no data folder",
        "seed is 'three'; expected a whole number.",
    ):
        assert part in printed


def test_command_prints_the_plan_of_a_small_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values(data)))
    words = ["plan", str(tmp_path / "run.yaml"), "--devices", "3", "--tokens_per_second", "2000"]
    monkeypatch.setattr(sys, "argv", [*words, "global_train_batch_size=24"])
    plan.main()
    printed = capsys.readouterr().out
    assert "No problems found." in printed
    assert "Read more than once, and more often if their weights rise: code" in printed
    assert math.isclose(float(printed.split("given, 2,000 tokens/s each")[1].split()[1]), 0.0)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        plan.main()
    assert "global_train_batch_size is 8 for 3 devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"callbacks__data_loading__proportion": [1.0, 0.0, 0.0], "model__execute": "all"},
            [
                "layer 3 3 2 33.3%",
                "3 evaluations, 24 sequences, 384 tokens each",
                "code 1.0000 56 896 7 steps 1.71 8",
                "books 0.0000 56 896 unused 0.00 8",
                "Read more than once, and more often if their weights rise: code.",
                "1 533.3",  # hours of 1,536 tokens, and of 3 times 384 at a third
                "2 266.7",
                "Every unit is executed, closed ones too, because model.execute is all.",
            ],
        ),
        (
            {
                "callbacks__data_loading__set_names": ["code", "plays", "wiki"],
                "fsdp_config": {"activation_checkpointing": True},
                "model__l0_module__target_model": None,
                "model__l0_module__target_sparsity": 0.5,
                "model__l0_module__pruning_modules": ["head"],
                "save_folder": "none",
            },
            [
                "To remove: 50.0% of the 12,288 parameters in reach of head.",
                "wiki 0.2500 56 896 28 steps 0.43 0",
                "how many there will be is not known, so none are deducted.",
                "recomputed: with fsdp_config.activation_checkpointing, which is on here.",
                "3 checkpoints of 0.000365 GB in none: 0.0011 GB of disk",
            ],
        ),
    ],
)
def test_the_plan_of_a_small_run_line_by_line(data: Path, changes: dict[str, Any], lines: list[str]) -> None:
    config = run_config(data, **changes)
    shown = plan.render(prepare(config), [1, 2], tokens_per_second=0.001).splitlines()
    told = "\n".join(" ".join(line.split()) for line in shown)
    assert [line for line in lines if line not in told] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "0"], "--devices is 0; expected at least 1"),
        (["--tokens_per_second", "0"], "--tokens_per_second is 0; expected more than 0"),
        (["--tokens_per_second", "nan"], "--tokens_per_second is nan; expected more than 0"),
    ],
)
def test_impossible_numbers_are_rejected(
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", str(SEVEN), *words])
    with pytest.raises(ValueError, match=message):
        plan.main()


def test_powers_of_two() -> None:
    assert plan.powers_of_two(1) == [1]
    assert plan.powers_of_two(8) == [1, 2, 4, 8]
    assert plan.powers_of_two(12) == [1, 2, 4, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "target", "reference"),
    [("pruning.sh", "370m", "2.1401"), ("continue_pretraining.sh", "1.3b", "1.9643")],
)
def test_recipes_show_command_and_plan(script: str, target: str, reference: str, tmp_path: Path) -> None:
    settings = {"MODEL": "none.pt", "DATA": str(tmp_path / "none"), "TARGET": target, "DRY_RUN": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), "max_duration=7ba"],
        env={**os.environ, **settings, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert shown.stdout.startswith("composer train.py configs/llama2/")
    assert reference in shown.stdout.splitlines()[0]
    assert "  7 steps of " in shown.stdout
    assert "none.pt; expected a checkpoint" in shown.stdout.split("2 problems")[1]
