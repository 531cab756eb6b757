"""Files of others and impossible numbers given to `oneshot`, `apply_masks`, `trim_vocabulary` and `prune`.

Each ends in one line, before anything is written.
"""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command_line import error_line, status
from hostile import edit_json
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from tests.data.test_trimming import TEXT, byte_level
from tests.datasets.folders import write_folder
from twins import CONFIGS, make, masked_checkpoint, save

NAME = "llama grouped"
SIZES = ("d_model=24", "intermediate_size=40")


def rejected(capsys, *words):
    """What a command that must fail says, in its one line."""
    assert status(["llmshearing", *map(str, words)]) == 2
    return error_line(capsys)


@pytest.fixture
def hf(tmp_path):
    return save(make(CONFIGS[NAME]), tmp_path / "hf")


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data", 12)


# ---------------------------------------------------------------------- scores

KEY = "llmshearing_scores"


@pytest.fixture
def scores(tmp_path, hf, capsys):
    """A function that writes a file of scores, its origin or its tensors changed."""
    path = tmp_path / "scores.safetensors"
    words = ["llmshearing", "oneshot", hf, tmp_path / "first", "--method", "magnitude", "--scores", path]
    assert status([*map(str, words), *SIZES]) == 0
    capsys.readouterr()
    with safe_open(path, "pt") as file:
        origin = json.loads(file.metadata()[KEY])
    tensors = load_file(path)

    def write(changed=None, **kinds):
        save_file({**tensors, **kinds}, path, metadata={KEY: json.dumps(origin | (changed or {}))})
        return path

    return write


@pytest.mark.parametrize(
    "changed", [{"model": 3}, {"model": [[1]]}, {"settings": ["a"]}, {"method": [1]}, {"weights": None}]
)
def test_an_origin_of_other_types_is_reported(tmp_path, hf, scores, capsys, changed):
    words = ["--method", "magnitude", "--scores", scores(changed), *SIZES]
    said = rejected(capsys, "oneshot", hf, tmp_path / "out", *words)
    assert f"is not a file of scores (TypeError: its {next(iter(changed))} is a" in said


@pytest.mark.parametrize(
    "values",
    [
        torch.full((2, 4), float("nan")),
        torch.full((2, 4), float("inf")),
        torch.ones(2, 4, dtype=torch.complex64),
        torch.ones(2, 4, dtype=torch.int64),
    ],
)
def test_scores_that_are_not_numbers_are_reported_whichever_are_needed(tmp_path, hf, scores, capsys, values):
    words = ["--method", "magnitude", "--scores", scores(head=values), *SIZES]  # heads all stay
    said = rejected(capsys, "oneshot", hf, tmp_path / "out", *words)
    assert "the scores of head are not all finite numbers" in said


@pytest.fixture
def overflowing(hf):
    """Finite weights with which inner activations are infinite."""
    weights = load_file(hf / "model.safetensors")
    large = {n: w * 1e25 for n, w in weights.items() if n.endswith(("up_proj.weight", "gate_proj.weight"))}
    save_file(weights | large, hf / "model.safetensors", metadata={"format": "pt"})
    return hf


@pytest.mark.parametrize("method", ["activation", "taylor"])
def test_scores_that_overflow_are_not_kept(tmp_path, overflowing, data, capsys, method):
    words = ["--method", method, "--data", data, "--length", "8", "--scores", tmp_path / "s", "n_layers=1"]
    assert "are not all finite numbers" in rejected(capsys, "oneshot", overflowing, tmp_path / "out", *words)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_inputs_that_overflow_choose_no_masks(tmp_path, overflowing, data, capsys, method):
    words = ["--method", method, "--pattern", "2:4", "--data", data, "--length", "8"]
    said = rejected(capsys, "oneshot", overflowing, tmp_path / "out", *words)
    assert "Layer 0, mlp.down_proj: its inputs on the calibration data are NaN, infinite or too large" in said
    assert not list(tmp_path.glob("out*"))


# ----------------------------------------------------------------------- masks


@pytest.fixture
def masks(tmp_path, hf, capsys):
    """A file of masks, and a function that writes it with another header of its first array."""
    path = tmp_path / "made.masks.npz"
    words = ["oneshot", hf, tmp_path / "made", "--method", "magnitude", "--pattern", "2:4"]
    assert status(["llmshearing", *map(str, words)]) == 0
    capsys.readouterr()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def write(header=None, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as file:
            for number, (name, array) in enumerate(arrays.items()):
                plain = io.BytesIO()
                np.save(plain, array)
                own = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header or b"")) + (header or b"")
                file.writestr(f"{name}.npy", own if header and not number else plain.getvalue())
        return path

    return write


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"(" * 9000,
        b"'''",
        b"{1: 2, 'a': 3}",
        b"[" * 500 + b"]" * 500,
        b"-" * 5000,
        b"\xff" * 9,
        b"{'descr': '|O', 'fortran_order': False, 'shape': (224,)}",
    ],
)
def test_a_broken_header_of_a_mask_is_reported(tmp_path, hf, masks, capsys, header):
    said = rejected(capsys, "apply_masks", hf, masks(header), tmp_path / "out")
    assert "is not a file of masks, or is damaged" in said or "is object [224]; expected uint8" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_masks_that_cannot_be_unpacked_are_reported(tmp_path, hf, masks, capsys, compression):
    path = masks(compression=compression)
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)
    assert "or is damaged" in rejected(capsys, "apply_masks", hf, path, tmp_path / "out")


