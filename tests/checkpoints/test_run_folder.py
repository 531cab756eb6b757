"""Checkpoints of a folder: complete or absent, latest first, checked against their manifests."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from composer.utils import dist

from llmshearing.callbacks.resume import find_checkpoint
from llmshearing.checkpoints import run_folder


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


@pytest.mark.parametrize("ahead", [1e6, -1e6])
def test_checkpoints_are_ordered_by_step_whatever_the_clock_says(tmp_path, monkeypatch, ahead):
    first, second = write(tmp_path, "ep0-ba1-rank0.pt"), write(tmp_path, "ep0-ba2-rank0.pt")
    now = time.time() + ahead
    monkeypatch.setattr(time, "time", lambda: now)
    third = write(tmp_path, "ep0-ba3-rank0.pt")
    monkeypatch.undo()
    fourth = write(tmp_path, "ep0-ba4-rank0.pt")
    assert run_folder.checkpoints(tmp_path) == [fourth, third, second, first]
    third.write_bytes(b"weightS")
    with pytest.raises(ValueError, match=f"The one before it is {second}"):
        run_folder.reject(third, run_folder.damage(third, [third.name]))
    run_folder.keep_last(tmp_path, 1)
    assert run_folder.checkpoints(tmp_path) == [fourth]
    assert (tmp_path / run_folder.LATEST).resolve() == fourth


def test_one_checkpoint_of_a_step_stays(tmp_path):
    write(tmp_path, "ep0-ba1-rank0.pt")
    sharded = write(tmp_path, "ep0-ba1")
    assert run_folder.checkpoints(tmp_path) == [sharded]


@pytest.fixture
def no_links(monkeypatch):
    """A file system without symbolic links, as blobfuse is."""

    def refused(self, target, *rest):
        raise OSError(errno.ENOSYS, "Function not implemented", str(self))

    monkeypatch.setattr(Path, "symlink_to", refused)


@pytest.mark.parametrize("names", [["ep0-ba9-rank0.pt", "ep0-ba10-rank0.pt"], ["ep0-ba9", "ep0-ba10"]])
def test_without_links_a_file_names_the_last_checkpoint(tmp_path, no_links, caplog, names):
    for name in names:
        last = write(tmp_path, name)
        assert run_folder.follow(tmp_path / run_folder.LATEST) == last
    assert find_checkpoint(None, str(tmp_path / run_folder.LATEST)) == last
    assert caplog.text.count("does not support symbolic links (Function not implemented)") == 1
    assert not run_folder.place_of_writing(tmp_path).exists()


def test_follow_resolves_links_and_leaves_other_files_alone(tmp_path):
    first, second = write(tmp_path, "ep0-ba1-rank0.pt"), write(tmp_path, "ep0-ba2-rank0.pt")
    latest = tmp_path / run_folder.LATEST
    assert run_folder.follow(latest) == second
    assert run_folder.follow(first) == first
    latest.unlink()
    for text in ("../../etc/passwd", "ep0-ba1-rank0.pt/../x", "weights"):
        latest.write_text(text)
        assert run_folder.follow(latest) == latest


def test_repair_after_a_kill_between_two_renames(tmp_path):
    first, second = write(tmp_path, "ep0-ba1-rank0.pt"), write(tmp_path, "ep0-ba2-rank0.pt")
    latest = tmp_path / run_folder.LATEST
    (tmp_path / "ep0-ba3-rank0.pt.json").write_text("a manifest that came before its checkpoint")
    run_folder.start_writing(tmp_path)
    latest.unlink()
    latest.symlink_to(first.name)
    run_folder.repair(tmp_path)
    assert latest.resolve() == second
    run_folder.remove(second)
    run_folder.repair(tmp_path)
    assert latest.resolve() == first
    run_folder.remove(first)
    run_folder.repair(tmp_path)
    assert list(tmp_path.iterdir()) in ([], [run_folder.place_of_writing(tmp_path)])
    run_folder.repair(tmp_path / "none")


@pytest.mark.parametrize("name", ["ep0-ba1-rank0.pt", "ep0-ba1"])
def test_a_folder_copied_through_its_links_is_resumed(tmp_path, name):
    write(tmp_path / "run", name)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)
    latest = tmp_path / "copy" / run_folder.LATEST
    assert not latest.is_symlink()
    run_folder.repair(tmp_path / "copy")
    last = write(tmp_path / "copy", name.replace("ba1", "ba2"))
    assert latest.resolve() == last
    assert (tmp_path / "copy" / "superseded-1" / run_folder.LATEST).exists()


def a_run(folder, steps):
    """What a run of so many steps leaves; its checkpoints."""
    written = [write(folder, f"ep0-ba{step}-rank0.pt") for step in range(1, steps + 1)]
    for step in range(steps + 1):
        (folder / f"zs_s{step}.safetensors").touch()
    for name in ("config.yaml", "metrics.jsonl", "report.html", "mine.txt"):
        (folder / name).touch()
    return written


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_overwritten_goes_whole(tmp_path):
    a_run(tmp_path, 3)
    run_folder.supersede(tmp_path, 0, None, overwrite=True, autoresume=False)
    assert names_in(tmp_path) == ["mine.txt"]


def test_checkpoints_after_the_one_resumed_are_moved_away(tmp_path):
    first, _, last = a_run(tmp_path, 3)
    run_folder.supersede(tmp_path, 3, last, overwrite=True, autoresume=True)
    assert not (tmp_path / "superseded-1").exists()
    run_folder.supersede(tmp_path, 1, first, overwrite=True, autoresume=False)
    assert run_folder.checkpoints(tmp_path) == [first]
    assert (tmp_path / run_folder.LATEST).resolve() == first
    kept = {"config.yaml", "metrics.jsonl", "zs_s0.safetensors", "zs_s1.safetensors"}
    assert kept < set(names_in(tmp_path))
    aside = [f"ep0-ba{step}-rank0.pt{end}" for step in (2, 3) for end in ("", ".json")]
    assert names_in(tmp_path / "superseded-1") == [*aside, "zs_s2.safetensors", "zs_s3.safetensors"]


def test_a_new_run_from_weights_of_its_own_folder_keeps_them(tmp_path):
    """load_weights_only with a checkpoint of save_folder: nothing else has these weights."""
    first, _ = a_run(tmp_path, 2)
    run_folder.supersede(tmp_path, 0, first, overwrite=True, autoresume=False)
    assert names_in(tmp_path) == ["mine.txt", "superseded-1"]
    assert len(run_folder.checkpoints(tmp_path / "superseded-1")) == 2


def test_a_run_killed_before_its_first_checkpoint_starts_over_without_traces(tmp_path):
    for autoresume in (True, False):
        for checkpoint in a_run(tmp_path, 2):
            run_folder.remove(checkpoint)
        run_folder.supersede(tmp_path, 0, None, overwrite=False, autoresume=autoresume)
        assert "zs_s1.safetensors" not in names_in(tmp_path)
        assert (tmp_path / "superseded-1" / "metrics.jsonl").exists() == (not autoresume)


def test_a_checkpoint_without_manifest_starts_a_run_by_any_of_its_names(tmp_path, monkeypatch):
    write(tmp_path / "run", "ep0-ba1-rank0.pt")
    stray = tmp_path / "run" / "ep0-ba9-rank0.pt"
    stray.write_bytes(b"copied here")
    (tmp_path / "other").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "other", tmp_path / "run"):
        with pytest.raises(FileExistsError, match="resume from it unchecked with load_path"):
            find_checkpoint(Path(folder), autoresume=True)
        for named in ("run", "other", tmp_path / "run"):
            assert find_checkpoint(Path(folder), f"{named}/{stray.name}") == stray


def test_what_a_killed_process_leaves_is_absent(tmp_path):
    complete = write(tmp_path, "ep0-ba1-rank0.pt")
    (tmp_path / "ep0-ba2-rank0.pt").write_bytes(b"no manifest")
    (tmp_path / "ep0-ba3-rank0.pt.json").write_text('{"step": 3, "written": 1, "files": {}}')
    (tmp_path / "ep0-ba4-rank0.pt").write_bytes(b"a manifest cut off")
    (tmp_path / "ep0-ba4-rank0.pt.json").write_text('{"step": 4, "wri')
    for step, text in ((5, '{"step": 5}'), (6, "[6]"), (7, '"7"')):
        (tmp_path / f"ep0-ba{step}-rank0.pt").write_bytes(b"a manifest of something else")
        (tmp_path / f"ep0-ba{step}-rank0.pt.json").write_text(text)
    assert run_folder.checkpoints(tmp_path) == [complete]
    run_folder.start_writing(tmp_path)
    (run_folder.place_of_writing(tmp_path) / "__7_0.distcp").write_bytes(b"a part of it")
    run_folder.start_writing(tmp_path)
    assert list(run_folder.place_of_writing(tmp_path).iterdir()) == []


def test_checkpoints_without_manifest_are_listed_latest_first(tmp_path):
    write(tmp_path, "ep0-ba1-rank0.pt")
    for name in ("ep0-ba9", "ep0-ba10-rank0.pt", "ep0-ba2-rank0.pt", "other"):
        (tmp_path / name).touch()
    found = [path.name for path in run_folder.without_manifest(tmp_path)]
    assert found == ["ep0-ba10-rank0.pt", "ep0-ba9", "ep0-ba2-rank0.pt"]


def test_a_damaged_one_is_rejected_with_the_one_before_it_whatever_its_name(tmp_path):
    first, second = (write(tmp_path, f"ep0-ba{step}-rank0.pt") for step in (1, 2))
    best = tmp_path / "best.pt"
    second.rename(best)
    second.with_name(f"{second.name}.json").rename(tmp_path / "best.pt.json")
    files = [second.name]
    run_folder.reject(best, run_folder.damage(best, files))
    best.write_bytes(b"weightS")
    with pytest.raises(ValueError, match=rf"{best} is damaged.*The one before it is {first}:"):
        run_folder.reject(best, run_folder.damage(best, files))


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


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_checkpoint_whose_saving_is_cut_short_is_absent_or_whole(tmp_path, monkeypatch, renames):
    first = write(tmp_path, "ep0-ba1-rank0.pt")
    rename, done = Path.rename, []

    def killed_at_last(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_last)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, "ep0-ba2-rank0.pt")
    found = [path.name for path in run_folder.checkpoints(tmp_path)]
    assert found == (["ep0-ba2-rank0.pt", first.name] if renames == 2 else [first.name])
    assert run_folder.without_manifest(tmp_path) == []
    assert (tmp_path / run_folder.LATEST).resolve() == first
    assert write(tmp_path, "ep0-ba2-rank0.pt") == run_folder.latest_checkpoint(tmp_path)


def test_manifest_and_folder_are_on_disk_before_a_save_ends(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(run_folder, "sync", lambda path: synced.append(path))
    checkpoint = write(tmp_path, "ep0-ba1-rank0.pt")
    assert synced == [run_folder.place_of_writing(tmp_path) / f"{checkpoint.name}.json", tmp_path]


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


GOOD = {"step": 1, "written": 1.0, "files": {"a": {"bytes": 7, "sha256": "0"}}}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": 3},
        {"files": ["a"]},
        {"files": {"a": 3}},
        {"files": {"a": {}}},
        {"files": {"a": {"bytes": "x"}}},
        {"files": {"../a": {"bytes": 7, "sha256": "0"}}},
        {"step": "x"},
        {"step": [1]},
    ],
)
def test_a_manifest_of_another_form_is_none(tmp_path, changes):
    checkpoint = write(tmp_path, "ep0-ba1-rank0.pt")
    (tmp_path / "ep0-ba1-rank0.pt.json").write_text(json.dumps(GOOD))
    assert run_folder.read_manifest(checkpoint) == GOOD
    (tmp_path / "ep0-ba1-rank0.pt.json").write_text(json.dumps({**GOOD, **changes}))
    assert run_folder.read_manifest(checkpoint) is None


def test_a_manifest_without_end_or_that_is_a_pipe_is_none(tmp_path):
    checkpoint = write(tmp_path, "ep0-ba1-rank0.pt")
    (tmp_path / "ep0-ba1-rank0.pt.json").write_text("[" * 100_000)
    assert run_folder.read_manifest(checkpoint) is None
    (tmp_path / "ep0-ba1-rank0.pt.json").unlink()
    os.mkfifo(tmp_path / "ep0-ba1-rank0.pt.json")
    assert run_folder.read_manifest(checkpoint) is None


@pytest.mark.parametrize(("count", "kept"), [(2, [3, 2]), (0, [3]), (9, [3, 2, 1])])
def test_the_last_one_always_stays(tmp_path, count, kept):
    for step in (1, 2, 3):
        write(tmp_path, f"ep0-ba{step}-rank0.pt")
    run_folder.keep_last(tmp_path, count)
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(tmp_path)] == kept
    assert len(list(tmp_path.glob("ep0-*"))) == 2 * len(kept)


def test_a_run_prefers_its_own_checkpoint_to_one_from_elsewhere(tmp_path):
    own = tmp_path / "own"
    elsewhere = write(tmp_path / "other", "ep0-ba9-rank0.pt")
    assert find_checkpoint(own, str(elsewhere), autoresume=True) == elsewhere
    first, last = (write(own, f"ep0-ba{step}-rank0.pt") for step in (1, 2))
    assert find_checkpoint(own, str(elsewhere), autoresume=True) == last
    assert find_checkpoint(own, str(first)) == first
    with pytest.raises(FileExistsError, match="the last of step 2"):
        find_checkpoint(own, str(elsewhere))


def test_a_later_checkpoint_without_manifest_is_not_overwritten(tmp_path):
    elsewhere = write(tmp_path / "other", "ep0-ba4-rank0.pt")
    own = write(tmp_path / "own", "ep0-ba5-rank0.pt")
    stray = tmp_path / "own" / "ep0-ba9-rank0.pt"
    stray.write_bytes(b"copied here")
    for settings in ({"autoresume": True}, {"load_path": str(own)}, {"load_path": str(elsewhere)}):
        with pytest.raises(FileExistsError, match=r"holds ep0-ba9-rank0\.pt without ep0-ba9-rank0\.pt\.json"):
            find_checkpoint(tmp_path / "own", **settings)
    assert find_checkpoint(tmp_path / "own", overwrite=True) is None
    assert find_checkpoint(tmp_path / "own", str(stray), overwrite=True) == stray
    last = write(tmp_path / "own", "ep0-ba10-rank0.pt")  # what a killed process left before it
    assert find_checkpoint(tmp_path / "own", autoresume=True) == last


def test_every_rank_starts_from_what_rank_0_found(tmp_path, monkeypatch):
    write(tmp_path, "ep0-ba1-rank0.pt")
    elsewhere = write(tmp_path / "other", "ep0-ba4-rank0.pt")
    found = [[elsewhere], [], elsewhere]
    monkeypatch.setattr(dist, "broadcast_object_list", lambda objects: objects.__setitem__(slice(3), found))
    assert find_checkpoint(tmp_path, autoresume=True) == elsewhere


def test_a_checkpoint_that_one_rank_does_not_see_is_missed_on_every_rank(tmp_path, monkeypatch):
    """A rank that stopped alone would leave the others waiting for it."""
    last = write(tmp_path, "ep0-ba1-rank0.pt")
    monkeypatch.setattr(dist, "all_gather_object", lambda seen: [seen, False])
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        find_checkpoint(tmp_path / "own", str(last))


def test_a_run_does_not_start_from_an_absent_or_damaged_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load_path is .*none\.pt, which does not exist"):
        find_checkpoint(tmp_path / "new", str(tmp_path / "none.pt"))
    first, last = (write(tmp_path, f"ep0-ba{step}") for step in (1, 2))
    (last / "__0_0.distcp").write_bytes(b"weightS")
    for settings in ({"autoresume": True}, {"load_path": str(last)}):
        with pytest.raises(ValueError, match=rf"SHA-256 differs. The one before it is {first}"):
            find_checkpoint(tmp_path, **settings)
