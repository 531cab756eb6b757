"""An interrupted run that goes on is the uninterrupted one, on any number of processes."""

import errno
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from composer.core import Callback

from llmshearing import training
from llmshearing.checkpoints import run_folder
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.config.resuming import changes
from llmshearing.datasets.manifest import Manifest, read_manifest
from llmshearing.files import occupied
from processes import Ranks, assert_close, assert_same, interrupted, keep_only, run, weights, write_config
from reliability import faults
from runs import SEQ_LEN, VOCABULARY, run_config, write_data

SHARDED = {"state_dict_type": "sharded"}
_DIMENSIONS = {
    "window": 3,
    "warm_steps": "2ba",
    "final_steps": "2ba",
}  # a checkpoint after 4 steps is in a window
METHODS = {
    "dense": {},
    "lagrangian": {"model__l0_module__constraint": "lagrangian"},
    "projection": {"model__l0_module__constraint": "projection"},
    "layerchop": {
        "model__n_layers": 5,
        "model__layerchop": {"n_layers": 3, "warm_steps": "3ba", "layers_per_cut": 1, "interval": "3ba"},
    },
    "dimchop": {
        "model__dimchop": {
            "target_model": {"d_model": 16, "n_heads": 2, "intermediate_size": 24},
            **_DIMENSIONS,
        }
    },
    "columns": {"model__dimchop": {"tied": False, "sparsity": 0.5, **_DIMENSIONS}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def goes_on(path, world_size):
    output = run([path, "autoresume=true"], world_size)
    assert "resuming from" in output
    assert "not in the state_dict" not in output  # which Composer warns of a callback without a state


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("world_size", "fsdp", "name"),
    [(1, {}, "ep0-ba4-rank0.pt"), (2, {}, "ep0-ba4-rank0.pt"), (2, SHARDED, "ep0-ba4")],
    ids=["1", "2", "2-sharded"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, data, method, world_size, fsdp, name):
    """Noise differs by rank here; evaluations, domain weights and samples come after the checkpoint too."""
    settings = {"max_duration": "9ba", "eval_interval": "3ba", "fsdp_config": fsdp, **METHODS[method]}
    prune = method in ("lagrangian", "projection")
    run([write_config(tmp_path / "whole", data, prune, **settings)], world_size)
    goes_on(interrupted(tmp_path / "whole", tmp_path / "resumed", name), world_size)
    assert_same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.world_size
def test_a_complete_run_is_left_alone_and_a_longer_one_resumes(tmp_path, data):
    path = write_config(tmp_path / "run", data, max_duration="4ba")
    run([path])
    before = weights(tmp_path / "run")
    assert "is complete (step 4): to resume it, raise max_duration" in run([path, "autoresume=true"])
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "run").items())
    run([path, "autoresume=true", "max_duration=6ba"])
    assert run_folder.step_of(run_folder.checkpoints(tmp_path / "run")[0]) == 6


@pytest.mark.slow
@pytest.mark.world_size
def test_data_that_was_replaced_is_reported(tmp_path):
    """Also where it has the same number of sequences, so that nothing else shows it."""
    data = write_data(tmp_path / "data")
    made_with = {"name": "words", "vocab_size": VOCABULARY, "vocabulary_sha256": "0" * 64}
    Manifest(SEQ_LEN, "uint16", made_with, {"seed": 1}, {}, {}, {}).write(data)
    path = write_config(tmp_path / "run", data, max_duration="2ba", save_interval="2ba")
    run([path])
    assert "training data differs" not in run([path, "autoresume=true", "max_duration=3ba"])
    Manifest(SEQ_LEN, "uint16", made_with, {"seed": 2}, {}, {}, {}).write(data)
    output = run([path, "autoresume=true", "max_duration=4ba"])
    assert "the training data differs from that of the run that wrote" in output
    assert f"its manifest.json has SHA-256 {read_manifest(data).sha256}" in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.world_size
