"""Every command that README and docs tell people to type is run, where all is there but tiny.

README's five steps run in bash, as a user would run them. The other commands begin where these end, and run
in this process, where a debugger can follow them. Commands run as they are written; those that cannot are
listed here with the reason: run in another form, or not at all. A listed command must still be on a page.
"""

from pathlib import Path

import pytest

from command_line import status
from documented import PAGES, blocks, make_place, mentions, run_in_bash, words_of
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
    "python -m benchmarks.open_units": "takes minutes",
    "python -m benchmarks.constraints": "takes minutes",
    "python -m benchmarks.oneshot --samples 16 --evaluated 32": "takes an hour",
    "python -m benchmarks.leaderboard benchmarks/leaderboard/small.yaml": "takes hours",
    "python -m benchmarks.leaderboard benchmarks/leaderboard/longer.yaml": "takes an hour",
    "python -m benchmarks.leaderboard benchmarks/leaderboard/real.yaml --name real-gpu --jobs 8 --define "
    "prune_steps=60 continue_steps=90 all_steps=150 warmup=12 batch=16 precision=amp_bf16": "needs a GPU",
    "python -m benchmarks.layer_schemes --evaluated 32": "takes minutes",
    "python -m benchmarks.sparsity_quality runs/leaderboard/small/source.pt runs/leaderboard/small/mds "
    "runs/sparsity --steps 100": "takes minutes",
    "python -m benchmarks.sparsity_quality runs/leaderboard/real/source.pt runs/leaderboard/real/mds "
    "runs/sparsity --steps 100 --name sparsity_quality_smollm2 --jobs 9 --change precision=amp_bf16": "needs "
    "a GPU",
    "python -m benchmarks.tasks": "needs trained models",
    "python -m benchmarks.evidence": "run by tests/test_leaderboard.py",
    "llmshearing prune runs/masks/latest-rank0.pt --hf models/sparse-7b": "run by tests/test_sparse_runs.py",
    "llmshearing prune runs/masks/latest-rank0.pt dense.pt --dense_weights": "run by the same tests",
    "llmshearing apply_masks models/Llama-2-7b-hf dense.masks.npz models/sparse-7b": "run by "
    "tests/test_sparse_runs.py",
    "llmshearing train": "a name in a sentence",
    "llmshearing prune": "a name in a sentence",
    "llmshearing oneshot": "a name in a sentence",
    "llmshearing shapes": "a name in a sentence",
    "llmshearing trim_vocabulary": "a name in a sentence",
    "python -m benchmarks.gpu": "needs a GPU",
    "python -m benchmarks.gpu --check": "needs a GPU",
    "PYTHONPATH=site:. python -m benchmarks.gpu --check": "needs a GPU",
    "pip wheel --no-deps --wheel-dir wheels --requirement scripts/gpu-wheels.txt": "for a machine with a GPU",
    "pip install --no-index --no-deps --target site wheels/*.whl": "for a machine with a GPU",
    "python -m llmshearing": "lists the commands",
    "llmshearing --help": "run by tests/commands/test_subcommands.py",
    "llmshearing family_table docs/models.md": "run by tests/commands/test_family_table.py",
    "export MODEL=models/llama2-7b.pt DATA=data/mds TARGET=1.3b": "README sets the same before its scripts",
    "export MODEL=runs/llama2_7b_pruning_1.3b/pruned-latest-rank0.pt DATA=data/mds TARGET=1.3b": "so it does",
    "llmshearing trim_vocabulary models/Llama-2-7b-hf models/trimmed --data text/wiki --keep 24000": "the "
    "tokenizer here has a token a word; run by tests/commands/test_trim_vocabulary.py",
    "bash scripts/pruning.sh": "README runs it",
    "bash scripts/continue_pretraining.sh": "README runs it",
    "llmshearing evaluate --fetch": "downloads; run by tests/evaluation/test_battery.py",
    "llmshearing evaluate --fetch --archives FOLDER": "run by tests/evaluation/test_battery.py",
    "llmshearing evaluate models/source models/pruned --suite offline --limit 200": "run by "
    "tests/evaluation/test_evaluate.py",
    "MODEL=models/pruned DATA=sharegpt.json OUT=models/chat bash scripts/instruction_tuning.sh "
    "template=sheared": "the next line does the same",
    "llmshearing tune models/pruned models/chat-2 --data sharegpt.json template=sheared epochs=2": "run by "
    "tests/tuning/test_tune.py",
    "EXTRAS=tune bash scripts/setup.sh": "installs",
}
RUNS = "runs/llama2_7b_pruning_1.3b runs/llama2_1.3b_continued"
OLD = "python -m llmshearing.utils"
SHARES = "cc=0.67 github=0.045 book=0.045 stackexchange=0.02 wiki=0.045 arxiv=0.025 c4-rp=0.15"
PREPARE = (
    "llmshearing prepare --input text --output data --tokenizer path/to/llama --seq_length 4096 "
    f"--eval_tokens 2048000 --prune_tokens 0.42B --ft_tokens 50B --proportion {SHARES}"
)
SOURCE, MASKED = "models/Llama-2-7b-hf models/llama2-7b.pt", "runs/llama2_7b_pruning_1.3b/latest-rank0.pt"
SMALL_RUN = "global_train_batch_size=1 device_train_microbatch_size=1 max_duration=1ba eval_interval=0ba"
DRY_RUN = "DRY_RUN=1 bash scripts/pruning.sh"
SETTINGS = "MODEL=models/llama2-7b.pt DATA=data/mds TARGET=1.3b"
SLURM = f"LAUNCHER=slurm NODES=2 {SETTINGS} bash scripts/pruning.sh"
MERGE = "--input_dir data/eval --output_dir data --output_split eval_two --split_names"
ONE_SHOT = (
    "llmshearing oneshot models/Llama-2-7b-hf models/small --method activation --data text/wiki "
    "--scores activation.safetensors "
)
CHOPPED = "llmshearing oneshot models/Llama-2-7b-hf models/chopped --method layerchop --scheme input"
_SPARSE = "llmshearing oneshot models/Llama-2-7b-hf models/sparse-7b --method sparsegpt"
SPARSE = f"{_SPARSE} --pattern 2:4 --data text/c4"
INSTEAD = {
    f"{ONE_SHOT}d_model=2048 n_heads=16 n_layers=24 intermediate_size=5504": f"{ONE_SHOT}d_model=16 "
    "n_heads=2 n_layers=2 intermediate_size=24 --length 64 --samples 8",
    f"{CHOPPED} n_layers=16": f"{CHOPPED} n_layers=2",
    "llmshearing oneshot CKPT OUT --method activation --data DATA --scores FILE n_layers=16": "llmshearing "
    "oneshot models/Llama-2-7b-hf models/by-importance --method activation --data text/wiki --length 64 "
    "--samples 8 --scores layers.safetensors n_layers=2",
    f"{SPARSE} --samples 128": f"{SPARSE} --samples 8 --length 64".replace("c4", "wiki"),
    "llmshearing shapes models/Llama-2-7b-hf --parameters 1.3B": "llmshearing shapes models/Llama-2-7b-hf "
    "--parameters 42000 --multiple 8",
    # A step takes long enough.
    **{
        f"composer train.py {name}.yaml": f"composer train.py {name}.yaml {SMALL_RUN}"
        for name in ("prune", "continue")
    },
    # The stand-ins are smaller.
    f"llmshearing compare {SOURCE} 7B": f"llmshearing compare {SOURCE} 0.06M",
    PREPARE: PREPARE.replace("--ft_tokens 50B", "--ft_tokens 0.42B"),
    # The page has its settings exported, and its run begins after this.
    DRY_RUN: f"{SETTINGS} SAVE_FOLDER=runs/later {DRY_RUN} | grep 'composer train.py configs'",
    SLURM: f"{SLURM} | grep 'Submitted --job-name llama2_7b_pruning_1.3b --nodes 2'",
    # The stand-ins have other names, and one measurement is enough.
    "llmshearing evaluate models/source models/pruned --suite perplexity --data data/mds": "llmshearing "
    "evaluate models/Llama-2-7b-hf models/sheared-1.3b --suite perplexity --data data/mds --limit 1",
    "llmshearing speed models/source models/pruned --batch 1,8 --context 512": "llmshearing speed "
    "models/Llama-2-7b-hf models/sheared-1.3b --context 16 --new 2 --rounds 1",
    # Forms, with words to be filled in.
    "composer train.py CONFIG.yaml key=value ...": f"composer train.py configs/llama2/1.3b.yaml {SMALL_RUN}",
    "llmshearing report RUN...": f"llmshearing report {RUNS}",
    "llmshearing reference_loss measure MODEL --data DATA": "llmshearing reference_loss measure "
    "models/llama2-7b.pt --data data/mds",
    "llmshearing convert HF OUT.pt [--untie]": f"llmshearing convert {SOURCE}",
    "llmshearing convert HF OUT": f"llmshearing convert {SOURCE}",
    "llmshearing export CKPT OUT_FOLDER [key=value ...]": "llmshearing export models/llama2-7b.pt "
    "models/again hidden_size=32",
    "llmshearing export CKPT OUT key=value ...": "llmshearing export models/llama2-7b.pt models/once-more "
    "--hidden_size=32",
    "llmshearing compare HF CKPT [SIZE]": f"llmshearing compare {SOURCE}",
    "llmshearing compare HF CKPT SIZE": f"llmshearing compare {SOURCE} 0.06M",
    "llmshearing prune CKPT [OUT] [--hf FOLDER]": f"llmshearing prune {MASKED} models/cut.pt --hf models/cut",
    "llmshearing prune CKPT": f"llmshearing prune {MASKED}",
    "llmshearing merge ...": f"llmshearing merge {MERGE} book wiki".replace("data/", "data/mds/"),
    "llmshearing check CKPT": f"llmshearing check {MASKED}",
    f"{OLD}.composer_to_hf save_hf_to_composer HF OUT": f"{OLD}.composer_to_hf save_hf_to_composer {SOURCE}",
    f"{OLD}.composer_to_hf save_composer_to_hf CKPT OUT key=value ...": f"{OLD}.composer_to_hf "
    "save_composer_to_hf models/llama2-7b.pt models/as-there model_class=LlamaForCausalLM hidden_size=32",
    f"{OLD}.test_composer_hf_eq HF CKPT SIZE": f"{OLD}.test_composer_hf_eq {SOURCE} 0.06M",
    f"{OLD}.post_pruning_processing prune_and_save_model CKPT": f"{OLD}.post_pruning_processing "
    f"prune_and_save_model {MASKED}",
    f"{OLD}.test_pruning CKPT": f"{OLD}.test_pruning {MASKED}",
    "python -m llmshearing.data.merge_data --input_dir DIR --output_dir DIR --output_split NAME "
    "--split_names NAME ...": f"python -m llmshearing.data.merge_data {MERGE} book wiki".replace(
        "data/", "data/mds/"
    ),
}