def test_a_file_that_is_no_masks_is_not_overwritten(tmp_path, hf, capsys):
    (tmp_path / "out.masks.npz").write_text("mine")
    words = ["--method", "magnitude", "--pattern", "2:4"]
    assert "out.masks.npz exists and is not" in rejected(capsys, "oneshot", hf, tmp_path / "out", *words)
    assert (tmp_path / "out.masks.npz").read_text() == "mine"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ not finite


def test_masks_are_not_applied_to_weights_that_are_not_finite(tmp_path, hf, masks, capsys):
    weights = load_file(hf / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})
    assert "NaN or infinite" in rejected(capsys, "apply_masks", hf, masks(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_whose_weights_are_not_finite_is_not_cut(tmp_path, capsys):
    path = tmp_path / "c.pt"
    masked_checkpoint(path, d_model=24)
    found = read_checkpoint(path)
    name = "model.transformer.blocks.1.mlp.up_proj.weight"
    spoiled = found.weights[name].clone()
    spoiled[0, 0] = float("inf")
    write_checkpoint(tmp_path / "d.pt", {**found.weights, name: spoiled}, found.record or {})
    said = rejected(capsys, "prune", tmp_path / "d.pt", tmp_path / "o.pt", "d_model=24")
    assert "NaN or infinite" in said
    assert name in said
    assert not (tmp_path / "o.pt").exists()


# ------------------------------------------------------------------ vocabulary


def around(kind):
    """A post-processor or padding that names token 300."""
    if kind == "padding":
        return {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_id": 300,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    special = {"x": {"id": "x", "ids": [300], "tokens": ["x"]}}
    parts = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": special}


@pytest.fixture
def tokenized(tmp_path):
    """A function that makes a model whose tokenizer.json has these values."""

    def make_model(**changes):
        config = CONFIGS[NAME].__class__(**{**CONFIGS[NAME].to_dict(), "vocab_size": 448})
        folder = save(make(config), tmp_path / "hf")
        byte_level().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= changes.pop("model", {})
        (folder / "tokenizer.json").write_text(json.dumps(content | changes))
        (tmp_path / "text.txt").write_text(TEXT)
        return folder

    return make_model


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"vocab": [1]}},
        {"model": {"merges": ["x"]}},
        {"model": {"vocab": {"a": "1"}, "merges": []}},
        {"added_tokens": [1]},
        {"added_tokens": [{"content": "x"}]},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}},
        {"model": {"unk_token": ["x"]}},
    ],
)
def test_a_tokenizer_that_is_none_is_reported(tmp_path, tokenized, capsys, changes):
    hf = tokenized(**changes)
    said = rejected(
        capsys, "trim_vocabulary", hf, tmp_path / "out", "--data", tmp_path / "text.txt", "--keep", 300
    )
    assert "is not a tokenizer" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["post_processor", "padding"])
def test_ids_around_a_text_stay(tmp_path, tokenized, capsys, kind):
    hf = tokenized(**{kind: around(kind)})
    words = [hf, tmp_path / "out", "--data", tmp_path / "text.txt", "--keep", 270]
    assert status(["llmshearing", "trim_vocabulary", *map(str, words)]) == 0
    hf = tokenized(**{kind: json.loads(json.dumps(around(kind)).replace("300", "100000"))})
    said = rejected(capsys, "trim_vocabulary", hf, tmp_path / "other", *words[2:])
    assert "id 100000 around or behind a text" in said


def test_a_regular_expression_that_gives_up_is_named(tmp_path, tokenized, capsys):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    hf = tokenized(pre_tokenizer=split)
    (tmp_path / "text.txt").write_text("a" * 40 + "!")
    words = [hf, tmp_path / "out", "--data", tmp_path / "text.txt", "--keep", 300]
    said = rejected(capsys, "trim_vocabulary", *words)
    assert f"a text of {tmp_path / 'text.txt'}: tokenizer {hf} cannot tokenize the text" in said


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [[[1]], [{}], {"a": 1}, "x"])
def test_odd_token_ids_are_left_out(tmp_path, tokenized, file, ids):
    hf = tokenized()
    edit_json(hf / file, suppress_token_ids=ids)
    words = [hf, tmp_path / "out", "--data", tmp_path / "text.txt", "--keep", 300]
    assert status(["llmshearing", "trim_vocabulary", *map(str, words)]) == 0


def test_a_pipe_is_not_taken_for_its_folder(tmp_path, tokenized, capsys):
    hf = tokenized()
    os.mkfifo(tmp_path / "pipe")
    said = rejected(
        capsys, "trim_vocabulary", hf, tmp_path / "out", "--data", tmp_path / "pipe", "--keep", 300
    )
    assert "pipe is neither a file nor a folder" in said
