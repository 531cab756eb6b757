"""Checkpoints of a folder: complete or absent, latest first, checked against their manifests."""

from pathlib import Path

import pytest

from llmshearing.callbacks.resume import find_checkpoint
from llmshearing.utils import run_folder


def write(folder, name, contents=b"weights"):
    """A checkpoint of one file, or of a folder with one file in it, the way a run writes it."""
    run_folder.start_writing(folder)
    written = run_folder.place_of_writing(folder) / name
    file = written
    if not name.endswith(".pt"):
        written.mkdir()
        file = written / "__0_0.distcp"
    file.write_bytes(contents)
    step = run_folder.step_of(written)
    return run_folder.commit(written, step, {file.name: run_folder.describe_file(file)})


@pytest.mark.parametrize("names", [["ep0-ba9-rank0.pt", "ep0-ba10-rank0.pt"], ["ep0-ba9", "ep0-ba10"]])
def test_the_checkpoint_written_last_is_the_latest(tmp_path, names):
    for name in names:
        write(tmp_path, name)
    assert [path.name for path in run_folder.checkpoints(tmp_path)] == names[::-1]
    assert (tmp_path / run_folder.LATEST).resolve() == run_folder.latest_checkpoint(tmp_path)
    assert not run_folder.place_of_writing(tmp_path).exists()
    write(tmp_path, names[0])  # a run begun anew over an old one
    assert run_folder.latest_checkpoint(tmp_path).name == names[0]


def test_what_a_killed_process_leaves_is_absent(tmp_path):
    complete = write(tmp_path, "ep0-ba1-rank0.pt")
    (tmp_path / "ep0-ba2-rank0.pt").write_bytes(b"no manifest")
    (tmp_path / "ep0-ba3-rank0.pt.json").write_text('{"step": 3, "written": 1, "files": {}}')
    (tmp_path / "ep0-ba4-rank0.pt").write_bytes(b"a manifest cut off")
    (tmp_path / "ep0-ba4-rank0.pt.json").write_text('{"step": 4, "wri')
    assert run_folder.checkpoints(tmp_path) == [complete]


def test_what_has_no_manifest_is_told_apart_the_latest_first(tmp_path):
    write(tmp_path, "ep0-ba1-rank0.pt")
    for name in ("ep0-ba9", "ep0-ba10-rank0.pt", "ep0-ba2-rank0.pt", "other"):
        (tmp_path / name).touch()
    found = [path.name for path in run_folder.without_manifest(tmp_path)]
    assert found == ["ep0-ba10-rank0.pt", "ep0-ba9", "ep0-ba2-rank0.pt"]


def test_a_damaged_one_is_refused_with_the_one_before_it_whatever_its_name(tmp_path):
    first, second = (write(tmp_path, f"ep0-ba{step}-rank0.pt") for step in (1, 2))
    best = tmp_path / "best.pt"
    second.rename(best)
    second.with_name(f"{second.name}.json").rename(tmp_path / "best.pt.json")
    files = [second.name]
    run_folder.refuse(best, run_folder.damage(best, files))
    best.write_bytes(b"weightS")
    with pytest.raises(ValueError, match=rf"{best} is damaged.*The one before it is {first}:"):
        run_folder.refuse(best, run_folder.damage(best, files))


@pytest.mark.parametrize("name", ["ep0-ba1-rank0.pt", "ep0-ba1"])
def test_a_checkpoint_whose_removal_is_cut_short_is_absent(tmp_path, monkeypatch, name):
    checkpoint = write(tmp_path, name)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run_folder.remove(checkpoint)
    assert run_folder.checkpoints(tmp_path) == []
    assert run_folder.without_manifest(tmp_path) == []


def test_no_folder_has_no_checkpoints(tmp_path):
    assert run_folder.latest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [(None, "is missing"), (b"weight", "has 6 bytes; 7 were written"), (b"weightS", "SHA-256 differs")],
)
@pytest.mark.parametrize("name", ["ep0-ba1-rank0.pt", "ep0-ba1"])
def test_damage_is_described(tmp_path, name, contents, message):
    checkpoint = write(tmp_path, name)
    file = checkpoint if checkpoint.is_file() else checkpoint / "__0_0.distcp"
    assert run_folder.damage(checkpoint, [file.name]) == []
    if contents is None:
        file.unlink()
    else:
        file.write_bytes(contents)
    assert message in run_folder.damage(checkpoint, [file.name])[0]


@pytest.mark.parametrize(("count", "kept"), [(2, [3, 2]), (0, [3]), (9, [3, 2, 1])])
def test_the_last_one_always_stays(tmp_path, count, kept):
    for step in (1, 2, 3):
        write(tmp_path, f"ep0-ba{step}-rank0.pt")
    run_folder.keep_last(tmp_path, count)
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(tmp_path)] == kept
    assert len(list(tmp_path.glob("ep0-*"))) == 2 * len(kept)


def test_a_run_begins_from_its_own_checkpoint_before_one_from_elsewhere(tmp_path):
    own = tmp_path / "own"
    elsewhere = write(tmp_path / "other", "ep0-ba9-rank0.pt")
    assert find_checkpoint(own, str(elsewhere), autoresume=True) == elsewhere
    first, last = (write(own, f"ep0-ba{step}-rank0.pt") for step in (1, 2))
    assert find_checkpoint(own, str(elsewhere), autoresume=True) == last
    assert find_checkpoint(own, str(first)) == first
    with pytest.raises(FileExistsError, match="the last of step 2"):
        find_checkpoint(own, str(elsewhere))