def to_run(name: str) -> list[str]:
    """The commands of a page as they are run here."""
    page = next(page for page in PAGES if page.name == name)
    written = [*blocks(page), *mentions(page)]
    return [INSTEAD.get(command, command) for command in written if command not in NOT_RUN]


def five_steps() -> list[str]:
    """README's commands from text to an exported model."""
    commands = to_run("README.md")
    return commands[: 1 + next(i for i, command in enumerate(commands) if "llmshearing export" in command)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Where README's five steps have been run."""
    place = tmp_path_factory.mktemp("place")
    make_place(place, tokenizer_folder)
    (place / "said.txt").write_text(run_in_bash(five_steps(), place))
    # Names that pages have for what is there: a quickstart, a run, a tokenizer.
    (place / "runs" / "quickstart").mkdir()
    for name, target in {
        "runs/quickstart/prune": "runs/llama2_7b_pruning_1.3b",
        "runs/quickstart/continue": "runs/llama2_1.3b_continued",
        "runs/quickstart/scratch": "runs/llama2_1.3b_continued",
        "runs/prune": "runs/llama2_7b_pruning_1.3b",
        "path/to/llama": "models/Llama-2-7b-hf",
        "path/to/source": "models/Llama-2-7b-hf",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(place / target)
    return place


@pytest.mark.slow
def test_five_steps(place: Path) -> None:
    assert "models/sheared-1.3b: llama, d_model 16, 2 heads" in (place / "said.txt").read_text()
    assert (place / "models" / "sheared-1.3b" / "tokenizer.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "makes"),
    [
        ("README.md", "runs/quickstart/report.html"),
        ("recipe.md", "report.html"),
        ("troubleshooting.md", "runs/prune/pruned-latest-rank0.pt"),
        ("models.md", "models/cut/config.json"),
        ("one-shot.md", "models/small/config.json"),
        ("methods.md", "models/chopped/config.json"),
        ("sparsity.md", "models/sparse-7b.masks.npz"),
        ("data.md", "data/eval_code/index.json"),
        ("coming-from-the-original.md", "models/as-there/config.json"),
        ("configuration.md", "configs/llama2/7b.yaml"),
        ("evaluation.md", "evaluation/speed.json"),
    ],
)
def test_page(page: str, makes: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(place)
    ran = five_steps() if page == "README.md" else to_run("README.md")
    for command in to_run(page):
        if command in ran:
            continue
        if command.startswith(("llmshearing ", "python ", "composer ")):
            assert status(words_of(command)) == 0, f"{command}: {capsys.readouterr()}"
        else:
            run_in_bash([command], place)
    assert (place / makes).exists()


def test_every_command_is_documented() -> None:
    """Pages with commands are those above; what is listed here is on a page."""
    written = {page.name: {*blocks(page), *mentions(page)} for page in PAGES}
    tried = {"README.md", "recipe.md", "troubleshooting.md", "models.md", "coming-from-the-original.md"}
    tried |= {"configuration.md", "data.md", "evaluation.md"}
    tried |= {"methods.md", "one-shot.md", "sparsity.md"}
    assert not [name for name in written if name not in tried and to_run(name)]
    everything = set().union(*written.values())
    assert not [command for command in (*NOT_RUN, *INSTEAD) if command not in everything]
