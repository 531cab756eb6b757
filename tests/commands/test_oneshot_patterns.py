"""`llmshearing oneshot --pattern` and `llmshearing apply_masks`, as a user types them."""

import errno

import pytest
import torch

from command_line import status
from llmshearing.checkpoints.hf_files import read_hf
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands import plain_models
from llmshearing.commands.apply_masks import apply_masks
from llmshearing.commands.equality import load_ours
from llmshearing.commands.oneshot import oneshot
from llmshearing.pruning.mask_file import MaskFile
from llmshearing.pruning.maskllm import hf_shapes
from llmshearing.pruning.patterns import Pattern
from tests.datasets.folders import write_folder
from twins import CONFIGS, make, save

NAME = "llama grouped"


@pytest.fixture
def hf(tmp_path):
    return save(make(CONFIGS[NAME]), tmp_path / "hf")


@pytest.fixture
def data(tmp_path):
    return str(write_folder(tmp_path / "data", 12))


@pytest.mark.parametrize(
    ("method", "pattern", "more"),
    [
        ("magnitude", "2:4", {}),
        ("wanda", "4:8", {}),
        ("sparsegpt", "1:4", {}),
        ("sparsegpt", "2:4", {"update": True}),
        ("wanda", "2:4", {"dense_inputs": True}),
    ],
)
def test_zeros_are_those_of_the_masks_and_the_rest_is_the_source_s(tmp_path, hf, data, method, pattern, more):
    if method != "magnitude":
        more = {**more, "data": data, "samples": 6, "length": 8}
    oneshot(hf, tmp_path / "out", method=method, pattern=pattern, **more)
    dense, sparse = read_hf(hf).weights, read_hf(tmp_path / "out").weights
    arch = load_ours(read_checkpoint(hf)).model.arch
    masks = MaskFile(tmp_path / "out.masks.npz", hf_shapes(arch))
    keep, group = map(int, pattern.split(":"))
    for name, weight in sparse.items():
        if name not in masks.shapes:
            assert torch.equal(weight, dense[name]), name
            continue
        mask = masks.checked(name, Pattern(keep, group))
        assert not weight[~mask].any()
        assert torch.equal(weight[mask], dense[name][mask]) != bool(more.get("update"))
    if not more.get("update"):
        apply_masks(hf, tmp_path / "out.masks.npz", tmp_path / "applied")
        applied = read_hf(tmp_path / "applied").weights
        assert all(torch.equal(weight, applied[name]) for name, weight in sparse.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method magnitude --pattern 4:2", "--pattern is 4:2, which keeps 4 of 2"),
        ("--method magnitude --pattern 2:5", "has 32 inputs, which blocks of 5 do not divide"),
        ("--method wanda --pattern 2:4", "reads calibration data: give --data"),
        (
            "--method taylor --pattern 2:4",
            "--method taylor removes whole units: leave --pattern out, or give one of magnitude, wanda",
        ),
        ("--method wanda --pattern 2:4 --data {data} --update", "--update is given, but --method wanda"),
        ("--method magnitude --pattern 2:4 --data {data}", "--data is given, but --method magnitude"),
        ("--method magnitude --update n_layers=1", "--update is given, but --method magnitude"),
        ("--method magnitude --pattern 2:4 n_layers=1", "leave out n_layers"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, hf, data, words, message, capsys):
    before = sorted(tmp_path.iterdir())
    words = words.format(data=data).split()
    assert status(["llmshearing", "oneshot", str(hf), str(tmp_path / "out"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_masks_of_another_model_are_rejected(tmp_path, hf):
    other = save(make(CONFIGS["qwen3"]), tmp_path / "other")
    oneshot(other, tmp_path / "out", method="magnitude", pattern="2:4")
    with pytest.raises(ValueError, match="belongs to another model"):
        apply_masks(hf, tmp_path / "out.masks.npz", tmp_path / "applied")
    assert not (tmp_path / "applied").exists()


@pytest.mark.parametrize("out", ["out", "out.pt"])
def test_masks_are_written_with_their_model_or_not_at_all(tmp_path, hf, monkeypatch, out):
    def full(*_arguments, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plain_models, "export", full)
    monkeypatch.setattr(plain_models, "write_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        oneshot(hf, tmp_path / out, method="magnitude", pattern="2:4")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["hf"]
