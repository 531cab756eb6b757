"""Runs with a teacher: what they log and leave behind, and that they are exact however they are cut."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.opening import open_checkpoint
from llmshearing.checkpoints.weights import weights_sha256
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.config import DistillationConfig, ModelConfig, build
from llmshearing.config.writing import to_yaml
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.decoder import Decoder
from llmshearing.training import train
from processes import assert_close, assert_same, interrupted, metrics, run, weights, write_config
from runs import SEQ_LEN, SIZES, run_config, write_data

SHARDED = {"state_dict_type": "sharded"}
KL, CE, TOTAL = (f"loss/train/{name}" for name in ("kl_loss", "ce_loss", "total"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A GPT-NeoX of four layers, wider than the model, with the model's vocabulary."""
    return write_model(tmp_path_factory.mktemp("teacher") / "teacher.pt", d_model=64, n_layers=4, seed=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """The model that runs start from."""
    return write_model(tmp_path_factory.mktemp("source") / "source.pt", seed=1, family="llama")


def write_model(path: Path, seed: int, family: str = "gpt_neox", **sizes: int) -> str:
    torch.manual_seed(seed)
    values = {**SIZES, "max_seq_len": SEQ_LEN, "family": family, "init_std": 0.2, **sizes}
    model = ComposerMosaicLlama(build(ModelConfig, values))
    config = run_config(Path("nowhere"), prune=False)
    config.model = build(ModelConfig, values)
    write_checkpoint(path, model.state_dict(), {"config": to_yaml(config), "hf_files": {}})
    return str(path)


def last(folder: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(run_folder.checkpoints(folder)[0]).weights


@pytest.mark.parametrize("prune", [True, False], ids=["pruning", "dense"])
def test_a_run_learns_from_its_teacher(tmp_path, data, source, teacher, prune):
    settings = {"max_duration": "4ba", "eval_interval": "2ba", "save_interval": "2ba", "model__path": source}
    settings |= {"distillation": asdict(DistillationConfig(teacher, kl_weight=0.5, ce_weight=0.25))}
    train(run_config(data, tmp_path, prune, **settings))
    steps = [values for values in metrics(tmp_path).values() if KL in values]
    assert len(steps) == 4
    for values in steps:
        parts = 0.5 * values[KL] + 0.25 * values[CE] + values.get("loss/train/lag_loss", 0)
        assert values[TOTAL] == pytest.approx(parts, rel=1e-5)
        perplexity = values["metrics/train/LanguagePerplexity"]
        assert torch.tensor(perplexity).log() == pytest.approx(values[CE], rel=1e-5)
    checkpoint = open_checkpoint(run_folder.checkpoints(tmp_path)[0])
    assert checkpoint.record["teacher"] == {
        "path": teacher,
        "sha256": weights_sha256(open_checkpoint(teacher).weights),
    }
    plain = ComposerMosaicLlama(run_config(data, prune=prune).model).state_dict()
    assert checkpoint.weights.keys() == plain.keys()


def test_without_weight_the_divergence_changes_nothing(tmp_path, data, source, teacher):
    settings = {"max_duration": "4ba", "save_interval": "4ba", "model__path": source}
    train(run_config(data, tmp_path / "plain", **settings))
    settings |= {"distillation": asdict(DistillationConfig(teacher, kl_weight=0))}
    train(run_config(data, tmp_path / "section", **settings))
    assert_same(tmp_path / "plain", tmp_path / "section")


def test_a_pruning_run_has_its_source_for_a_teacher(tmp_path, data, source):
    """At the first step nothing is closed yet, but gates are drawn: the divergence is small, not 0."""
    settings = {"max_duration": "2ba", "eval_interval": "0ba", "model__path": source, "distillation": {}}
    train(run_config(data, tmp_path, **settings))
    checkpoint = open_checkpoint(run_folder.checkpoints(tmp_path)[0])
    assert checkpoint.record["teacher"]["path"] == source
    first, second = (values[KL] for values in metrics(tmp_path).values() if KL in values)
    assert 0 < first < 0.5 * metrics(tmp_path)[0][CE]
    assert second > 0


@pytest.mark.parametrize(
    "section",
    [
        {"layerchop": {"n_layers": 2, "warm_steps": "1ba"}},
        {"dimchop": {"target_model": {"d_model": 16, "n_heads": 2, "intermediate_size": 24}}},
        {"maskllm": {}},
    ],
    ids=lambda section: next(iter(section)),
)
def test_every_method_is_taught(tmp_path, data, source, section):
    """The source teaches itself until something goes, or its weights change."""
    settings = {f"model__{name}": values for name, values in section.items()}
    settings |= {"max_duration": "5ba", "eval_interval": "0ba", "model__path": source, "distillation": {}}
    train(run_config(data, tmp_path, prune=False, **settings))
    first, *_, last_one = (values[KL] for values in metrics(tmp_path).values() if KL in values)
    assert last_one > 1e-4
    assert (abs(first) < 1e-5) is ("maskllm" not in section)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_teacher_runs_once_a_microbatch(tmp_path, data, source, teacher, recompute, monkeypatch):
    calls: Counter[int] = Counter()
    real = Decoder.hidden_states

    def counting(self, *arguments):
        calls[self.arch.n_layers] += 1
        return real(self, *arguments)

    monkeypatch.setattr(Decoder, "hidden_states", counting)
    settings = {"max_duration": "3ba", "eval_interval": "0ba", "model__path": source}
    settings |= {"fsdp_config": {"activation_checkpointing": recompute}}
    settings |= {"distillation": {"teacher": teacher}}
    train(run_config(data, tmp_path, prune=False, **settings))
    assert calls == {4: 6, 3: 6}  # 3 steps of 8 sequences in microbatches of 4


def test_another_teacher_than_the_one_so_far_is_rejected(tmp_path, data, source):
    teacher = write_model(tmp_path / "teacher.pt", seed=2)
    settings = {"eval_interval": "0ba", "model__path": source, "distillation": {"teacher": teacher}}
    train(run_config(data, tmp_path / "run", max_duration="1ba", **settings))
    moved = tmp_path / "moved.pt"
    Path(teacher).rename(moved)
    settings |= {"distillation": {"teacher": str(moved)}, "autoresume": True}
    train(run_config(data, tmp_path / "run", max_duration="2ba", **settings))
    write_model(moved, seed=3)
    with pytest.raises(ValueError, match=r"different teacher: .*moved\.pt, whose weights had SHA-256 "):
        train(run_config(data, tmp_path / "run", max_duration="3ba", **settings))
    settings["distillation"]["kl_weight"] = 0.5
    with pytest.raises(ValueError, match=r"distillation\.kl_weight was 1\.0, is 0\.5"):
        train(run_config(data, tmp_path / "run", max_duration="3ba", **settings))


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize(
    ("world_size", "prune", "fsdp", "name"),
    [
        (1, True, {}, "ep0-ba4-rank0.pt"),
        (1, False, {}, "ep0-ba4-rank0.pt"),
        (2, True, SHARDED, "ep0-ba4"),
        (2, False, {}, "ep0-ba4-rank0.pt"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    tmp_path, data, source, teacher, world_size, prune, fsdp, name
):
    settings = {"max_duration": "7ba", "eval_interval": "3ba", "fsdp_config": fsdp, "model__path": source}
    settings["distillation"] = {} if prune else {"teacher": teacher}
    run([write_config(tmp_path / "whole", data, prune, **settings)], world_size)
    path = interrupted(tmp_path / "whole", tmp_path / "resumed", name)
    assert "resuming from" in run([path, "autoresume=true"], world_size)
    assert_same(tmp_path / "whole", tmp_path / "resumed")
    assert any(KL in values for values in metrics(tmp_path / "whole").values())


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("tied", [False, True])
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path, data, source, tied):
    teacher = write_model(tmp_path / "teacher.pt", seed=4, family="qwen2", tie_embeddings=tied)
    settings = {"max_duration": "10ba", "save_interval": "1000ba", "model__path": source}
    settings |= {"distillation": {"teacher": teacher}, "model__l0_module__noise": "shared"}
    for world_size in (1, 2):
        run([write_config(tmp_path / str(world_size), data, **settings)], world_size)
    assert sum(KL in values for values in metrics(tmp_path / "1").values()) == 10
    assert_close(tmp_path / "1", tmp_path / "2")
    assert weights(tmp_path / "2").keys() == weights(tmp_path / "1").keys()


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_one_that_is_not(tmp_path, data, source, teacher):
    settings = {"max_duration": "3ba", "eval_interval": "0ba", "model__path": source}
    settings |= {"distillation": {"teacher": teacher}}
    train(run_config(data, tmp_path / "plain", **settings))
    torch._dynamo.reset()
    train(run_config(data, tmp_path / "compiled", compile_config={"backend": "aot_eager"}, **settings))
    assert_close(tmp_path / "plain", tmp_path / "compiled")
