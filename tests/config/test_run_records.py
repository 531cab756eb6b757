"""What is written down of the environment, and what is read from what others wrote: nothing."""

import pytest
import torch
import yaml

from llmshearing.checkpoints.describing import run_config
from llmshearing.checkpoints.opening import open_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.oneshot import oneshot
from llmshearing.config import as_model_config
from llmshearing.config.plain import parse
from llmshearing.config.reading import load_config, parse_record, read_record
from llmshearing.config.resuming import changes
from llmshearing.config.writing import to_yaml
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.training import train
from runs import SEQ_LEN, SIZES, run_values, write_data
from runs import run_config as tiny_run

SECRET = "hunter2-e4c1"


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A configuration that takes texts, a number, a choice and a duration from the environment."""
    for name, value in {
        "SECRET": SECRET,
        "SEED": "23",
        "PRECISION": "fp32",
        "LONG": "7ba",
        "N": "0.5",
    }.items():
        monkeypatch.setenv(f"LS_{name}", value)
    values = run_values(tmp_path / "data", tmp_path / "run")
    values |= {
        "data_local": "${oc.env:LS_SECRET}/mds",
        "data_remote": "${data_local}",
        "which": "SECRET",
        "run_name": "${oc.env:LS_${which}}",
        "seed": "${oc.env:LS_SEED}",
        "precision": "${oc.env:LS_PRECISION}",
        "max_duration": "${oc.env:LS_LONG}",
        "tokenizer_name": "${oc.env:LS_NOWHERE,tokenizer}",
        "loggers": {
            "wandb": {"init_kwargs": {"key": "${oc.env:LS_SECRET}", "list": ["a", "${data_remote}"]}}
        },
    }
    values["callbacks"]["data_loading"]["set_names"] = ["code", "books", "${oc.env:LS_SECRET}"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values).replace("which: SECRET\n", "").replace("${which}", "SECRET"))
    return path


def test_texts_of_the_environment_are_recorded_as_they_are_written(path):
    config = load_config(path)
    assert config.data_remote == config.data_local == f"{SECRET}/mds"
    assert config.run_name == config.data_loading.set_names[2] == SECRET
    assert (config.seed, config.precision, config.max_duration) == (23, "fp32", "7ba")
    assert config.tokenizer_name == "tokenizer"
    text = to_yaml(config)
    assert SECRET not in text
    recorded = parse(text)
    assert recorded["data_remote"] == "${oc.env:LS_SECRET}/mds"
    assert recorded["loggers"]["wandb"]["init_kwargs"]["list"] == ["a", "${oc.env:LS_SECRET}/mds"]
    assert recorded["callbacks"]["data_loading"]["set_names"][2] == "${oc.env:LS_SECRET}"
    # What a model and a resume depend on is recorded as it was.
    assert [recorded[key] for key in ("seed", "precision", "max_duration")] == ["23", "fp32", "7ba"]
    assert changes(text, text) == ([], [])
    copy = path.with_name("config.yaml")
    copy.write_text(text)
    assert load_config(copy) == config
    assert read_record(copy).run_name == "${oc.env:LS_SECRET}"


def test_no_file_of_a_run_holds_a_text_of_the_environment(path, tmp_path):
    """A run of one epoch: 3 x 56 sequences in steps of 8."""
    write_data(tmp_path / "data")
    overrides = ["loggers=null", "run_name=${oc.env:LS_SECRET}", "max_duration=1ep", "eval_interval=1ep"]
    overrides += [
        "callbacks.data_loading.set_names=[code,books,wiki]",
        "algorithms=null",
        "save_interval=1ep",
    ]
    train(load_config(path, overrides))
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and not file.is_symlink()]
    assert {"config.yaml", "metrics.jsonl", "ep0-ba21-rank0.pt"} <= {file.name for file in files}
    assert [file.name for file in files if SECRET.encode() in file.read_bytes()] == []
    written = read_record(tmp_path / "run/config.yaml")
    assert written.run_name == "${oc.env:LS_SECRET}"
    assert (written.max_duration, written.eval_interval, written.save_interval) == ("21ba", "21ba", "21ba")


def test_no_file_of_a_run_holds_where_its_teacher_and_scores_came_from(tmp_path, monkeypatch):
    """The place is a text of the environment, all the way to the hash of the teacher."""
    monkeypatch.setenv("LS_PLACE", str(tmp_path / SECRET))
    model = ComposerMosaicLlama(as_model_config({**SIZES, "max_seq_len": SEQ_LEN}))
    config = yaml.safe_dump({"model": {**SIZES, "max_seq_len": SEQ_LEN}})
    write_checkpoint(tmp_path / SECRET / "teacher.pt", model.state_dict(), {"config": config, "hf_files": {}})
    scores = tmp_path / SECRET / "scores"
    made = {"method": "random", "scores": str(scores), "sizes": {"d_model": 24}}
    oneshot(scores.with_name("teacher.pt"), tmp_path / "x.pt", **made)
    values = run_values(write_data(tmp_path / "data"), tmp_path / "run")
    values |= {"distillation": {"teacher": "${oc.env:LS_PLACE}/teacher.pt"}, "max_duration": "2ba"}
    values["model"] |= {"path": "${oc.env:LS_PLACE}/teacher.pt"}
    values["model"]["l0_module"]["init"] = "${oc.env:LS_PLACE}/scores"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    train(load_config(tmp_path / "run.yaml"))
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 3
    assert [file.name for file in files if SECRET.encode() in file.read_bytes()] == []
    record = torch.load(tmp_path / "run" / "ep0-ba2-rank0.pt", weights_only=False)["state"]["callbacks"]
    assert record["RunRecord"]["teacher"]["path"] == "${oc.env:LS_PLACE}/teacher.pt"


def test_a_value_that_the_program_set_is_recorded_in_place_of_the_files(path):
    config = load_config(path)
    config.run_name, config.loggers = "other", {}
    assert parse(to_yaml(config))["run_name"] == "other"


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:LS_SECRET}",
        "${ oc.env : LS_SECRET }",
        "${oc.${a}:LS_SECRET}",
        "${${b}:LS_SECRET}",
        "${oc.env:LS_${c}}",
        "${oc.decode:${oc.env:LS_SECRET}}",
        "${oc.select:x,${oc.env:LS_SECRET}}",
        "${oc.create:${oc.env:LS_SECRET}}",
        "a${d}b",
    ],
)
@pytest.mark.parametrize("place", ["record", "config.yaml", "config.pt"])
def test_what_is_read_as_data_looks_up_nothing(tmp_path, monkeypatch, text, place):
    """A stranger's checkpoint, and the files beside it."""
    from omegaconf import OmegaConf

    monkeypatch.setenv("LS_SECRET", SECRET)
    model = ComposerMosaicLlama(tiny_run(tmp_path / "data", prune=False).model)
    values = {"a": "env", "b": "oc.env", "c": "SECRET", "d": "${oc.env:LS_SECRET}", "max_seq_len": 16}
    values["model"] = {
        "name": "mosaic_llama",
        "n_heads": 4,
        "activation": text,
        "max_seq_len": "${max_seq_len}",
    }
    path = tmp_path / "latest-rank0.pt"
    record = {"config": yaml.safe_dump(values)} if place == "record" else {}
    torch.save({"state": {"model": model.state_dict()}, "llmshearing": record}, path)
    if place == "config.yaml":
        (tmp_path / place).write_text(yaml.safe_dump({"base": "/etc/passwd", **values}))
    elif place == "config.pt":
        torch.save(OmegaConf.create(values), tmp_path / place)
    section = run_config(open_checkpoint(path))
    assert section is not None
    assert section.max_seq_len == 16
    assert SECRET not in str(section.activation)
    assert "${" in str(section.activation)


def test_a_record_of_the_previous_version_is_read():
    """Written by OmegaConf, with numbers as it has them."""
    text = "model:\n  name: mosaic_llama\n  d_model: 8\n  rope_scaling: null\n  rms_norm_eps: 1.0e-05\n"
    section = as_model_config(parse_record(text)["model"])
    assert (section.d_model, section.rms_norm_eps) == (8, 1e-5)
    with pytest.raises(ValueError, match="the recorded configuration is a dict; expected YAML"):
        parse_record({"model": {}})  # type: ignore[arg-type]
