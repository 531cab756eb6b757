"""The plan's memory beside the peak of a real process."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import BODY_25M
from llmshearing.models.families import architecture_of
from llmshearing.planning import estimates
from llmshearing.planning.findings import Findings
from runs import run_config

VOCABULARY, SEQUENCES, LENGTH = 32_000, 4, 512
STEPS = "from benchmarks.memory import peak_bytes; print(peak_bytes({!r}, {}, {}, {}))"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pruning", "dense"])
def test_the_estimate_is_near_the_peak_of_real_steps(kind: str) -> None:
    """25 million parameters without embeddings, fp32 on CPU; the peak counts what comes after the imports."""
    config = run_config(Path("nowhere"), prune=kind == "pruning")
    config.max_seq_len = config.model.max_seq_len = LENGTH
    config.model.vocab_size = VOCABULARY
    for name, size in BODY_25M.items():
        setattr(config.model, name, size)
    config.global_train_batch_size = config.device_train_microbatch_size = SEQUENCES
    found = Findings(source=architecture_of(config.model))
    estimate = estimates.memory(config, found, devices=1).total(checkpointing=False)
    command = [sys.executable, "-c", STEPS.format(kind, VOCABULARY, BODY_25M, LENGTH)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert estimate == pytest.approx(int(done.stdout.split()[-1]), rel=0.25)
