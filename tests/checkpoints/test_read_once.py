"""What is read is what was checked, while links and files change."""

import json

import pytest
import torch

from hostile import checkpoint
from llmshearing.checkpoints import opening, run_folder
from llmshearing.checkpoints.opening import in_pieces, read_checkpoint
from llmshearing.checkpoints.safe_load import load_tensors

# ------------------------------------------------- read from what was checked


def run_with(folder, *steps):
    """Checkpoints of a run, each with its manifest, the link pointing to the first."""
    for step in steps:
        path = checkpoint(folder / f"ep0-ba{step}-rank0.pt")
        manifest = {"step": step, "written": step, "files": {path.name: run_folder.describe_file(path)}}
        (folder / f"{path.name}.json").write_text(json.dumps(manifest))
    (folder / run_folder.LATEST).symlink_to(f"ep0-ba{steps[0]}-rank0.pt")


def move_link(folder, step):
    (folder / "new").symlink_to(f"ep0-ba{step}-rank0.pt")
    (folder / "new").rename(folder / run_folder.LATEST)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_a_link_that_moves_meanwhile_is_followed_once(tmp_path, monkeypatch):
    run_with(tmp_path, 2, 4)
    first = load_tensors(tmp_path / "ep0-ba2-rank0.pt")["state"]["model"]
    damage = run_folder.damage

    def moving(*args):
        found = damage(*args)
        move_link(tmp_path, 4)  # a save ends between the comparison and the reading
        return found

    monkeypatch.setattr(run_folder, "damage", moving)
    found = read_checkpoint(tmp_path / run_folder.LATEST)
    assert same(found.weights, first)
    pieces = {}
    for piece in in_pieces(found, size=4000):
        pieces |= piece
    assert same(pieces, first)


def test_a_link_that_moves_between_pieces_mixes_nothing(tmp_path):
    run_with(tmp_path, 2, 4)
    first = load_tensors(tmp_path / "ep0-ba2-rank0.pt")["state"]["model"]
    found = read_checkpoint(tmp_path / run_folder.LATEST)
    pieces = {}
    for piece in in_pieces(found, size=4000):
        pieces |= piece
        if (tmp_path / run_folder.LATEST).resolve().name == "ep0-ba2-rank0.pt":
            move_link(tmp_path, 4)
    assert same(pieces, first)


def test_a_file_that_is_replaced_between_pieces_is_reported(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path / "c.pt"))
    with pytest.raises(ValueError, match=r"c\.pt was replaced or written to while it was read"):  # noqa: PT012
        for _ in in_pieces(found, size=4000):
            checkpoint(tmp_path / "c.pt")


def test_a_file_that_is_replaced_after_the_comparison_is_reported(tmp_path, monkeypatch):
    run_with(tmp_path, 2)
    open_once = opening.open_checkpoint

    def replaced(path):
        (tmp_path / "other.pt").write_bytes(checkpoint(tmp_path / "x.pt").read_bytes())
        (tmp_path / "other.pt").rename(path)
        return open_once(path)

    monkeypatch.setattr(opening, "open_checkpoint", replaced)
    with pytest.raises(ValueError, match="was replaced or written to while it was read"):
        read_checkpoint(tmp_path / "ep0-ba2-rank0.pt")
