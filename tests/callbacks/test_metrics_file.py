"""The file of metrics reads as if the run had never been interrupted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llmshearing.callbacks.metrics_file import MetricsFile


def test_damaged_lines_and_those_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [{"step": step, "loss/train/total": 1.0} for step in range(4)]
    evaluations = [{"step": step, "metrics/eval/LanguageCrossEntropy": 2.0} for step in (2, 4)]
    lines = [*steps[:2], evaluations[0], *steps[2:], evaluations[1]]
    spoilt = b'[1, 2]\n{"loss": 1}\n{"step": "2"}\n\xff\xfe\n{"step": 4, "lo'
    path.write_bytes("".join(f"{json.dumps(line)}\n" for line in lines).encode() + spoilt)
    state = SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=2)))
    MetricsFile(path).fit_start(cast(Any, state), cast(Any, None))
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
