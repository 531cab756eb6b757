"""Checkpoints and configurations of the previous version: loaded, pruned, exported and resumed today.

`fixtures/previous/README.md` says what the previous code made them from.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmshearing.checkpoints import run_folder
from llmshearing.commands.convert import save_composer_to_hf
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.config.reading import load_config
from llmshearing.config.writing import to_yaml
from llmshearing.training import train
from processes import metrics, run
from runs import write_data

PREVIOUS = Path(__file__).parent / "fixtures" / "previous"
FIGURES = json.loads((PREVIOUS / "figures.json").read_text())
CHECKPOINTS = {"full": "full/ep0-ba4-rank0.pt", "sharded": "sharded/ep0-ba4"}
RUN = ["save_folder=full"]  # with which `run.yaml` was started


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The previous run's folders, with its source model; relative paths lead there."""
    with tarfile.open(PREVIOUS / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(PREVIOUS / "run.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@torch.no_grad()
def hf_loss(folder: Path) -> float:
    """Mean loss of an exported model, by transformers, on 48 sequences of a formula."""
    index = torch.arange(48 * 16).reshape(48, 16)
    ids = (index * index // 7 + index) % 64
    return AutoModelForCausalLM.from_pretrained(folder).eval()(ids, labels=ids).loss.item()


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values in nested mappings by their dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def assert_logs_as_before(folder: Path) -> None:
    """A resumed run logged everything that the previous code logged from step 4 on, with the same values."""
    logged = metrics(folder)
    for step, values in FIGURES["steps"].items():
        found = {key: logged[int(step)].get(key) for key in values}
        assert found == pytest.approx(values, rel=1e-5, abs=1e-6), f"step {step}"


@pytest.mark.parametrize("name", ["run.yaml", "full/config.yaml"])
def test_every_key_of_a_previous_configuration_keeps_its_value(folder, name):
    expected = leaves(OmegaConf.to_container(OmegaConf.load(folder / "full/config.yaml")))
    found = leaves(OmegaConf.to_container(OmegaConf.create(to_yaml(load_config(name, RUN)))))
    if name == "run.yaml":  # the run itself filled in what it read from the source model
        expected = {
            key: value
            for key, value in expected.items()
            if found.get(key, value) is not None or not key.startswith("model.")
        }
    assert {key: found.get(key, "missing") for key in expected} == expected


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_previous_checkpoint_prunes_to_the_same_model(folder, kind):
    prune_and_save_model(CHECKPOINTS[kind], out="pruned.pt", hf="pruned-hf")
    assert hf_loss(folder / "pruned-hf") == pytest.approx(FIGURES["hf_loss"]["pruned"], rel=1e-6)
    save_composer_to_hf("pruned.pt", "again-hf")
    pruned, again = (load_file(folder / name / "model.safetensors") for name in ("pruned-hf", "again-hf"))
    assert pruned.keys() == again.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in pruned.items())


def test_previous_source_exports_to_the_same_model(folder):
    save_composer_to_hf("source.pt", "source-hf")
    assert hf_loss(folder / "source-hf") == pytest.approx(FIGURES["hf_loss"]["source"], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("full", "run.yaml"), ("full", "full/config.yaml"), ("sharded", "sharded/config.yaml")],
)
def test_previous_run_resumes_to_the_same_losses(folder, kind, config):
    """On one process, also from the checkpoint that two processes wrote."""
    write_data(folder / "data")
    train(load_config(config, [f"save_folder={kind}", "autoresume=true"]))
    assert_logs_as_before(folder / kind)
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(folder / kind)] == [8, 4]


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_previous_run_resumes_on_two_processes(folder, kind):
    write_data(folder / "data")
    run([str(folder / kind / "config.yaml"), "autoresume=true"], world_size=2)
    assert_logs_as_before(folder / kind)
