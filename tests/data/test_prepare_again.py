"""Preparing interrupted, repeated, divided otherwise or on other executors: the same result, or a refusal."""

import errno
import os
import shutil
import time

import pytest

from llmshearing.data import merge_data, sources, stages
from llmshearing.data.executors import LocalExecutor
from llmshearing.data.job import whole
from llmshearing.datasets.manifest import read_manifest
from llmshearing.files import occupied
from tests.data.preparing import other_words, run, start, tree_hash
from tests.data.texts import write_jsonl


def test_grouping_files_otherwise_or_other_batches_change_nothing(
    monkeypatch, tmp_path, prepared, tokenizer_folder
):
    text, out = prepared
    monkeypatch.setattr(sources, "TASK_BYTES", 1)
    monkeypatch.setattr(stages, "_BATCH_BYTES", 300)
    monkeypatch.setattr(stages, "_CHUNK_TOKENS", 100)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert tree_hash(tmp_path / "out") == tree_hash(out)


def test_a_source_of_the_same_size_and_a_part_that_is_gone_are_no_done_work(
    monkeypatch, tmp_path, text, tokenizer_folder
):
    out = tmp_path / "out"
    run(monkeypatch, text, out, tokenizer_folder)
    source = next(text.rglob("*.jsonl"))
    before, later = source.read_bytes(), time.time() + 5
    os.utime(source, (later, later))  # touched, and still the same
    run(monkeypatch, text, out, tokenizer_folder)
    source.write_bytes(before.replace(b"w1", b"w2"))
    os.utime(source, (later, later))
    with pytest.raises(
        FileExistsError, match=rf"1 of its sources, such as .*{source.name}, are new, changed"
    ):
        run(monkeypatch, text, out, tokenizer_folder)
    source.write_bytes(before)
    shutil.rmtree(out / "eval_merge")
    with pytest.raises(
        ValueError, match=r"out, which is complete by its .* is damaged: .*eval_merge.*remove it"
    ):
        run(monkeypatch, text, out, tokenizer_folder)


def test_a_tokenizer_with_other_special_tokens_is_another_one(monkeypatch, tmp_path, text, tokenizer_folder):
    """Also where its vocabulary is the same: neither what is done nor what was begun is kept."""
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    run(monkeypatch, text, tmp_path / "out", folder)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "cut_bins", fail)
        with pytest.raises(RuntimeError, match="stop here"):
            run(monkeypatch, text, tmp_path / "begun", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(FileExistsError, match="has other special tokens, merges or rules than"):
        run(monkeypatch, text, tmp_path / "out", folder)
    run(monkeypatch, text, tmp_path / "begun", folder)
    manifest = read_manifest(tmp_path / "begun")
    assert manifest is not None
    assert (manifest.tokenizer["prefix"], manifest.tokenizer["suffix"]) == ([], [])
    run(monkeypatch, text, tmp_path / "new", folder)
    assert tree_hash(tmp_path / "begun") == tree_hash(tmp_path / "new")


def fail(*_):
    raise RuntimeError("stop here")


def test_done_work_is_recognized_and_other_work_rejected(monkeypatch, tmp_path, text, tokenizer_folder):
    out = tmp_path / "out"
    run(monkeypatch, text, out, tokenizer_folder)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(monkeypatch, text, out, tokenizer_folder)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    run(monkeypatch, text, out, tokenizer_folder, "--domains", "wiki", "book")
    with pytest.raises(
        FileExistsError, match=r"prepared otherwise \(manifest.json\): its seed is 17, not 18; "
    ):
        run(monkeypatch, text, out, tokenizer_folder, "--seed", "18")
    with pytest.raises(
        FileExistsError, match=r": its ft_tokens is not set, not 9600, its seed is 17, not 18; "
    ):
        run(monkeypatch, text, out, tokenizer_folder, "--seed", "18", "--ft_tokens", "9600")
    for word in ("--eval_tokens", "--prune_tokens", "--ft_tokens"):
        with pytest.raises(FileExistsError, match="holds data prepared otherwise"):
            run(monkeypatch, text, out, tokenizer_folder, word, "320")
    with pytest.raises(
        FileExistsError, match=r"its tokenizer .* has another vocabulary than .*/other; choose"
    ):
        run(monkeypatch, text, out, other_words(tokenizer_folder, tmp_path / "other"))
    write_jsonl(text / "book" / "more.jsonl", ["w1"])
    with pytest.raises(
        FileExistsError, match=r": 1 of its sources, such as book/more\.jsonl, are new, changed"
    ):
        run(monkeypatch, text, out, tokenizer_folder)
    (tmp_path / "foreign" / "for_prune").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="holds for_prune of other data"):
        run(monkeypatch, text, tmp_path / "foreign", tokenizer_folder)


def test_a_damaged_result_is_not_called_done(monkeypatch, tmp_path, text, tokenizer_folder):
    out = tmp_path / "out"
    run(monkeypatch, text, out, tokenizer_folder)
    shard = out / "for_ft" / "wiki" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"for_ft/wiki/shard.00000.mds has \d+ bytes"):
        run(monkeypatch, text, out, tokenizer_folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"damaged: .*for_ft/wiki/shard.00000.mds not found.*remove it"):
        run(monkeypatch, text, out, tokenizer_folder)


def test_one_process_at_a_time_works_at_a_folder(monkeypatch, tmp_path, text, tokenizer_folder):
    out = tmp_path / "out"
    busy = pytest.raises(FileExistsError, match="Another preparation is writing to")
    with occupied(out, "preparation", "--output"), busy:
        run(monkeypatch, text, out, tokenizer_folder)
    run(monkeypatch, text, out, tokenizer_folder)
    assert not list(out.glob(".*"))


