"""What commands must not write over."""

import json
import zipfile

import numpy as np
import pytest
import torch

from llmshearing.checkpoints.writing import check_output
from llmshearing.commands.convert import save_hf_to_composer
from llmshearing.commands.prune import prune_and_save_model
from twins import CONFIGS, make, masked_checkpoint, save


@pytest.mark.parametrize(
    "kind", ["source", "in source", "in a link", "run", "latest", "link", "foreign", "folder"]
)
def test_outputs_that_must_not_be_lost_are_not_overwritten(tmp_path, kind):
    source, out = tmp_path / "hf", tmp_path / "out.pt"
    source.mkdir()
    for path in (source / "pytorch_model.bin", out):
        torch.save({"a": torch.ones(1)}, path)
    check_output(out, source)
    check_output(tmp_path / "new.pt", source)
    what = {"run": "a checkpoint of a run", "latest": "a checkpoint of a run", "link": "a link to nothing"}
    what |= dict.fromkeys(("source", "in source", "in a link"), "a part of")
    if kind == "source":
        source = out
    elif kind == "in source":
        out = source / "pytorch_model.bin"
    elif kind == "in a link":
        out, source = source / "pytorch_model.bin", tmp_path / "link"
        source.symlink_to("hf")
    elif kind == "run":
        manifest = {"step": 1, "written": 1.0, "files": {}}
        (tmp_path / "out.pt.json").write_text(json.dumps(manifest))
    elif kind in ("latest", "link"):
        out = tmp_path / "latest"
        out.symlink_to("out.pt" if kind == "latest" else "nothing")
    elif kind == "foreign":
        out.write_text("a: 1")
    else:
        out = tmp_path
    with pytest.raises(FileExistsError, match=what.get(kind, "not a checkpoint")):
        check_output(out, source)


def test_what_is_replaced_is_said_and_a_folder_that_holds_anything_is_not(tmp_path, caplog):
    source = masked_checkpoint(tmp_path / "m.pt", "llama", d_model=16)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="taken exists and is not empty; choose another folder"):
        prune_and_save_model(source, tmp_path / "p.pt", hf=tmp_path / "taken")
    assert not (tmp_path / "p.pt").exists()
    for count in (0, 1):
        prune_and_save_model(source, tmp_path / "p.pt", target={"d_model": 16})
        assert caplog.text.count("p.pt exists and is overwritten") == count


@pytest.mark.parametrize("kind", ["latest", "itself"])
def test_the_commands_do_not_write_over_their_source(tmp_path, kind):
    source = masked_checkpoint(tmp_path / "m.pt", "llama", d_model=16)
    before = source.read_bytes()
    out = source if kind == "itself" else tmp_path / "latest"
    if kind == "latest":
        out.symlink_to(source.name)
    with pytest.raises(FileExistsError, match="choose another name"):
        prune_and_save_model(out, out)
    hf = save(make(CONFIGS["llama"]), tmp_path / "hf")
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists and is a part of"):
        save_hf_to_composer(hf, hf / "model.safetensors")
    assert source.read_bytes() == before


@pytest.mark.parametrize("suffix", [".pt", ".masks.npz"])
@pytest.mark.parametrize("content", ["archive", "empty archive", "checkpoint", "masks"])
def test_only_a_file_of_the_same_kind_is_overwritten(tmp_path, suffix, content):
    out = tmp_path / f"out{suffix}"
    with out.open("wb") as file:
        if content == "checkpoint":
            torch.save({"a": torch.ones(1)}, file)
        elif content == "masks":
            np.savez(file, **{"a.mask": np.ones(1, np.uint8)})
        else:
            with zipfile.ZipFile(file, "w") as archive:
                if content == "archive":
                    archive.writestr("word/document.xml", "text")
    if (suffix, content) in ((".pt", "checkpoint"), (".masks.npz", "masks")):
        check_output(out, tmp_path / "hf")
    else:
        with pytest.raises(FileExistsError, match="exists and is not a "):
            check_output(out, tmp_path / "hf")
