"""The console command lists its subcommands, and each of them and of the earlier paths has its help."""

import subprocess
import sys

import pytest

from command_line import ROOT, status
from llmshearing.__main__ import COMMANDS

EARLIER = {
    "llmshearing.utils.composer_to_hf save_hf_to_composer": "convert",
    "llmshearing.utils.composer_to_hf save_composer_to_hf": "export",
    "llmshearing.utils.post_pruning_processing prune_and_save_model": "prune",
    "llmshearing.utils.test_composer_hf_eq": "compare",
    "llmshearing.utils.test_pruning": "check",
    "llmshearing.data.merge_data": "merge",
    "llmshearing.data.prepare": "prepare",
    "llmshearing.data.inspect": "inspect",
    "llmshearing.report": "report",
    **{
        f"llmshearing.utils.{name}": name
        for name in ("plan", "reference_loss", "config_reference", "family_table")
    },
}


@pytest.mark.parametrize(
    ("called", "name"),
    [
        *((f"llmshearing {name}", name) for name in COMMANDS),
        *((f"python -m {module}", name) for module, name in EARLIER.items()),
        *((f"llmshearing reference_loss {name}", f"reference_loss {name}") for name in ("measure", "fit")),
    ],
)
def test_help_says_how_it_was_called_what_it_does_and_shows_one(called: str, name: str, capsys) -> None:
    assert status([*called.split(), "--help"]) == 0
    usage, description = capsys.readouterr().out.split("\n\n", 1)
    assert usage.startswith(f"usage: {called} ") or usage == f"usage: {called} [-h]"
    text, example = description.split("Example:\n\n")
    assert text.split("\n\n")[0].rstrip().endswith(".")
    assert example.startswith(f"    llmshearing {name}")
    assert "--debug" in example


def test_the_console_command_lists_the_steps_in_the_order_of_the_work_and_imports_none() -> None:
    code = (
        "import sys; from llmshearing.__main__ import main; main(); "
        "print({'torch', 'composer', 'transformers'} & {*sys.modules})"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("usage: llmshearing COMMAND ...\n\nPrune a large language model")
    assert [line.split()[0] for line in said.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert said.endswith("set()\n")
    steps = ["prepare", "convert", "plan", "train", "prune", "export", "report", "config_reference"]
    assert sorted(steps, key=list(COMMANDS).index) == steps


def test_lines_of_the_list_fit_a_terminal() -> None:
    assert max(len(line) for _, line in COMMANDS.values()) <= 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: no command is given; `llmshearing --help` lists them.\n"),
        (["zzz"], "error: unknown command zzz; `llmshearing --help` lists them.\n"),
        (["pln"], "error: unknown command pln; did you mean plan? `llmshearing --help` lists them.\n"),
        (["convert", "a"], "error: missing: out\nusage: llmshearing convert HF_PATH OUT [--untie]\n"),
        (
            ["plan", "a.yaml", "--device", "x"],
            "error: argument --devices: invalid int value: 'x'\nusage: llmshearing plan ",
        ),
        (
            ["plan", "a.yaml", "--devcies", "8"],
            "error: unrecognized arguments: --devcies 8; did you mean --devices?\n",
        ),
        (
            ["train"],
            "error: no configuration is given\nusage: llmshearing train CONFIG.yaml [key=value ...]\n",
        ),
    ],
)
def test_what_is_mistyped_ends_with_status_2_and_the_nearest(words: list[str], message: str, capsys) -> None:
    assert status(["llmshearing", *words]) == 2
    assert capsys.readouterr().err.startswith(message)
