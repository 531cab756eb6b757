"""What README and docs tell people to type, and a place where it can be typed: all is there, only tiny."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import LlamaConfig

from tests.data.texts import documents, write_jsonl
from twins import make, save

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:\w+=\S* )*(?:python|bash|composer|torchrun|llmshearing) "
DOMAINS = ["cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp"]

# What the recipes' files say about sizes, and what the tiny stand-ins say.
SOURCE = {"d_model": 32, "n_heads": 4, "n_layers": 3, "intermediate_size": 48}
TARGET = {"d_model": 16, "n_heads": 2, "n_layers": 2, "intermediate_size": 24}
LARGE = {"d_model": 2048, "n_heads": 16, "n_layers": 24, "intermediate_size": 5504}
SEVEN_B = {"d_model": 4096, "n_heads": 32, "n_layers": 32, "intermediate_size": 11008}
VOCABULARY = 512
HF_SOURCE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
# Settings that the scripts read from the environment. Everything else is as they have it.
SETTINGS = {
    "GPUS": "1",
    "MAX_DURATION": "3ba",
    "BATCH_SIZE": "1",
    "MICROBATCH_SIZE": "1",
    "EVAL_INTERVAL": "3ba",
    "SAVE_INTERVAL": "3ba",
    "LR_WARMUP": "1ba",
    "LAG_WARMUP": "1ba",
}


def blocks(page: Path) -> list[str]:
    """The commands of a page's bash blocks, continued lines joined."""
    found = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line and not line.startswith("#")]


def mentions(page: Path) -> list[str]:
    """The commands in a page's sentences and indented lines."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    if page.name == "errors.md":  # its commands are mistakes
        return []
    return re.findall(rf"`({PROGRAM}[^`\n]+)`", text) + re.findall(
        rf"^    ({PROGRAM}.+)$", text, re.MULTILINE
    )


def make_place(folder: Path, tokenizer: Path) -> None:
    """The repository's scripts and configurations with tiny models, text of seven domains, a source model."""
    (folder / "train.py").symlink_to(ROOT / "train.py")
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    _shrink(folder / "scripts/pruning.sh", {_row(LARGE): _row(TARGET)})
    for name, sizes, tiny in (("7b", SEVEN_B, SOURCE), ("1.3b", LARGE, TARGET)):
        changes = {f"\n  {key}: {sizes[key]}\n": f"\n  {key}: {tiny[key]}\n" for key in sizes}
        _shrink(folder / f"configs/llama2/{name}.yaml", changes)
    vocabulary = {"vocab_size: 32000": f"vocab_size: {VOCABULARY}"}
    _shrink(folder / "configs/llama2/7b.yaml", vocabulary)
    _shrink(folder / "configs/llama2/common.yaml", vocabulary | {"precision: amp_bf16": "precision: fp32"})
    target = {f"\n      {key}: {LARGE[key]}\n": f"\n      {key}: {TARGET[key]}\n" for key in LARGE}
    _shrink(folder / "configs/llama2/7b.yaml", target)
    domains = {
        "[web, code]": f"[{', '.join(DOMAINS)}]",
        "[0.8, 0.2]": "[0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]",
        "[2.0, 1.0]": str([2.0] * len(DOMAINS)),
        "precision: amp_bf16": "precision: fp32",
    }
    source = {"models/source.pt": "models/llama2-7b.pt"}
    _shrink(folder / "configs/any/prune.yaml", target | domains | source)
    _shrink(folder / "configs/any/continue.yaml", domains)
    for index, domain in enumerate(DOMAINS):
        write_jsonl(folder / "text" / domain / "0.jsonl", documents(2000, seed=index))
    source = save(make(LlamaConfig(**HF_SOURCE)), folder / "models/Llama-2-7b-hf")
    for file in tokenizer.iterdir():
        shutil.copy(file, source)


def _row(sizes: dict[str, int]) -> str:
    """Sizes in the order of scripts/pruning.sh."""
    return " ".join(str(sizes[key]) for key in ("d_model", "n_heads", "n_layers", "intermediate_size"))


def _shrink(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, f"{path} no longer holds {old!r}"
        text = text.replace(old, new)
    path.write_text(text)


def run_in_bash(commands: Sequence[str], folder: Path) -> str:
    """Run commands one after the other in one shell, and return what they printed.

    `python`, `llmshearing` and `composer` are those of this environment; `sbatch` only prints its arguments.
    Fails with the first command that fails.
    """
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    (programs / "sbatch").write_text('#!/bin/sh\necho Submitted "$@"\n')
    (programs / "sbatch").chmod(0o755)
    script = "set -euo pipefail\ntrap 'echo \"FAILED: $BASH_COMMAND\"' ERR\n" + "\n".join(commands)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **SETTINGS, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def words_of(command: str) -> list[str]:
    """The words that bash makes of a command."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
