"""Every family's export is loaded, strictly and with equal logits, by the other stack's transformers.

Needs the environments of both stacks (scripts/setup.sh): .venv and .venv-current.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import export
from llmshearing.commands.equality import load_ours
from llmshearing.commands.family_table import soft_gates
from llmshearing.pruning.cut import cut
from llmshearing.shapes.hf_config import architecture_from_hf, architecture_to_hf
from llmshearing.shapes.units import to_z
from twins import CONFIGS, make, save, tokens

ROOT = Path(__file__).parents[2]
OURS = Path(sys.prefix).resolve()
OTHERS = [ROOT / name / "bin" / "python" for name in (".venv", ".venv-current")]
THERE = [python for python in OTHERS if python.exists() and python.parents[1].resolve() != OURS]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def logits(tmp_path_factory) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of every twin's masked model here, and of its export there, by name."""
    if not THERE:
        pytest.skip("needs the environment of the other stack: STACK=current bash scripts/setup.sh")
    torch.manual_seed(0)
    work, folder = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("exports")
    ids, masked = tokens(33), {}
    save_file({"ids": ids}, folder / "ids.safetensors")
    for name in CONFIGS:
        source = read_checkpoint(save(make(CONFIGS[name]), work / name / "hf"))
        write_checkpoint(work / name / "c.pt", source.weights, source.record or {})
        checkpoint = read_checkpoint(work / name / "c.pt")
        arch = architecture_from_hf(checkpoint.hf_config or {})
        gates = soft_gates(arch)
        if arch.width_fixes_heads:  # as many hidden dimensions as the heads that stay take
            by_group = gates["kv_head"] if arch.group_size > 1 else gates["head"]
            kept = int((by_group != 0).sum(-1).max()) * arch.group_size * arch.head_dim
            hidden = gates["hidden"].clamp(min=0.2)
            hidden[: arch.d_model - kept] = 0
            gates["hidden"] = hidden
        weights, smaller = cut(checkpoint.weights, gates, arch)
        export(weights, smaller, architecture_to_hf(smaller, checkpoint.hf_config), {}, folder / name)
        with torch.no_grad():
            masked[name] = load_ours(checkpoint)({"input_ids": ids, **to_z(gates)})["logits"]
    script = Path(__file__).with_name("load_elsewhere.py")
    env = {**os.environ, "PYTHONPATH": "", "VIRTUAL_ENV": str(THERE[0].parents[1])}
    done = subprocess.run([THERE[0], script, folder], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return masked, load_file(folder / "logits.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_export_computes_the_same_in_the_other_version(logits, name) -> None:
    here, there = logits
    torch.testing.assert_close(there[name], here[name], atol=TOLERANCE, rtol=TOLERANCE)