def test_a_task_that_another_process_completes_meanwhile_is_kept(monkeypatch, tmp_path):
    with whole(tmp_path / "task") as mine:
        (mine / "text").write_text("the same")
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with whole(tmp_path / "task") as other:
            (other / "text").write_text("the same")
    assert [path.name for path in tmp_path.iterdir()] == ["task"]
    assert (tmp_path / "task" / "text").read_text() == "the same"


def test_nothing_of_an_interrupted_run_with_other_settings_stays(
    monkeypatch, tmp_path, text, tokenizer_folder
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "cut_bins", None)
        with pytest.raises(TypeError):
            run(monkeypatch, text, out, tokenizer_folder, "--seed", "18")
    assert len(list(out.glob(".prepare-*"))) == 1
    run(monkeypatch, text, out, tokenizer_folder)
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("changed", ["text", "tokenizer"])
def test_incomplete_work_on_changed_sources_starts_over(
    monkeypatch, tmp_path, text, tokenizer_folder, changed
):
    """Under the same names and with the same sizes."""
    tokenizer = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "cut_bins", None)
        with pytest.raises(TypeError):
            run(monkeypatch, text, tmp_path / "out", tokenizer)
    if changed == "text":
        file, old, new = text / "book" / "all.jsonl", "w7 ", "w8 "
    else:
        file, old, new = tokenizer / "tokenizer.json", '"w7"', '"x7"'
    file.write_text(file.read_text().replace(old, new))
    for folder in ("out", "fresh"):
        run(monkeypatch, text, tmp_path / folder, tokenizer)
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "fresh")


@pytest.mark.parametrize("stage", ["tokenize", "plan", "pack", "finish"])
def test_what_is_complete_is_kept_when_a_stage_fails(
    monkeypatch, tmp_path, prepared, tokenizer_folder, stage
):
    """Failing in the second task of a stage and started again, the result is as if nothing had happened."""
    text, whole = prepared
    monkeypatch.setattr(sources, "TASK_BYTES", 1)
    calls = []

    def fail_at_second(original):
        def wrapped(*args, **kwargs):
            calls.append(args)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        return wrapped

    place = {
        "tokenize": (stages.DocumentReader, "read_file"),
        "plan": (stages, "cut_bins"),
        "pack": (stages, "_sequences"),
        "finish": (merge_data, "_columns"),
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail_at_second(getattr(*place)))
        with pytest.raises(OSError, match="No space left on device"):
            run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert not (tmp_path / "out" / "manifest.json").exists()
    before = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail_at_second(getattr(*place)))
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert tree_hash(tmp_path / "out") == tree_hash(whole)
    if stage in ("tokenize", "pack"):
        assert len(calls) - before < {"tokenize": 4, "pack": 6}[stage]  # the complete task was kept


def test_a_failure_that_is_none_of_the_disk_keeps_its_name(monkeypatch, tmp_path, text, tokenizer_folder):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "tokens.bin")

    monkeypatch.setattr(stages.DocumentReader, "read_file", refused)
    with pytest.raises(PermissionError, match=r"tokens\.bin"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_no_room_names_the_output(monkeypatch, tmp_path, text, tokenizer_folder, number):
    def full(*_):
        raise OSError(number, "No room")

    monkeypatch.setattr(stages.DocumentReader, "read_file", full)
    with pytest.raises(OSError, match=r"^No room for .*/out: make room and run the same command again"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)


def test_tasks_that_failed_elsewhere_are_reported_with_their_log(
    monkeypatch, tmp_path, text, tokenizer_folder
):
    monkeypatch.setattr(LocalExecutor, "get_incomplete_ranks", lambda *_: [1])
    with pytest.raises(OSError, match=r"1 of 2 tasks failed to tokenize: see .*logs/tokenize"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)


def test_interrupted_run_says_how_to_resume_it(monkeypatch, tmp_path, prepared, tokenizer_folder):
    def stop(*_):
        raise KeyboardInterrupt

    text, whole = prepared
    with monkeypatch.context() as patch:
        patch.setattr(stages, "cut_bins", stop)
        with pytest.raises(KeyboardInterrupt, match="start the same command again to resume"):
            run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert tree_hash(tmp_path / "out") == tree_hash(whole)


@pytest.mark.slow
def test_ray_gives_the_same(tmp_path, prepared, tokenizer_folder):
    pytest.importorskip("ray")
    text, local = prepared
    process = start(text, tmp_path / "ray", tokenizer_folder, "--executor", "ray", "--workers", "2")
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()
    assert tree_hash(tmp_path / "ray") == tree_hash(local)


def test_slurm_submits_jobs_that_wait_for_one_another(monkeypatch, tmp_path, text, tokenizer_folder):
    """With an `sbatch` that notes what it was given."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "Submitted batch job $(wc -l < {tmp_path}/calls)"\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="--executor slurm needs --slurm_partition"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder, "--executor", "slurm")
    run(
        monkeypatch,
        *(text, tmp_path / "out", tokenizer_folder, "--executor", "slurm", "--slurm_partition", "cpu"),
    )
    calls = [call for call in (tmp_path / "calls").read_text().splitlines() if "RUN_OFFSET" in call]
    assert len(calls) == 4
    assert ["dependency" in call for call in calls] == [False, True, True, True]
