"""Measuring speed: what is counted, in which order models are measured, and what shapes promise."""

import copy
import json

import pytest
import torch
from transformers import LlamaConfig

from command_line import status_of
from llmshearing.commands import speed as command
from llmshearing.evaluation import results, speed
from llmshearing.evaluation.speed import Setting, Timing
from twins import GROUPED, make


@pytest.fixture(scope="module")
def models():
    config = LlamaConfig(**{**GROUPED, "num_hidden_layers": 4})
    half = copy.deepcopy(config)
    half.num_hidden_layers = 2
    return [make(config), make(half)]


def test_models_are_measured_in_turn_and_medians_taken(models, monkeypatch):
    seconds = iter([9.0, 9.0, 9.0, 9.0, 1.0, 0.5, 100.0, 0.5, 1.0, 0.5])
    order = []

    def timed(model, setting):
        order.append(models.index(model))
        first = next(seconds)
        return Timing(first, 2 * first)

    monkeypatch.setattr(speed, "timed", timed)
    first, second = speed.measure(models, [Setting(2, 8, 4)], 3)
    assert order == [0, 0, 1, 1, 0, 1, 0, 1, 0, 1]
    assert first["2 x 8"]["prefill"] == 2 * 8 / 1.0
    assert first["2 x 8"]["decode"] == 2 * 4 / 2.0
    assert second["2 x 8"]["first_token"] == 0.5
    assert first["2 x 8"]["weights"] == sum(p.numel() * 4 for p in models[0].parameters())


def test_decoding_continues_the_context(models, monkeypatch):
    """The tokens that are timed are those that transformers generates."""
    model, tokens, following = models[0], [], speed._next

    def kept(logits):
        tokens.append(following(logits))
        return tokens[-1]

    monkeypatch.setattr(speed, "_next", kept)
    speed.timed(model, Setting(2, 8, 5))
    ids = torch.randint(0, model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert torch.cat(tokens, 1).tolist() == expected[:, 8:].tolist()


def test_half_of_the_layers_promise_half_of_the_blocks(models):
    setting = Setting(1, 16, 8)
    own, half = speed.promised(models, setting)
    assert own == {"prefill_promised": 1.0, "decode_promised": 1.0}
    blocks = sum(p.numel() for layer in models[0].model.layers for p in layer.parameters() if p.dim() == 2)
    head = models[0].lm_head.weight.numel()
    cache = 2 * (16 + 4) * 2 * 8 * 4  # keys and values, tokens, KV heads, head dim, layers
    assert half["decode_promised"] == pytest.approx((blocks + head + cache) / ((blocks + cache) / 2 + head))
    attention = 2 * 16 * 32 * 4
    assert half["prefill_promised"] == pytest.approx(
        (16 * (2 * blocks + attention) + 2 * head) / (16 * (blocks + attention / 2) + 2 * head)
    )


def test_peak_counts_what_is_held_beside_the_weights(models):
    held = 200 * 2**20
    peak = speed._peak(models[0], lambda: torch.ones(held // 4).sum())
    if peak is None:
        pytest.skip("this system does not forget a process's peak")
    assert held * 0.9 < peak - speed.weight_bytes(models[0]) < held * 1.3


def test_the_command_prints_and_keeps_the_table(hf, tmp_path, monkeypatch, capsys):
    words = [hf, hf, "--context", "8,16", "--new", 2, "--rounds", 1, "--out", tmp_path]
    assert status_of(monkeypatch, command, *words) == 0
    out = capsys.readouterr().out
    assert "1 x 16" in out
    assert out.count("decode tokens/s") == 2
    (entry,) = json.loads((tmp_path / "speed.json").read_text())["models"]
    assert set(entry["speeds"]) == {"1 x 8", "1 x 16"}
    assert results.read(tmp_path / "speed.json")[0].parameters > 0


def test_memory_that_runs_out_is_said(hf, tmp_path, monkeypatch, capsys):
    def measure(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command, "measure", measure)
    assert status_of(monkeypatch, command, hf, "--out", tmp_path) == 2
    assert "Out of memory: all models are held together." in capsys.readouterr().err
    assert not (tmp_path / "speed.json").exists()
