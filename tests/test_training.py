"""A whole pruning run in miniature: golden losses, what it logs, what it leaves behind."""

import json
import platform
import re
import signal
from pathlib import Path

import pytest
import torch
from composer.utils import dist
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from llmshearing.callbacks.end_of_data import EndOfData
from llmshearing.checkpoints.run_folder import checkpoints, step_of
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.config import DataLoadingConfig
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import Manifest
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.counts import training_flops
from llmshearing.training import build_trainer, train
from runs import DOMAINS, SEQ_LEN, TARGET, run_config, write_data

GOLDEN = Path(__file__).parent / "golden" / "pruning_losses.json"  # of the default stack
RECORDED = [GOLDEN, GOLDEN.with_name("pruning_losses-current.json")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pruning run of 20 steps in fp32 on one CPU thread; its folder."""
    folder = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(run_config(write_data(folder / "data"), folder / "out", max_duration="20ba"))
    torch.set_num_threads(threads)
    return folder / "out"


def arithmetic():
    """What decides the last bits of a sum."""
    cpuinfo = Path("/proc/cpuinfo")
    vendor = re.search(r"vendor_id\s*: (\w+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    kind = torch.backends.cpu.get_cpu_capability()
    return [torch.__version__, platform.machine(), kind, vendor[1] if vendor else ""]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def series(folder, key):
    return [line[key] for line in lines(folder) if key in line]


def test_losses_equal_the_golden_ones_exactly(run):
    """Regenerate after a change that is meant to move them: PYTHONPATH=tests python tests/test_training.py.

    To the bit where arithmetic is the same: torch's version and the processor's kind. Elsewhere sums run in
    another order, and five digits must agree.
    """
    recorded = [json.loads(path.read_text()) for path in RECORDED]
    golden = next((each for each in recorded if each["arithmetic"] == arithmetic()), recorded[0])
    exact = golden["arithmetic"] == arithmetic()
    for key, values in golden["losses"].items():
        assert series(run, key) == (values if exact else pytest.approx(values, rel=1e-5)), key


@pytest.mark.slow
def test_losses_equal_the_golden_ones_where_closed_units_are_executed_too(run, tmp_path):
    data = write_data(tmp_path / "data")
    train(run_config(data, tmp_path / "out", max_duration="20ba", model__execute="all"))
    for key, values in json.loads(GOLDEN.read_text())["losses"].items():
        assert series(tmp_path / "out", key) == pytest.approx(values, rel=1e-5), key


def test_golden_losses_of_the_stacks_are_close():
    first, *others = [json.loads(path.read_text())["losses"] for path in RECORDED]
    assert others
    for other in others:
        for key, values in first.items():
            assert other[key] == pytest.approx(values, rel=1e-5), key


def test_the_model_learns_and_is_pruned(run):
    losses = series(run, "loss/train/ce_loss")
    assert losses[-1] < losses[0] - 0.2
    target = series(run, "metrics/train/target_head_sparsity")
    assert target[:6] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5])


def test_every_metric_of_the_original_is_logged(run):
    keys = set().union(*lines(run))
    for module in ("head", "intermediate", "layer", "hidden"):
        assert {
            f"metrics/train/expected_{module}_sparsity",
            f"metrics/train/target_{module}_sparsity",
        } <= keys
    for domain in DOMAINS:
        assert {f"metrics/train/{domain}_weight", f"metrics/eval/{domain}_LanguageCrossEntropy"} <= keys
    assert {"loss/train/ce_loss", "loss/train/lag_loss", "loss/train/total"} <= keys


def test_throughput_is_logged_in_tokens_and_operations(run):
    logged = [line for line in lines(run) if "throughput/flops_per_sec" in line]
    assert len(logged) == 10, "every step once ten are there"
    architecture = build_trainer(run_config(run.parent / "data")).state.model.model.arch
    by_token = training_flops(architecture, 1, SEQ_LEN) / SEQ_LEN
    rates = [line["throughput/flops_per_sec"] / line["throughput/tokens_per_sec"] for line in logged]
    assert all(rate < by_token * (1 + 1e-9) for rate in rates)
    assert rates[-1] < 0.99 * by_token, "closed units are not executed, and do not count"
    assert all(rate > 0.3 * by_token for rate in rates)


def test_total_is_the_sum_of_its_parts(run):
    for line in lines(run):
        if "loss/train/total" in line:
            parts = line["loss/train/ce_loss"] + line["loss/train/lag_loss"]
            assert line["loss/train/total"] == pytest.approx(parts, rel=1e-6)


def test_domain_losses_average_to_the_batch_loss_and_absent_domains_are_skipped(run):
    counted = 0
    for line in lines(run):
        present = [line[k] for d in DOMAINS if (k := f"metrics/train/{d}_LanguageCrossEntropy") in line]
        if "loss/train/ce_loss" in line:
            assert min(present) <= line["loss/train/ce_loss"] + 1e-6
            assert max(present) >= line["loss/train/ce_loss"] - 1e-6
            counted += len(present)
    assert 0 < counted < 20 * len(DOMAINS), "some step of 8 samples lacks a domain"


def test_masks_in_the_run_folder_have_the_target_shape(run):
    gates = load_file(run / "zs_s20.safetensors")
    assert (gates["head"] != 0).sum(1).tolist() == [TARGET["n_heads"]] * 3
    assert (gates["hidden"] != 0).sum().item() == TARGET["d_model"]
    assert (gates["layer"] != 0).sum().item() == TARGET["n_layers"]


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_one_that_is_not(run, tmp_path):
    data = write_data(tmp_path / "data")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(run_config(data, tmp_path / "out", max_duration="20ba", compile_config={"backend": "aot_eager"}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    key = "loss/train/total"
    assert series(tmp_path / "out", key) == pytest.approx(series(run, key), rel=1e-5)


@pytest.mark.parametrize("same", [True, False])
def test_a_tokenizer_that_does_not_match_the_data_is_rejected(tmp_path, caplog, same):
    folder = write_data(tmp_path / "data")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    (tmp_path / "words").mkdir()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    (tmp_path / "words" / "tokenizer_config.json").write_text("{}")
    vocabulary = load_tokenizer(str(tmp_path / "words")).vocabulary_sha256 if same else "another"
    made_with = {"name": "words", "vocab_size": 64, "vocabulary_sha256": vocabulary}
    Manifest(SEQ_LEN, "uint16", made_with, {}, {}, {}, {}).write(folder)
    files = {"tokenizer.json": tokenizer.to_str()}
    if not same:
        with pytest.raises(ValueError, match=r"words \(64 ids\) has another vocabulary than the one"):
            build_trainer(run_config(folder, tokenizer_name=str(tmp_path / "words")))
    weights = ComposerMosaicLlama(run_config(folder, prune=False).model).state_dict()
    write_checkpoint(tmp_path / "source.pt", weights, {"hf_files": files, "config": None})
    build_trainer(run_config(folder, model__path=str(tmp_path / "source.pt"))).close()
    assert ("carries one with another vocabulary" in caplog.text) != same


@pytest.mark.parametrize(
    ("duration", "warm_up"), [("384tok", "2ba"), ("24sp", "250tok"), ("3ba", "16sp"), ("3ba", "0.7dur")]
)
def test_durations_may_have_different_units(tmp_path, duration, warm_up):
    """Three steps of 8 sequences of 16 tokens, two of them warming up; Composer takes one unit only."""
    changes = {"max_duration": duration, "scheduler__t_warmup": warm_up, "callbacks__lr_monitor": {}}
    train(run_config(write_data(tmp_path / "data"), tmp_path / "out", **changes))
    assert series(tmp_path / "out", "lr-AdamW/group0") == pytest.approx([0, 1.5e-3, 3e-3])


def test_problems_of_all_ranks_are_reported_on_each(tmp_path, monkeypatch):
    others = ["scheduler.name is 'step'; expected one of", "There is no data folder /data"]
    config = run_config(write_data(tmp_path / "data"))
    config.scheduler.name = "step"
    gather = dist.all_gather_object

    def gather_from_two(obj):
        return [obj, [*obj, others[1]]] if isinstance(obj, list) else gather(obj)

    monkeypatch.setattr(dist, "all_gather_object", gather_from_two)
    with pytest.raises(ValueError, match=r"scheduler\.name is 'step'") as found:
        build_trainer(config)
    first, second = str(found.value).splitlines()
    assert first.startswith(others[0])
    assert second == f"On rank 1 alone: {others[1]}"


def test_processes_wait_for_one_another_as_long_as_configured(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(dist, "initialize_dist", lambda device, timeout: waits.append(timeout))
    build_trainer(run_config(write_data(tmp_path / "data"), dist_timeout=77.0)).close()
    assert set(waits) == {77.0}


def test_optimizer_groups_are_model_masks_and_multipliers(tmp_path):
    config = run_config(write_data(tmp_path / "data"), optimizer__weight_decay=1e-5)
    trainer = build_trainer(config)
    model = trainer.state.model
    groups = trainer.state.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [
        len(list(model.model.transformer.parameters())),
        len(model.model.l0_module.masks),
        len(model.model.l0_module.lambdas),
    ]
    assert [group["initial_lr"] for group in groups] == [3e-3, 0.5, 0.5]
    assert [group["weight_decay"] for group in groups] == [pytest.approx(1e-5 / 3e-3), 0.0, 0.0]
    trainer.close()


def test_decoupled_adamw_equals_composers(tmp_path):
    from composer.optim import DecoupledAdamW

    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64)) for _ in range(2)]
    ours = torch.optim.AdamW(weights[:1], lr=3e-3, betas=(0.9, 0.95), weight_decay=1e-2 / 3e-3, fused=True)
    theirs = DecoupledAdamW(weights[1:], lr=3e-3, betas=(0.9, 0.95), weight_decay=1e-2)
    for step in range(10):
        for optimizer, weight in zip((ours, theirs), weights, strict=True):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 20)
            weight.grad = torch.cos(weight.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        torch.set_num_threads(1)
        train(run_config(write_data(Path(name) / "data"), Path(name) / "out", max_duration="20ba"))
        keys = ["loss/train/ce_loss", "loss/train/lag_loss", "metrics/eval/LanguageCrossEntropy"]
        losses = {key: series(Path(name) / "out", key) for key in keys}
    declared = json.loads(GOLDEN.read_text())["arithmetic"][0]
    place = RECORDED[torch.__version__ != declared]
    place.write_text(json.dumps({"arithmetic": arithmetic(), "losses": losses}, indent=1) + "\n")
    sys.stdout.write(f"wrote {place}\n")


@pytest.mark.parametrize(
    ("exhausted", "domains", "steps"), [("renormalize", True, 3), ("stop", True, 1), ("stop", False, 1)]
)
def test_run_saves_and_stops_when_data_is_exhausted(tmp_path, exhausted, domains, steps):
    config = run_config(write_data(tmp_path / "data", sequences=16), tmp_path / "out", max_duration="100ba")
    config.train_loader.dataset.exhausted, config.autoresume = exhausted, True
    config.save_interval, config.eval_interval = "100ba", "0ba"
    if not domains:
        config.train_loader.dataset.split = "for_prune/code"
        config.data_loading = DataLoadingConfig()
    for _ in range(2):
        train(config)
        (saved,) = checkpoints(tmp_path / "out")
        state = load_tensors(saved)["state"]["dataset_state"]["train"]
        assert (step_of(saved), json.loads(state["mixture"])["sample"]) == (steps, 8 * steps)


@pytest.mark.parametrize(
    ("step", "left"), [(3, "no checkpoint was saved"), (5, "autoresume=true resumes from")]
)
def test_an_interrupt_says_what_is_left(tmp_path, monkeypatch, step, left):
    def interrupt(callback, state, logger):
        if state.timestamp.batch.value == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EndOfData, "batch_start", interrupt)
    config = run_config(write_data(tmp_path / "data", sequences=16), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt, match=left) as found:
        train(config)
    assert ("ep0-ba4-rank0.pt" in str(found.value)) == (step > 4)
