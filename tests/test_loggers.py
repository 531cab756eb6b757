"""Composer's loggers by YAML: they get the metrics under the names that are promised."""

import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmshearing import building, training
from llmshearing.callbacks import components
from llmshearing.callbacks.components import REGISTRIES, build_components, named
from runs import DOMAINS, run_config, write_data

PROMISED = {
    "loss/train/ce_loss",
    "loss/train/lag_loss",
    "loss/train/total",
    "metrics/eval/LanguageCrossEntropy",
    *(
        f"metrics/train/{side}_{mask}_sparsity"
        for side in ("expected", "target")
        for mask in ("head", "hidden")
    ),
    *(f"metrics/train/{domain}_weight" for domain in DOMAINS),
    *(f"metrics/eval/{domain}_LanguageCrossEntropy" for domain in DOMAINS),
}


def test_tensorboard_and_file_logger_of_a_real_run(tmp_path: Path) -> None:
    board, text = tmp_path / "board", tmp_path / "log.txt"
    loggers: dict[str, Any] = {
        "tensorboard": {"log_dir": str(board), "flush_interval": 1},
        "file_logger": {"filename": str(text), "flush_interval": 1},
    }
    config = run_config(write_data(tmp_path / "data"), tmp_path / "run", max_duration="5ba", run_name="shear")
    config.loggers = loggers
    training.train(config)
    events = EventAccumulator(str(board / "shear")).Reload()
    assert set(events.Tags()["scalars"]) >= PROMISED
    assert [event.step for event in events.Scalars("loss/train/total")] == [0, 1, 2, 3, 4]
    assert all(name in text.read_text() for name in PROMISED)


def test_a_part_that_is_not_known_or_has_no_such_argument_is_not_built() -> None:
    config = run_config(Path("nowhere"))
    config.loggers = {"paper": None, "file_logger": {"colour": "red"}}
    with pytest.raises(ValueError, match=r"(?s)loggers.paper is not known.*unexpected keyword argument"):
        build_components(config, "loggers")
    config.callbacks = {"lr_monitor": None, "speed_monitor": {"window_size": 3}}
    assert sum(made.__class__.__name__ == "LRMonitor" for made in build_components(config, "callbacks")) == 1
    assert named(config, "callbacks")["speed_monitor"] == {"window_size": 3}


@pytest.mark.slow
def test_mlflow_of_a_real_run(tmp_path: Path) -> None:
    """In a local store, without a server; mlflow comes with the extra `track`."""
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = run_config(write_data(tmp_path / "data"), tmp_path / "run", max_duration="5ba", run_name="shear")
    config.loggers = {
        "mlflow": {"tracking_uri": store, "experiment_name": "shearing", "log_system_metrics": False}
    }
    training.train(config)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("shearing")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= PROMISED
    losses = client.get_metric_history(run.info.run_id, "loss/train/total")
    assert sorted(metric.step for metric in losses) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_wandb_of_a_real_run_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B comes with the extra `track`; its offline file holds the names."""
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = run_config(write_data(tmp_path / "data"), tmp_path / "run", max_duration="5ba")
    config.loggers = {"wandb": {"project": "shearing", "init_kwargs": {"dir": str(tmp_path)}}}
    training.train(config)
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = path.read_bytes()  # records of protobuf, not compressed
    assert not [name for name in PROMISED if name.encode() not in written]


@pytest.mark.parametrize(("given", "mode"), [(None, "offline"), ("online", "online")])
def test_wandb_is_offline_by_default(given: str | None, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setitem(REGISTRIES["loggers"], "wandb", lambda **settings: made.append(settings))
    monkeypatch.delitem(components._PACKAGES, "wandb")  # it may not be installed
    monkeypatch.setenv("WANDB_MODE", given or "")
    if given is None:
        monkeypatch.delenv("WANDB_MODE")
    config = run_config(Path("nowhere"))
    config.loggers = {"wandb": {"project": "shearing"}}
    building.build_loggers(config)
    assert made == [{"project": "shearing"}]
    assert os.environ["WANDB_MODE"] == mode
