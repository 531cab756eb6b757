"""Every command that README and docs tell people to type is run, where all is there but tiny.

Commands run as they stand, those of a page in one shell: its blocks, then its sentences. What cannot be is
listed here with the reason: run in another form, or not at all. A listed command must still be on a page.
"""

from pathlib import Path

import pytest

from documented import PAGES, Shell, blocks, make_place, mentions
from tests.data.conftest import tokenizer_folder

assert tokenizer_folder  # a fixture

NOT_RUN = {
    "bash scripts/quickstart.sh": "takes minutes; it is the quickstart",
    "bash scripts/test.sh": "runs these tests",
    "python -m pytest -m reliability": "part of these tests",
    "python -m benchmarks.run_all": "takes minutes",
    "python -m benchmarks.data_loading": "takes minutes",
    "python -m benchmarks.data_tokenizing": "takes minutes",
    "python -m benchmarks.growth": "takes minutes",
    "python -m benchmarks.gpu": "needs a GPU",
    "python -m llmshearing.utils.family_table docs/models.md": "run by tests/commands/test_family_table.py",
}
MODULE, RUNS = "python -m llmshearing", "runs/llama2_7b_pruning_1.3b runs/llama2_1.3b_continued"
PLAN = f"{MODULE}.utils.plan configs/llama2/7b.yaml data_local=data/mds --devices 8"
CONVERT, CUT = (
    f"{MODULE}.utils.composer_to_hf",
    f"{MODULE}.utils.post_pruning_processing prune_and_save_model",
)
EQUAL, MEASURE = f"{MODULE}.utils.test_composer_hf_eq", f"{MODULE}.utils.reference_loss measure"
SHARES = "cc=0.67 github=0.045 book=0.045 stackexchange=0.02 wiki=0.045 arxiv=0.025 c4-rp=0.15"
PREPARE = (
    f"{MODULE}.data.prepare --input text --output data --tokenizer path/to/llama --seq_length 4096 "
    f"--eval_tokens 2048000 --prune_tokens 0.42B --ft_tokens 50B --proportion {SHARES}"
)
SOURCE, MASKED = "models/Llama-2-7b-hf models/llama2-7b.pt", "runs/llama2_7b_pruning_1.3b/latest-rank0.pt"
SMALL_RUN = "global_train_batch_size=1 device_train_microbatch_size=1 max_duration=1ba eval_interval=0ba"
INSTEAD = {
    # A step takes long enough.
    **{
        f"composer train.py {name}.yaml": f"composer train.py {name}.yaml {SMALL_RUN}"
        for name in ("prune", "continue")
    },
    # There is no data yet, which the plan counts as a problem.
    f"{PLAN} --gpu a100": f"{PLAN} --gpu a100 | tee plan.txt || grep 'There is no data folder' plan.txt",
    # The stand-ins are smaller.
    f"{EQUAL} {SOURCE} 7B": f"{EQUAL} {SOURCE} 0.06M",
    PREPARE: PREPARE.replace("--ft_tokens 50B", "--ft_tokens 0.42B"),
    # Forms, with words to be filled in.
    "composer train.py CONFIG.yaml key=value ...": f"composer train.py configs/llama2/1.3b.yaml {SMALL_RUN}",
    f"{MODULE}.report RUN...": f"{MODULE}.report {RUNS}",
    f"{MEASURE} MODEL --data DATA": f"{MEASURE} models/llama2-7b.pt --data data/mds",
    f"{CONVERT} save_hf_to_composer HF OUT.pt": f"{CONVERT} save_hf_to_composer {SOURCE}",
    f"{CONVERT} save_composer_to_hf CKPT OUT_FOLDER [key=value ...]": f"{CONVERT} save_composer_to_hf "
    "models/llama2-7b.pt models/again hidden_size=32",
    f"{EQUAL} HF CKPT [SIZE]": f"{EQUAL} {SOURCE}",
    f"{CUT} CKPT [OUT] [--hf FOLDER]": f"{CUT} {MASKED} models/cut.pt --hf models/cut",
    f"{MODULE}.utils.test_pruning CKPT": f"{MODULE}.utils.test_pruning {MASKED}",
}


def to_run(name: str) -> list[str]:
    """The commands of a page as they are run here."""
    page = next(page for page in PAGES if page.name == name)
    written = [*blocks(page), *mentions(page)]
    return [INSTEAD.get(command, command) for command in written if command not in NOT_RUN]


@pytest.fixture
def place(tmp_path: Path, tokenizer_folder: Path) -> Path:
    make_place(tmp_path, tokenizer_folder)
    return tmp_path


@pytest.mark.slow
def test_readme(place: Path) -> None:
    """The five steps, and the report of a quickstart whose runs are these."""
    quickstart = place / "runs" / "quickstart"
    quickstart.mkdir(parents=True)
    for name, run in (
        ("prune", "7b_pruning_1.3b"),
        ("continue", "1.3b_continued"),
        ("scratch", "1.3b_continued"),
    ):
        (quickstart / name).symlink_to(place / "runs" / f"llama2_{run}")
    said = Shell(place).run(to_run("README.md"))
    assert "models/sheared-1.3b: llama, d_model 16, 2 heads" in said
    assert "Submitted --job-name llama2_7b_pruning_1.3b --nodes 2" in said
    assert (place / "models" / "sheared-1.3b" / "tokenizer.json").exists()
    assert (quickstart / "report.html").exists()


@pytest.mark.slow
def test_recipe_and_the_pages_that_begin_where_it_ends(place: Path) -> None:
    shell = Shell(place)
    said = shell.run(to_run("recipe.md"))
    assert "composer train.py configs/llama2/7b.yaml" in said  # the dry run
    assert "models/sheared-1.3b: llama, d_model 16, 2 heads" in said
    assert (place / "report.html").exists()
    (place / "runs" / "prune").symlink_to("llama2_7b_pruning_1.3b")
    for name in ("troubleshooting.md", "models.md", "coming-from-the-original.md", "configuration.md"):
        shell.run(to_run(name))
    assert (place / "models" / "cut" / "config.json").exists()


@pytest.mark.slow
def test_data(place: Path) -> None:
    (place / "path" / "to").mkdir(parents=True)
    for name in ("llama", "source"):
        (place / "path" / "to" / name).symlink_to(place / "models" / "Llama-2-7b-hf")
    assert "1345423360" in " ".join(to_run("data.md"))
    Shell(place).run(to_run("data.md"))
    assert (place / "data" / "eval_merge" / "index.json").exists()


def test_no_command_is_left_out() -> None:
    """Pages with commands are those above; what is listed here is on a page."""
    written = {page.name: {*blocks(page), *mentions(page)} for page in PAGES}
    tried = {"README.md", "recipe.md", "troubleshooting.md", "models.md", "coming-from-the-original.md"}
    tried |= {"configuration.md", "data.md"}
    assert not [name for name in written if name not in tried and to_run(name)]
    everything = set().union(*written.values())
    assert not [command for command in (*NOT_RUN, *INSTEAD) if command not in everything]