def test_one_run_at_a_time_writes_to_a_folder(tmp_path, data):
    path = write_config(tmp_path / "run", data)
    with occupied(tmp_path / "run", "run", "save_folder"):
        ranks = Ranks([path], 1)
        assert ranks.wait() == [2]
        assert "Another run is writing to" in ranks.output()
        assert "Traceback" not in ranks.output()
    run([path, "max_duration=1ba"])


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("fsdp", [{}, SHARDED], ids=["full", "sharded"])
def test_a_run_resumes_with_another_number_of_processes(tmp_path, data, fsdp):
    """1 -> 2 -> 1 processes, from full and sharded checkpoints, with masks that all ranks share."""
    settings = {
        "max_duration": "12ba",
        "eval_interval": "3ba",
        "model__l0_module__noise": "shared",
        "fsdp_config": fsdp,
    }
    run([write_config(tmp_path / "whole", data, **settings)])
    path = write_config(tmp_path / "parts", data, **settings)
    run([path, "scheduler.t_warmup=2ba"], 1)
    keep_only(tmp_path / "parts", "ep0-ba4-rank0.pt")
    goes_on(path, 2)
    keep_only(tmp_path / "parts", "ep0-ba8" if fsdp else "ep0-ba8-rank0.pt")
    goes_on(path, 1)
    assert_close(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_weights_only_starts_a_new_run(tmp_path, data):
    run([write_config(tmp_path / "first", data, prune=False, max_duration="2ba")])
    first = tmp_path / "first/latest-rank0.pt"
    path = write_config(tmp_path / "second", data, prune=False, max_duration="1ba", optimizer__lr=0.0)
    run([path, f"load_path={first}", "load_weights_only=true"])
    for name, weight in weights(tmp_path / "first").items():
        assert torch.equal(weight, weights(tmp_path / "second")[name])


class Draws(Callback):
    """Draws a number in every step, as a part of Composer's might."""

    def __init__(self):
        self.drawn = []

    def batch_end(self, state, logger):
        self.drawn.append((random.random(), torch.rand(()).item()))


@pytest.mark.slow
def test_random_numbers_and_evaluations_continue_where_they_stopped(tmp_path, data, monkeypatch):
    build = training.build_callbacks
    draws = {}
    for name, ends in {"whole": [4], "resumed": [2, 4]}.items():
        draws[name] = Draws()
        monkeypatch.setattr(training, "build_callbacks", build)
        faults.add(draws[name])
        for end in ends:
            settings = {"max_duration": f"{end}ba", "autoresume": True, "eval_first": True}
            training.train(run_config(data, tmp_path / name, **settings))
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        assert [v["step"] for v in lines if "metrics/eval/LanguageCrossEntropy" in v] == [0, *ends]
        record = read_checkpoint(tmp_path / name / "latest-rank0.pt").record
        assert "max_duration: 4ba" in record["config"]
    assert draws["resumed"].drawn == draws["whole"].drawn


def test_weights_saved_alone_cannot_be_resumed(tmp_path, data):
    training.train(run_config(data, tmp_path, max_duration="1ba", save_weights_only=True))
    state = load_tensors(tmp_path / "latest-rank0.pt")["state"]
    assert [*state, *state["callbacks"]] == ["model", "callbacks", "RunRecord"]
    with pytest.raises(ValueError, match=r"it holds no optimizer state \(this run uses AdamW\)"):
        training.train(run_config(data, tmp_path, max_duration="2ba", autoresume=True))


def test_skipped_steps_count_over_launches(tmp_path, data, monkeypatch):
    def spoil(state):
        next(p.grad for p in state.model.parameters() if p.grad is not None).fill_(float("nan"))

    monkeypatch.setattr(training, "build_callbacks", training.build_callbacks)  # `add` replaces it
    for step in (1, 3):
        faults.add(faults.At("after_backward", step, spoil))
    settings = {"autoresume": True, "max_skipped_steps": 1}
    training.train(run_config(data, tmp_path / "run", max_duration="3ba", **settings))
    with pytest.raises(ValueError, match="Step 3 is not finite"):
        training.train(run_config(data, tmp_path / "run", max_duration="4ba", **settings))


@pytest.mark.slow
def test_a_folder_with_checkpoints_is_overwritten_only_on_request(tmp_path, data):
    path = write_config(tmp_path, data, max_duration="2ba")
    run([path])
    ranks = Ranks([path])
    assert ranks.wait() == [2]
    assert "holds checkpoints of an earlier run, the last of step 2" in ranks.output()
    run([path, "save_overwrite=true", "max_duration=1ba"])
    assert run_folder.latest_checkpoint(tmp_path).name == "ep0-ba1-rank0.pt"


def test_changes_separates_settings_that_prevent_resuming_from_others():
    before = "{model: {d_model: 8, path: a, l0_module: {noise: shared}}, optimizer: {name: adamw, lr: 1}}"
    now = (
        "{model: {d_model: 16, path: b, l0_module: null}, optimizer: {name: adamw, lr: 2}, save_folder: x, "
        "seed: 18, device_eval_batch_size: 3, precision: fp32, train_loader: {dataset: {split: for_ft}}, "
        "callbacks: {data_loading: {set_names: [a], proportion: [1], dynamic: true}}}"
    )
    fixed, others = changes(before, now)
    assert fixed == [
        "model.d_model was 8, is 16",
        "model.l0_module.noise was 'shared', is None",
        "optimizer.lr was 1.0, is 2.0",
        "seed was 17, is 18",
        "train_loader.dataset.split was '', is 'for_ft'",
        "callbacks.data_loading.set_names was None, is ['a']",
        "callbacks.data_loading.proportion was None, is [1.0]",
    ]
    assert others == [
        "precision was 'amp_bf16', is 'fp32'",
        "callbacks.data_loading.dynamic was False, is True",
    ]


@pytest.mark.slow
@pytest.mark.world_size
def test_other_settings_than_the_checkpoints_are_warned_about(tmp_path, data):
    path = write_config(tmp_path / "run", data, max_duration="2ba")
    run([path])
    assert "settings changed" not in run([path, "autoresume=true", "max_duration=3ba"])
    output = run([path, "autoresume=true", "max_duration=4ba", "scheduler.alpha_f=0.5"])
    assert "settings changed since the run that wrote" in output
    assert "ep0-ba3-rank0.pt: scheduler.alpha_f was 0.1, is 0.5" in output
    ranks = Ranks([path, "autoresume=true", "max_duration=5ba", "optimizer.lr=0.5"], 1)
    assert ranks.wait() == [2]
    assert "a different configuration: optimizer.lr was 0.003, is 0.5. Restore these keys" in ranks.output()


SHORT = {"max_duration": "2ba", "eval_interval": "0ba"}


def resumed(data, folder, **changes):
    training.train(
        run_config(data, folder, **{**SHORT, "max_duration": "3ba", "autoresume": True, **changes})
    )


@pytest.mark.parametrize("fsdp", [{}, SHARDED], ids=["full", "sharded"])
def test_noise_that_depends_on_the_microbatch_needs_the_same(tmp_path, data, fsdp):
    training.train(run_config(data, tmp_path / "run", fsdp_config=fsdp, **SHORT))
    for size in (2, 8, 16):
        reason = (
            rf"written with 4 sequences in a microbatch, this run has {min(size, 8)}\. The noise of model"
        )
        with pytest.raises(ValueError, match=reason):
            resumed(data, tmp_path / "run", device_train_microbatch_size=size)
    resumed(data, tmp_path / "run")


@pytest.mark.parametrize("settings", [{"model__l0_module__noise": "shared"}, {"prune": False}])
def test_another_microbatch_is_accepted_where_nothing_depends_on_it(tmp_path, data, settings):
    training.train(run_config(data, tmp_path / "run", **SHORT, **settings))
    resumed(data, tmp_path / "run", device_train_microbatch_size=2, **settings)


@pytest.mark.slow
@pytest.mark.world_size
@pytest.mark.parametrize("fsdp", [{}, SHARDED], ids=["full", "sharded"])
def test_noise_that_depends_on_the_processes_is_reported(tmp_path, data, fsdp):
    path = write_config(tmp_path / "run", data, fsdp_config=fsdp, **SHORT)
    run([path])
    output = run([path, "autoresume=true", "max_duration=3ba"], 2)
    assert (
        output.count(
            "was written by 1 processes, this run has 2. The noise of model.l0_module is drawn for each"
        )
        == 1
    )
    output = run([path, "autoresume=true", "max_duration=4ba"], 2)
    assert "The noise of model.l0_module" not in output


def test_a_learning_rate_that_jumps_is_reported(tmp_path, data, caplog):
    training.train(run_config(data, tmp_path / "run", **{**SHORT, "max_duration": "4ba"}))
    resumed(data, tmp_path / "run", max_duration="12ba")
    said = "is 12ba, which changes the schedule of learning rates. After step 4 they jump "
    assert (
        caplog.text.count(
            "max_duration was 4ba, " + said + "from 0.0003, 0.05, 0.05 to 0.002742, 0.457, 0.457"
        )
        == 1
    )


def test_an_unchanged_schedule_is_not_reported(tmp_path, data, caplog, monkeypatch):
    monkeypatch.setattr(training, "build_callbacks", training.build_callbacks)
    faults.add(faults.At("batch_checkpoint", 3, stop))
    config = run_config(data, tmp_path / "run", eval_interval="0ba", save_interval="1ba", max_duration="6ba")
    with pytest.raises(InterruptedError):
        training.train(config)
    monkeypatch.undo()
    resumed(data, tmp_path / "run", max_duration="6ba")
    assert run_folder.step_of(run_folder.checkpoints(tmp_path / "run")[0]) == 6
    assert "the schedule of learning rates" not in caplog.text


def stop(state):
    raise InterruptedError


def names(folder, pattern):
    return sorted(path.name for path in folder.glob(pattern))


def test_nothing_of_an_overwritten_run_stays(tmp_path, data):
    settings = {"eval_interval": "1ba", "eval_first": True, "save_interval": "1ba"}
    training.train(run_config(data, tmp_path, max_duration="3ba", **settings))
    training.train(run_config(data, tmp_path, max_duration="1ba", save_overwrite=True, **settings))
    assert names(tmp_path, "zs_*") == ["zs_s0.safetensors", "zs_s1.safetensors"]
    assert names(tmp_path, "ep0-*") == ["ep0-ba1-rank0.pt", "ep0-ba1-rank0.pt.json"]
    training.train(run_config(data, tmp_path / "alone", max_duration="1ba", **settings))
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path, tmp_path / "alone")]
    steps, alone = ([json.loads(line)["step"] for line in found] for found in lines)
    assert steps == alone
    assert not names(tmp_path, "superseded-*")


