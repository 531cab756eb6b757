"""The command as users run it: what comes out, that it does not leak, and that it survives."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from llmshearing.data import inspect as inspect_command
from llmshearing.data import merge_data, prepare, sources, stages
from llmshearing.data.manifest import manifest_sha256, read_manifest
from llmshearing.data.splits import BINS, document_bin
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.loader_config import DatasetConfig, LoaderConfig
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.data.conftest import documents, write_jsonl

SEQ_LEN = 32
BOS, EOS = 0, 1


def run(monkeypatch, text: Path, output: Path, tokenizer: Path, *more: str) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments(text, output, tokenizer), *more])
    prepare.main()


def arguments(text: Path, output: Path, tokenizer: Path) -> list[str]:
    return [
        *("--input", str(text), "--output", str(output), "--tokenizer", str(tokenizer)),
        *("--seq_length", str(SEQ_LEN), "--eval_tokens", "640", "--prune_tokens", "4000", "--workers", "1"),
    ]


def tree_hash(folder: Path) -> dict[str, str]:
    """Hash of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_text(folder: Path) -> Path:
    """`book` is one file; `wiki` is three, with copies of each other's documents."""
    wiki = documents(300, seed=2)
    write_jsonl(folder / "book" / "all.jsonl", documents(250, seed=1))
    write_jsonl(folder / "wiki" / "0.jsonl", wiki[:150])
    write_jsonl(folder / "wiki" / "1.jsonl", wiki[100:250])
    write_jsonl(folder / "wiki" / "2.jsonl", wiki[250:] + wiki[:20])
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path / "text")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer_folder) -> tuple[Path, Path]:
    """Text and what the command makes of it, to look at only."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, write_text(folder / "text"), folder / "out", tokenizer_folder)
    return folder / "text", folder / "out"


def read_tokens(folder: Path) -> np.ndarray:
    """All tokens of a folder, end to end."""
    sequences = SequenceFolder(folder, SEQ_LEN)
    return np.concatenate([sequences[i].tokens for i in range(len(sequences))])


def read_documents(folder: Path) -> list[str]:
    """The complete documents in a folder: what stands between BOS and EOS."""
    joined = " ".join(
        "|" if token == EOS else f"w{token - 2}" for token in read_tokens(folder) if token != BOS
    )
    return [document.strip() for document in joined.split("|")[:-1]]


def test_documents_come_out_whole_between_bos_and_eos_in_order(prepared):
    text, out = prepared
    source = [json.loads(line)["text"] for line in (text / "book" / "all.jsonl").read_text().splitlines()]
    position = {document: i for i, document in enumerate(source)}
    for split in ("eval", "for_prune", "for_ft"):
        found = [position[document] for document in read_documents(out / split / "book")]
        assert found == sorted(found)
        assert len(found) > 5
    tokens = read_tokens(out / "for_ft" / "book")
    assert (tokens == BOS).sum() - (tokens == EOS).sum() in (0, 1)


def test_nothing_is_lost_but_the_last_rest(prepared):
    text, out = prepared
    entry = read_manifest(out).domains["wiki"]
    words = sum(
        len(json.loads(line)["text"].split()) + 2 for f in (text / "wiki").iterdir() for line in f.open()
    )
    assert entry["tokens"] == words
    assert entry["documents"] == 370
    used = sum(split["tokens"] for split in entry["splits"].values())
    # What is left over: a rest in each split, and what overshoots two budgets (a text and its copies).
    assert words - 3 * SEQ_LEN - 2 * (3 * 61 + SEQ_LEN) < used <= words


def test_no_document_or_copy_of_it_is_in_two_splits(prepared):
    _, out = prepared
    for domain in ("book", "wiki"):
        splits = [set(read_documents(out / s / domain)) for s in ("eval", "for_prune", "for_ft")]
        assert all(splits)
        assert not splits[0] & splits[1]
        assert not splits[0] & splits[2]
        assert not splits[1] & splits[2]


def test_budgets_are_kept(monkeypatch, tmp_path, text, tokenizer_folder):
    run(
        monkeypatch,
        *(text, tmp_path / "out", tokenizer_folder, "--proportion", "book=0.75", "wiki=0.25"),
        *("--ft_tokens", "3k"),
    )
    splits = {name: entry["splits"] for name, entry in read_manifest(tmp_path / "out").domains.items()}
    assert splits["book"]["eval"]["tokens"] == splits["wiki"]["eval"]["tokens"] == 640
    assert splits["book"]["for_prune"]["tokens"] == 3000 // SEQ_LEN * SEQ_LEN
    assert splits["wiki"]["for_prune"]["tokens"] == 1000 // SEQ_LEN * SEQ_LEN
    assert splits["wiki"]["for_ft"]["tokens"] == 750 // SEQ_LEN * SEQ_LEN


def test_shortage_is_warned_about_with_numbers(monkeypatch, tmp_path, text, tokenizer_folder, caplog):
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder, "--prune_tokens", "1B")
    assert any("domain book: for_prune gets" in record.getMessage() for record in caplog.records)


def test_manifest_says_what_was_made_of_what(prepared):
    text, out = prepared
    manifest = read_manifest(out)
    assert manifest.seq_length == SEQ_LEN
    assert manifest.dtype == "uint16"
    assert manifest.tokenizer["vocab_size"] == 502
    (book,) = manifest.sources["book"]
    data = (text / "book" / "all.jsonl").read_bytes()
    assert (book["bytes"], book["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for split in ("eval", "for_prune", "for_ft"):
        folder = SequenceFolder(out / split / "book", SEQ_LEN)
        assert manifest.domains["book"]["splits"][split]["sequences"] == len(folder)
        assert folder.dtype == np.dtype("uint16")
    assert manifest_sha256(out) == tree_hash(out)["manifest.json"]
    assert str(out) not in (out / "manifest.json").read_text()


def test_eval_merge_holds_every_domain_in_any_first_part(prepared):
    _, out = prepared
    merged = SequenceFolder(out / "eval_merge", SEQ_LEN)
    assert [merged.domain(i) for i in range(len(merged))] == ["book", "wiki"] * 20
    for domain, first in (("book", 0), ("wiki", 1)):
        single = SequenceFolder(out / "eval" / domain, SEQ_LEN)
        assert all(np.array_equal(merged[first + 2 * i].tokens, single[i].tokens) for i in range(20))


def test_the_loaders_read_it(prepared, tokenizer_folder, tmp_path):
    _, out = prepared

    def section(split, **more):
        return LoaderConfig(DatasetConfig(str(out), split=split, **{"max_seq_len": SEQ_LEN, **more}))

    names = ["book", "wiki"]
    train = build_text_dataloader(section("for_prune"), 4, True, names, [0.5, 0.5], vocab_size=502)
    assert next(iter(train))["input_ids"].shape == (4, SEQ_LEN)
    evaluation = build_text_dataloader(section("eval_merge"), 4, set_names=names)
    assert evaluation.dataset.samples_per_domain() == {"book": 20, "wiki": 20}
    build_text_dataloader(section("eval_merge", tokenizer_name=str(tokenizer_folder)), 4)
    other = shutil.copytree(tokenizer_folder, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"w7"', '"seven"'))
    with pytest.raises(ValueError, match="has another vocabulary than the one the data was made with"):
        build_text_dataloader(section("eval_merge", tokenizer_name=str(other)), 4)
    with pytest.raises(ValueError, match="prepared with seq_length 32, max_seq_len is 64"):
        build_text_dataloader(section("eval_merge", max_seq_len=64), 4)
    with pytest.raises(ValueError, match=r"of 502 tokens, the model's vocab_size is 500"):
        build_text_dataloader(section("eval_merge"), 4, vocab_size=500)
    with pytest.raises(ValueError, match=r"is_uint16 is False, but the tokens of .* are uint16"):
        build_text_dataloader(section("eval_merge", is_uint16=False), 4)


def test_grouping_files_otherwise_or_other_batches_change_nothing(
    monkeypatch, tmp_path, prepared, tokenizer_folder
):
    text, out = prepared
    monkeypatch.setattr(sources, "TASK_BYTES", 1)
    monkeypatch.setattr(stages, "_BATCH_BYTES", 300)
    monkeypatch.setattr(stages, "_CHUNK_TOKENS", 100)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert tree_hash(tmp_path / "out") == tree_hash(out)


def test_a_document_longer_than_many_sequences(monkeypatch, tmp_path, text, tokenizer_folder):
    texts = (" ".join(documents(200, seed=seed)) for seed in range(100))
    long = next(text for text in texts if document_bin(text.encode(), seed=17) > BINS // 2)  # for_ft
    write_jsonl(text / "book" / "all.jsonl", [long, *documents(250, seed=1)])
    monkeypatch.setattr(stages, "_CHUNK_TOKENS", 500)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert long in read_documents(tmp_path / "out" / "for_ft" / "book")


def test_done_work_is_recognized_and_other_work_refused(monkeypatch, tmp_path, text, tokenizer_folder):
    out = tmp_path / "out"
    run(monkeypatch, text, out, tokenizer_folder)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(monkeypatch, text, out, tokenizer_folder)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"holds data prepared otherwise \(manifest.json\)"):
        run(monkeypatch, text, out, tokenizer_folder, "--seed", "18")
    write_jsonl(text / "book" / "more.jsonl", ["w1"])
    with pytest.raises(FileExistsError, match="holds data prepared otherwise"):
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
    with pytest.raises(FileNotFoundError, match=r"for_ft/wiki/shard.00000.mds not found"):
        run(monkeypatch, text, out, tokenizer_folder)


def test_one_process_at_a_time_works_at_a_folder(monkeypatch, tmp_path, text, tokenizer_folder):
    out = tmp_path / "out"
    out.mkdir()
    busy = pytest.raises(FileExistsError, match="is being prepared by another process")
    with FileLock(out / ".prepare.lock"), busy:
        run(monkeypatch, text, out, tokenizer_folder)
    run(monkeypatch, text, out, tokenizer_folder)
    assert not list(out.glob(".*"))


def test_a_task_that_another_process_completes_meanwhile_is_kept(tmp_path):
    with stages._whole(tmp_path / "task") as mine:
        (mine / "text").write_text("the same")
        with stages._whole(tmp_path / "task2") as other:
            (other / "text").write_text("the same")
        (tmp_path / "task2").rename(tmp_path / "task")
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


def test_a_document_too_long_for_its_split_is_warned_about(
    monkeypatch, tmp_path, text, tokenizer_folder, caplog
):
    texts = (" ".join(documents(40, seed=seed)) for seed in range(5000))
    long = next(text for text in texts if document_bin(text.encode(), seed=17) < 50)  # eval
    write_jsonl(text / "book" / "all.jsonl", [long, *documents(250, seed=1)])
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert re.search(r"domain book: eval takes 640 of the 1,\d\d\d tokens of its documents", caplog.text)
    assert "domain wiki" not in caplog.text


def test_places_that_cannot_work_are_refused(monkeypatch, tmp_path, text, tokenizer_folder):
    with pytest.raises(ValueError, match="lies in --input"):
        run(monkeypatch, text, text / "out", tokenizer_folder)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file: give a folder"):
        run(monkeypatch, text, tmp_path / "file", tokenizer_folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(monkeypatch, Path("~/text"), Path("~/out"), tokenizer_folder)
    assert (tmp_path / "out" / "manifest.json").is_file()


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
        "tokenize": (stages, "DocumentReader"),
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


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ([], (), "domain book has no documents with text in the field 'text'"),
        (["w1 w2 w3"], (), r"domain book: eval gets 0 of 5 tokens in 1 different documents, too few"),
        ([" ".join(documents(99))] * 9, (), r"domain book: for_prune gets 0 of .* in 1 different documents"),
        (documents(99), ("--tokenizer", "nowhere"), "cannot load tokenizer 'nowhere'"),
        (documents(99), ("--text_field", "body"), r"line \d+: no field 'body', it has text: more than 100"),
        (documents(99), ("--proportion", "book=0.5"), "--proportion names book, expected each of book, wiki"),
        (documents(99), ("--proportion", "book=0.5", "wiki=1"), "--proportion sums to 1.5"),
        (documents(99), ("--seq_length", "0"), "--seq_length is 0: expected 1 or more"),
    ],
)
def test_wrong_input_is_refused(monkeypatch, tmp_path, text, tokenizer_folder, texts, more, message):
    write_jsonl(text / "book" / "all.jsonl", texts)
    write_jsonl(text / "wiki" / "3.jsonl", documents(99, seed=5))
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder, *more)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_inspect_shows_counts_and_text(monkeypatch, prepared, capsys):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out), "--samples", "2"])
    inspect_command.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["eval/book", "20", "640", "uint16"] for line in lines)
    first = read_documents(out / "eval" / "book")[0]
    assert any(line.startswith("  [0] book") and " ".join(first.split()[:3]) in line for line in lines)


def test_inspect_wants_the_length_of_data_without_a_manifest(monkeypatch, prepared):
    _, out = prepared
    monkeypatch.setattr(sys, "argv", ["inspect", str(out / "for_ft")])
    monkeypatch.setattr(inspect_command, "manifest_of", lambda root: None)
    with pytest.raises(ValueError, match="has no manifest: give the tokens of a sequence"):
        inspect_command.main()


def start(text: Path, output: Path, tokenizer: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llmshearing.data.prepare", *arguments(text, output, tokenizer), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def many_files(tmp_path: Path) -> Path:
    for domain in ("book", "wiki"):
        for i in range(6):
            write_jsonl(tmp_path / "text" / domain / f"{i}.jsonl", documents(4000, seed=10 * i + len(domain)))
    return tmp_path / "text"


@pytest.mark.slow
@pytest.mark.reliability
def test_killed_and_started_again_with_any_workers_it_is_the_same(tmp_path, tokenizer_folder):
    text = many_files(tmp_path)
    hashes = []
    for workers in ("1", "2"):
        assert start(text, tmp_path / workers, tokenizer_folder, "--workers", workers).wait() == 0
        hashes.append(tree_hash(tmp_path / workers))
    assert hashes[0] == hashes[1]
    for delay, kill in ((1, os.killpg), (4, os.kill), (6, os.kill), (7, os.killpg)):
        process = start(text, tmp_path / "killed", tokenizer_folder, "--workers", "2")
        time.sleep(delay)
        kill(process.pid, signal.SIGKILL)  # os.kill leaves its workers behind, at work
        process.wait()
    assert start(text, tmp_path / "killed", tokenizer_folder, "--workers", "2").wait() == 0
    assert tree_hash(tmp_path / "killed") == hashes[0]


@pytest.mark.slow
@pytest.mark.reliability
def test_a_full_disk_is_reported_and_the_next_run_goes_on(tmp_path, tokenizer_folder):
    text = many_files(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        process = start(text, disk / "out", tokenizer_folder)
        _, error = process.communicate()
        assert process.returncode == 2
        assert b"No space left on device for " in error
        assert b"Traceback" not in error
        assert not (disk / "out" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert start(text, disk / "out", tokenizer_folder).wait() == 0
        assert start(text, tmp_path / "whole", tokenizer_folder).wait() == 0
        assert tree_hash(disk / "out") == tree_hash(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_ray_gives_the_same(tmp_path, text, tokenizer_folder):
    pytest.importorskip("ray")
    assert start(text, tmp_path / "local", tokenizer_folder).wait() == 0
    process = start(text, tmp_path / "ray", tokenizer_folder, "--executor", "ray", "--workers", "2")
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()
    assert tree_hash(tmp_path / "ray") == tree_hash(tmp_path / "local")


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
