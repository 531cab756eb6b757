"""Settings that would keep masks from moving: rejected, without that effect, or reported."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmshearing import training
from llmshearing.callbacks.constraint_watch import FEW, WINDOW, ConstraintWatch
from runs import run_config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def series(folder: Path, key: str) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize(("kind", "threshold"), [("norm", 1.0), ("value", 1e-3), ("adaptive", 0.01)])
def test_masks_move_with_every_kind_of_clipping(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture, kind: str, threshold: float
) -> None:
    config = run_config(data, tmp_path, max_duration="16ba", eval_interval="0ba")
    config.algorithms = {"gradient_clipping": {"clipping_type": kind, "clipping_threshold": threshold}}
    training.train(config)
    sparsity = series(tmp_path, "metrics/train/expected_sparsity")
    assert sparsity[-1] > sparsity[0] + 0.01
    assert series(tmp_path, "metrics/train/lambda_1_head")[-1] != 0
    assert "nothing is being pruned" not in caplog.text


@pytest.mark.parametrize("setting", [{"optimizer__lag_lr": 1e-9}, {"optimizer__eps": 1e3}])
def test_a_run_that_prunes_nothing_warns_once(
    data: Path, caplog: pytest.LogCaptureFixture, setting: dict[str, float]
) -> None:
    training.train(run_config(data, max_duration="16ba", eval_interval="0ba", **setting))
    assert caplog.text.count("nothing is being pruned. Look at optimizer.lag_lr") == 1


def test_masks_that_never_move_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lag_lr is 0.0; expected a number, more than 0"):
        run_config(data, optimizer__lag_lr=0)


def warnings(expected: list[float], target: list[float], caplog: pytest.LogCaptureFixture) -> int:
    watch = ConstraintWatch("some.key")
    for step, (one, other) in enumerate(zip(expected, target, strict=True)):
        state = cast(Any, SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=step))))
        watch.take(state, cast(Any, None), {"expected_sparsity": one, "target_sparsity": other})
    watch.fit_end(cast(Any, None), cast(Any, None))
    return caplog.text.count("nothing is being pruned")


def test_no_movement_is_distinguished_from_slowness_and_arrival(caplog: pytest.LogCaptureFixture) -> None:
    steps = 3 * WINDOW
    rising = [0.5 * step / steps for step in range(steps)]
    assert warnings([0.1 * value for value in rising], rising, caplog) == 0
    assert warnings([0.49] * steps, [0.5] * steps, caplog) == 0
    assert warnings([0.0] * FEW, [0.5] * FEW, caplog) == 0
    assert warnings([0.002] * steps, rising, caplog) == 1


def test_a_run_without_masks_is_not_watched(caplog: pytest.LogCaptureFixture) -> None:
    watch = ConstraintWatch("some.key")
    watch.take(cast(Any, None), cast(Any, None), {"domain_sums": [[1.0, 2.0]]})
    watch.fit_end(cast(Any, None), cast(Any, None))
    assert not caplog.text