def test_a_run_from_an_earlier_checkpoint_moves_the_later_ones_away(tmp_path, data):
    settings = {"eval_interval": "0ba", "save_interval": "1ba", "save_num_checkpoints_to_keep": 2}
    training.train(run_config(data, tmp_path, max_duration="3ba", **settings))
    earlier = str(tmp_path / "ep0-ba2-rank0.pt")
    training.train(run_config(data, tmp_path, max_duration="3ba", load_path=earlier, **settings))
    aside = tmp_path / "superseded-1"
    assert [path.name for path in run_folder.checkpoints(aside)] == ["ep0-ba3-rank0.pt"]
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(tmp_path)] == [3, 2]


def test_a_complete_run_is_repaired(tmp_path, data):
    training.train(run_config(data, tmp_path, **SHORT))
    (tmp_path / "report.html").unlink()
    (tmp_path / "latest-rank0.pt").unlink()
    (tmp_path / ".incomplete").mkdir()
    resumed(data, tmp_path, max_duration="2ba")
    assert (tmp_path / "latest-rank0.pt").resolve() == run_folder.latest_checkpoint(tmp_path)
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / ".incomplete").exists()


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies of what they point to"])
def test_a_moved_or_copied_run_is_resumed(tmp_path, data, links):
    training.train(run_config(data, tmp_path / "whole", **{**SHORT, "max_duration": "3ba"}))
    training.train(run_config(data, tmp_path / "run", **SHORT))
    shutil.copytree(tmp_path / "run", tmp_path / "other", symlinks=links)
    shutil.rmtree(tmp_path / "run")
    assert read_checkpoint(tmp_path / "other" / "latest-rank0.pt").path.parent == tmp_path / "other"
    resumed(data, tmp_path / "other")
    saved = run_folder.checkpoints(tmp_path / "other")
    assert [run_folder.step_of(path) for path in saved] == [3, 2]
    assert (tmp_path / "other" / "latest-rank0.pt").resolve() == saved[0]


def test_a_run_on_a_file_system_without_links_is_resumed_and_read(tmp_path, data, monkeypatch):
    def refused(self, target, *rest):
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refused)
    training.train(run_config(data, tmp_path / "run", **SHORT))
    latest = tmp_path / "run" / "latest-rank0.pt"
    assert latest.read_text() == "ep0-ba2-rank0.pt\n"
    assert read_checkpoint(latest).path == tmp_path / "run" / "ep0-ba2-rank0.pt"
    training.train(run_config(data, tmp_path / "next", load_path=str(latest), max_duration="3ba"))
    resumed(data, tmp_path / "run")
    assert latest.read_text() == "ep0-ba3-rank0.pt\n"


def test_configuration_is_written_whole_or_not_at_all(tmp_path, data, monkeypatch):
    write = Path.write_text

    def cut_off(self, text, *rest, **more):
        if self.name != "config.yaml":
            return write(self, text, *rest, **more)
        write(self, "model: {d_mo")
        raise InterruptedError

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(InterruptedError):
        training.train(run_config(data, tmp_path / "run", **SHORT))
    assert names(tmp_path / "run", "*") == []
