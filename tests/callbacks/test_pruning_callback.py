"""The pruning callback drives the method, logs what it reports and saves its gates."""

import math

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.callbacks.pruning_callback import PruningCallback
from llmshearing.config import as_model_config
from llmshearing.models.composer_llama import ComposerMosaicLlama
from runs import SEQ_LEN, SIZES, TARGET, VOCABULARY
from stubs import NO_LOGGER, Logged, state


@pytest.fixture
def model():
    l0 = {"lagrangian_warmup_steps": "8ba", "target_model": dict(TARGET)}
    return ComposerMosaicLlama(as_model_config({**SIZES, "max_seq_len": SEQ_LEN, "l0_module": l0}))


def at(model, step=0, **parts):
    batch = {"input_ids": torch.zeros(2, SEQ_LEN, dtype=torch.long)}
    return state(step, model=model, rank_zero_seed=5, **{"batch": batch, **parts})


def hidden_gates(model):
    return model.model.l0_module()["hidden_z"]


def widen(model):
    """log_alphas beyond their limit, as an optimizer's step leaves them."""
    with torch.no_grad():
        model.model.l0_module.masks["head"].z_loga.fill_(9.0)


def test_noise_depends_on_the_seed_and_the_step_of_the_run(model):
    callback = PruningCallback()
    callback.fit_start(at(model), NO_LOGGER)
    assert model.model.l0_module.seed == 5
    draws = []
    for step in (3, 4, 3):
        callback.batch_start(at(model, step), NO_LOGGER)
        draws.append(hidden_gates(model))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("event", ["fit_start", "batch_end"])
def test_log_alphas_are_brought_within_their_limit(model, event):
    widen(model)
    getattr(PruningCallback(), event)(at(model), NO_LOGGER)
    assert model.model.l0_module.masks["head"].z_loga.max().item() == pytest.approx(math.log(100))


@pytest.mark.parametrize("event", ["batch_start", "eval_batch_start"])
def test_targets_and_multipliers_are_logged_at_the_step_of_the_run(model, event):
    callback, logged = PruningCallback(), Logged()
    getattr(callback, event)(at(model, 2), NO_LOGGER)
    ids = torch.zeros(2, SEQ_LEN, dtype=torch.long)
    outputs = model({"input_ids": ids, "labels": ids})
    step = at(model, 2, outputs=outputs)
    numbers = {name: value.item() for name, value in callback.own(step).items()}
    callback.take(step, logged.logger, numbers)
    names = {"head", "intermediate", "layer", "hidden"}
    expected = {f"metrics/train/{side}_{name}_sparsity" for side in ("expected", "target") for name in names}
    expected |= {"metrics/train/expected_sparsity", "metrics/train/target_sparsity"}
    expected |= {
        f"metrics/train/lambda_{i}{pair}" for i in (1, 2) for pair in ("", *(f"_{n}" for n in names))
    }
    assert set(logged) == expected
    final = 1 - TARGET["d_model"] / SIZES["d_model"]
    assert logged["metrics/train/target_hidden_sparsity"] == pytest.approx(final * 2 / 8)


def test_gates_are_saved_after_an_evaluation_as_evaluation_computes_them(model, tmp_path):
    PruningCallback(str(tmp_path / "run")).eval_end(at(model, 7), NO_LOGGER)
    (saved,) = (tmp_path / "run").iterdir()
    assert saved.name == "zs_s7.safetensors"
    gates = load_file(saved)
    assert set(gates) == {"head", "intermediate", "layer", "hidden"}
    assert torch.equal(gates["hidden"], hidden_gates(model.eval()))
    assert gates["head"].shape == (SIZES["n_layers"], SIZES["n_heads"])


def test_without_a_folder_no_gates_are_saved(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PruningCallback().eval_end(at(model, 7), NO_LOGGER)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_method_fails_an_assertion():
    dense = ComposerMosaicLlama(as_model_config({**SIZES, "max_seq_len": SEQ_LEN, "vocab_size": VOCABULARY}))
    with pytest.raises(AssertionError):
        PruningCallback().fit_start(at(dense), NO_LOGGER)


def test_the_method_sees_gradients_once_a_step_after_the_last_microbatch(model, monkeypatch):
    calls = []
    monkeypatch.setattr(model.model.l0_module, "after_backward", lambda decoder: calls.append(len(seen)))
    callback, seen = PruningCallback(), []
    for sizes in ((2, 2), (4,), (3, 1)):
        callback.batch_start(at(model, batch={"input_ids": torch.zeros(4, SEQ_LEN)}), NO_LOGGER)
        callback.before_train_batch(at(model), NO_LOGGER)
        if sizes == (3, 1):  # memory ran out after the first, and the step begins once more
            callback.after_backward(at(model, batch={"input_ids": torch.zeros(2, SEQ_LEN)}), NO_LOGGER)
            callback.before_train_batch(at(model), NO_LOGGER)
        for size in sizes:
            seen.append(size)
            callback.after_backward(at(model, batch={"input_ids": torch.zeros(size, SEQ_LEN)}), NO_LOGGER)
    assert calls == [2, 3, 5]
