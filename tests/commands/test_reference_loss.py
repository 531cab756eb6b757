"""The published references to the last digit, and measured losses equal to transformers' own."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming.base.format.mds import MDSWriter
from transformers import AutoModelForCausalLM, LlamaConfig

from llmshearing.commands import reference_loss
from llmshearing.commands.reference_loss import fit_scaling_law, measure, read_table, scaling_law
from llmshearing.datasets.manifest import Manifest
from twins import masked_checkpoint

TABLE = Path(__file__).parents[2] / "configs" / "llama2" / "reference_losses.yaml"
NAMES = ["cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp"]
PUBLISHED = {
    1_345_423_360: [1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251],
    2_701_560_320: [1.8712, 0.6883, 2.0325, 1.5353, 1.6297, 1.3560, 2.0328],
    373_867_520: [2.1401, 0.8694, 2.3625, 1.7791, 2.0470, 1.6637, 2.3139],
}
SEQ_LEN = 16


@pytest.mark.parametrize("size", PUBLISHED)
def test_fit_reproduces_the_published_references(size):
    parameters, losses = read_table(TABLE)
    assert list(losses) == NAMES
    got = [scaling_law(size, *fit_scaling_law(parameters, values)) for values in losses.values()]
    assert [round(loss, 4) for loss in got] == PUBLISHED[size]


def test_the_command_prints_what_the_config_wants(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fit", "fit", str(TABLE), "--parameters", *map(str, PUBLISHED)])
    reference_loss.main()
    lines = capsys.readouterr().out.splitlines()
    assert f"set_names: [{', '.join(NAMES)}]" in lines
    for losses in PUBLISHED.values():
        assert f"target_loss: [{', '.join(f'{loss:.4f}' for loss in losses)}]" in lines


def test_fit_recovers_a_known_law():
    sizes = np.array([1e8, 3e8, 1e9, 3e9, 1e10])
    assert fit_scaling_law(sizes, scaling_law(sizes, 50, 0.2, 1.1)) == pytest.approx((50, 0.2, 1.1), rel=1e-3)


def test_sizes_of_any_scale_are_fitted():
    """Three points are met exactly, also far from the sizes of the published table."""
    for sizes, losses in (([7e9, 1.3e10, 7e10], [2.1, 2.0, 1.95]), ([1e6, 3e6, 1e7], [5.0, 4.0, 3.5])):
        law = fit_scaling_law(sizes, losses)
        assert [scaling_law(size, *law) for size in sizes] == pytest.approx(losses, abs=1e-6)


def test_a_table_may_write_numbers_as_the_command_line_does(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.yaml"
    table.write_text("{parameters: [7e9, 1.3e10, 70000000000], losses: {cc: [1.75, 1.67, 1.5]}}")
    assert read_table(table) == ([7e9, 1.3e10, 7e10], {"cc": [1.75, 1.67, 1.5]})
    table.write_text("{parameters: [7e9, 1.3e10, 7e10], losses: {cc: [1.75, 1.67, 1.7]}}")
    monkeypatch.setattr(sys, "argv", ["fit", "fit", str(table), "--parameters", "1e9"])
    with pytest.raises(ValueError, match=r"table.yaml: cc: the loss rises from 1.67"):
        reference_loss.main()
    assert not capsys.readouterr().out


def test_losses_without_a_fit_are_rejected(tmp_path):
    with pytest.raises(
        ValueError, match="2 losses for 2 different sizes: expected one loss for each of at least 3"
    ):
        fit_scaling_law([1e9, 2e9], [2.0, 1.9])
    with pytest.raises(ValueError, match="3 losses for 2 different sizes"):
        fit_scaling_law([1e9, 2e9, 2e9], [2.0, 1.9, 1.8])
    with pytest.raises(ValueError, match="4 losses for 3 different sizes"):
        fit_scaling_law([1e9, 2e9, 3e9], [2.0, 1.9, 1.8, 1.7])
    with pytest.raises(ValueError, match=r"no curve a N.*the nearest one misses them by up to 0.26"):
        fit_scaling_law([1e9, 2e9, 4e9], [2.0, 1.9, 1.0])  # falls faster and faster
    with pytest.raises(
        ValueError, match=r"loss rises from 2.0 at 1e\+09 parameters to 2.5 at 2e\+09: expected"
    ):
        fit_scaling_law([4e9, 2e9, 1e9], [1.0, 2.5, 2.0])
    table = tmp_path / "table.yaml"
    for text, message in {
        "sizes: [1, 2]": "expected the keys parameters",
        "parameters: [1": "is not plain YAML",
        "{parameters: [1, 2], losses: [1, 2]}": r"losses is \[1, 2\]: expected a list for each domain",
        "{parameters: 5, losses: {cc: [1, 2]}}": "parameters is 5: expected a list of numbers above 0",
        "{parameters: [1, 2], losses: {cc: [1, x]}}": r"cc is \[1, 'x'\]: expected a list of numbers",
        "{parameters: [1, 2], losses: {cc: [1, true]}}": r"cc is \[1, True\]: expected a list of numbers",
        "{parameters: [1, .inf], losses: {cc: [1, 2]}}": "parameters has .inf: expected finite numbers",
        "{parameters: [1, 2], losses: {}}": "losses is {}: expected a list for each domain",
        "5": "expected the keys parameters",
        "{parameters: [1, 2], losses: {cc: [1, -2]}}": r"cc is \[1, -2\]: expected a list of numbers",
    }.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=rf"table.yaml:? {message}"):
            read_table(table)


@pytest.fixture
def data(tmp_path) -> Path:
    """Random sequences of two domains."""
    rng = np.random.default_rng(0)
    with MDSWriter(out=str(tmp_path / "eval_merge"), columns={"tokens": "bytes", "set": "str"}) as writer:
        for i in range(5):
            tokens = rng.integers(0, 90, SEQ_LEN, dtype=np.uint16)
            writer.write({"tokens": tokens.tobytes(), "set": ("cc", "book")[i % 2]})
    return tmp_path


@pytest.fixture
def model(tmp_path) -> Path:
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_measure_equals_transformers(data, model):
    theirs = AutoModelForCausalLM.from_pretrained(model)
    rng = np.random.default_rng(0)
    losses: dict[str, list[float]] = {"cc": [], "book": []}
    for i in range(5):
        ids = torch.from_numpy(rng.integers(0, 90, SEQ_LEN, dtype=np.uint16).astype(np.int64))[None]
        losses[("cc", "book")[i % 2]].append(float(theirs(ids, labels=ids).loss))
    got = measure(str(model), data, ["book", "cc"], "eval_merge", SEQ_LEN, batch_size=2)
    assert list(got) == ["book", "cc"]
    assert got == pytest.approx({name: np.mean(values) for name, values in losses.items()}, abs=1e-5)


def test_the_command_measures_what_the_datas_manifest_names(data, model, monkeypatch, capsys):
    tokenizer = {"name": "words", "vocab_size": 90, "vocabulary_sha256": ""}
    Manifest(SEQ_LEN, "uint16", tokenizer, {}, {}, {"book": {}, "cc": {}}, {}).write(data)
    expected = measure(str(model), data, ["book", "cc"], "eval_merge", None, 8)
    monkeypatch.setattr(sys, "argv", ["measure", "measure", str(model), "--data", str(data)])
    reference_loss.main()
    names, losses = capsys.readouterr().out.splitlines()
    assert names == "set_names: [book, cc]"
    assert losses == f"target_loss: [{expected['book']:.4f}, {expected['cc']:.4f}]"


def test_a_pruning_run_is_not_measured(data, tmp_path):
    path = masked_checkpoint(tmp_path / "m.pt", n_layers=1)
    with pytest.raises(
        ValueError, match=r"m\.pt is the checkpoint of a pruning run: measure the source model"
    ):
        measure(str(path), data, ["book", "cc"], "eval_merge", SEQ_LEN, 2)


def test_measure_wants_every_domain_and_a_length(data, model):
    with pytest.raises(ValueError, match="no manifest: give --set_names and --seq_length"):
        measure(str(model), data, ["book", "cc"], "eval_merge", None, 2)
    with pytest.raises(ValueError, match="eval_merge has no sequences of wiki"):
        measure(str(model), data, ["book", "cc", "wiki"], "eval_merge", SEQ_LEN, 2)


def test_measure_rejects_a_length_that_does_not_match_the_data(data, model):
    tokenizer = {"name": "words", "vocab_size": 90, "vocabulary_sha256": ""}
    Manifest(SEQ_LEN, "uint16", tokenizer, {}, {}, {"book": {}, "cc": {}}, {}).write(data)
    with pytest.raises(ValueError, match=r"--seq_length is 8, but the sequences of .* have 16 tokens"):
        measure(str(model), data, None, "eval_merge", 8, 2)


def test_sizes_are_read_with_units(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fit", "fit", str(TABLE), "--parameters", "1.3B", "1e9", "370m"])
    reference_loss.main()
    sizes = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" parameters")]
    assert sizes == ["# 1,300,000,000 parameters", "# 1,000,000,000 parameters", "# 370,000,000 parameters"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["fit", "t", "--parameters", "0"], "'0': expected at least 1 parameter"),
        *(
            (["fit", "t", "--parameters", size], f"'{size}': expected a number such as")
            for size in ("-1", "x", "inf", "nan")
        ),
        (["measure", "m", "--data", "d", "--batch_size", "0"], "a whole number of at least 1"),
        (["measure", "m", "--data", "d", "--seq_length", "-8"], "a whole number of at least 1"),
    ],
)
def test_impossible_losses_are_rejected(words, reason, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reference_loss", *words])
    with pytest.raises(SystemExit) as stop:
        reference_loss.main()
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err
