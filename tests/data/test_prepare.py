"""What the command makes of text: whole documents, no leakage, budgets kept, wrong input refused."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from llmshearing.config import DatasetConfig, LoaderConfig
from llmshearing.data import prepare, stages
from llmshearing.data.splits import BINS, SplitPlan, document_bin
from llmshearing.datasets.load_text_dataloader import build_text_dataloader
from llmshearing.datasets.manifest import read_manifest
from llmshearing.datasets.sequence_folder import SequenceFolder
from tests.data.preparing import (
    BOS,
    EOS,
    SEQ_LEN,
    read_documents,
    read_tokens,
    run,
    tree_hash,
)
from tests.data.texts import documents, write_jsonl


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


def test_what_a_split_takes_ends_before_the_next_ones_first_bin(tmp_path):
    lengths = np.array([1, 2, 3, 4])
    for name, values in (
        ("lengths", lengths),
        ("bins", np.uint16([5, 6, 7, 8])),
        ("tokens", np.uint16(range(10))),
    ):
        values.tofile(tmp_path / f"{name}.bin")
    cuts = [SplitPlan(0, 6, None), SplitPlan(6, 8, None), SplitPlan(8, BINS, None)]
    found = [np.concatenate(list(stages._chosen_tokens(tmp_path, cut, "uint16"))).tolist() for cut in cuts]
    assert found == [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9]]


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
    assert manifest.sha256 == tree_hash(out)["manifest.json"]
    assert str(out) not in (out / "manifest.json").read_text()


def test_eval_merge_holds_every_domain_in_any_first_part(prepared):
    _, out = prepared
    merged = SequenceFolder(out / "eval_merge", SEQ_LEN)
    assert [merged.domain(i) for i in range(len(merged))] == ["book", "wiki"] * 20
    for domain, first in (("book", 0), ("wiki", 1)):
        single = SequenceFolder(out / "eval" / domain, SEQ_LEN)
        assert all(np.array_equal(merged[first + 2 * i].tokens, single[i].tokens) for i in range(20))


def test_the_loaders_read_it(prepared):
    _, out = prepared

    def section(split, **more):
        return LoaderConfig(DatasetConfig(str(out), split=split, **{"max_seq_len": SEQ_LEN, **more}))

    names = ["book", "wiki"]
    train = build_text_dataloader(section("for_prune"), 4, True, names, [0.5, 0.5], vocab_size=502)
    assert next(iter(train))["input_ids"].shape == (4, SEQ_LEN)
    evaluation = build_text_dataloader(section("eval_merge"), 4, set_names=names)
    assert evaluation.dataset.samples_per_domain() == {"book": 20, "wiki": 20}
    with pytest.raises(ValueError, match="prepared with seq_length 32, max_seq_len is 64"):
        build_text_dataloader(section("eval_merge", max_seq_len=64), 4)
    with pytest.raises(ValueError, match=r"of 502 tokens, the model's vocab_size is 500"):
        build_text_dataloader(section("eval_merge"), 4, vocab_size=500)
    with pytest.raises(ValueError, match=r"is_uint16 is False, but the tokens of .* are uint16"):
        build_text_dataloader(section("eval_merge", is_uint16=False), 4)


def test_a_document_longer_than_many_sequences(monkeypatch, tmp_path, text, tokenizer_folder):
    texts = (" ".join(documents(200, seed=seed)) for seed in range(100))
    long = next(text for text in texts if document_bin(text.encode(), seed=17) > BINS // 2)  # for_ft
    write_jsonl(text / "book" / "all.jsonl", [long, *documents(250, seed=1)])
    monkeypatch.setattr(stages, "_CHUNK_TOKENS", 500)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert long in read_documents(tmp_path / "out" / "for_ft" / "book")


def test_a_document_too_long_for_its_split_is_warned_about(
    monkeypatch, tmp_path, text, tokenizer_folder, caplog
):
    long = " ".join(documents(40, seed=3549))
    assert document_bin(long.encode(), seed=17) < 50  # eval
    write_jsonl(text / "book" / "all.jsonl", [long, *documents(250, seed=1)])
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert re.search(r"domain book: eval takes 640 of the 1,\d\d\d tokens of its documents", caplog.text)
    assert "domain wiki" not in caplog.text


def test_numbers_that_cannot_work_are_rejected_at_once(monkeypatch, tmp_path, text, tokenizer_folder):
    nothing = ("--eval_tokens", "0", "--prune_tokens", "0", "--ft_tokens", "0")
    for words, message in (
        (nothing, "are all 0: nothing would be made"),
        (("--seed", str(2**64)), r"expected less than 2\^63"),
    ):
        with pytest.raises(ValueError, match=message):
            run(monkeypatch, text, tmp_path / "out", tokenizer_folder, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["tokenizer", "settings", "domains"])
def test_a_manifest_with_other_contents_is_named(
    monkeypatch, tmp_path, text, tokenizer_folder, prepared, key
):
    manifest = json.loads((prepared[1] / "manifest.json").read_text())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, key: "words"}))
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest of prepared data"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)


def test_places_that_cannot_work_are_rejected(monkeypatch, tmp_path, text, tokenizer_folder):
    with pytest.raises(ValueError, match="lies in --input"):
        run(monkeypatch, text, text / "out", tokenizer_folder)
    with pytest.raises(ValueError, match="lies in --input"):
        run(monkeypatch, f"file://{text}", text / "out", tokenizer_folder)
    (tmp_path / "link").symlink_to(text)
    with pytest.raises(ValueError, match="lies in --input"):
        run(monkeypatch, text, tmp_path / "link" / "out", tokenizer_folder)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file, which is a file: give a folder"):
        run(monkeypatch, text, tmp_path / "file", tokenizer_folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="lies in --input"):
        run(monkeypatch, Path("~/text"), text / "out", tokenizer_folder)
    run(monkeypatch, Path("~/text"), Path("~/out"), tokenizer_folder)
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ([], (), "domain book has no documents with text in the field 'text'"),
        (["w1 w2 w3"], (), r"domain book: eval gets 0 of 5 tokens in 1 different documents, .* splits$"),
        (
            [" ".join(documents(99))] * 9,
            ("--ft_tokens", "1k"),
            r"domain book: for_prune gets 0 of .* in 1 different documents, .*"
            r"in the ratio of --prune_tokens 4,000 and --ft_tokens 1,000",
        ),
        (
            documents(99),
            ("--prune_tokens", "20", "--ft_tokens", "1k"),
            "domain book: its share of for_prune is less than a sequence of 32 tokens: raise --prune_tokens "
            ".* in the ratio of --prune_tokens 20 and --ft_tokens 1,000: lower --ft_tokens",
        ),
        (
            documents(99),
            ("--prune_tokens", "0", "--ft_tokens", "20"),
            "domain book: its share of for_ft is less than .*: raise --ft_tokens .* lower --seq_length$",
        ),
        (documents(99), ("--tokenizer", "nowhere"), "cannot load tokenizer 'nowhere'"),
        (documents(99), ("--text_field", "body"), r"line \d+: no field 'body', it has text: more than 100"),
        (documents(99), ("--proportion", "book=0.5"), "--proportion names book, expected each of book, wiki"),
        (documents(99), ("--proportion", "book=0.5", "wiki=1"), "--proportion sums to 1.5"),
        (
            documents(99),
            ("--proportion", "book=0", "wiki=1"),
            "--proportion book=0: expected a share above 0",
        ),
        (
            documents(99),
            ("--proportion", "wiki=1.5", "book=-0.5"),
            "--proportion book=-0.5: expected a share",
        ),
        (documents(99), ("--proportion", "book=.nan", "wiki=1"), "--proportion book=nan: expected a number"),
        (documents(99), ("--proportion", "book=true", "wiki=1"), "--proportion book=True: expected a number"),
        (documents(99), ("--proportion", "book"), "'book' is not of the form key=value, such as book=0.25"),
        (documents(99), ("--domains", "wiki", "book", "wiki"), "--domains names wiki twice: name each"),
        (documents(99), ("--proportion", "book="), "--proportion book=: expected a number such as book=0.25"),
        (documents(99), ("--proportion", "book=abc"), "--proportion book=abc: expected a number"),
        (documents(99), ("--proportion", "book=[1"), r"The value '\[1' is not plain YAML"),
        (documents(99), ("--seq_length", "0"), "--seq_length is 0: expected 2 or more"),
        (documents(99), ("--seq_length", "1"), "--seq_length is 1: expected 2 or more"),
    ],
)
def test_wrong_input_is_rejected(monkeypatch, tmp_path, text, tokenizer_folder, texts, more, message):
    write_jsonl(text / "book" / "all.jsonl", texts)
    write_jsonl(text / "wiki" / "3.jsonl", documents(99, seed=5))
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder, *more)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("last", [0.499, 0.501])
def test_shares_that_training_takes_are_taken(last):
    """At the edge of the tolerance their order does not matter."""
    for words in (["a=0.5", f"b={last}"], [f"b={last}", "a=0.2", "c=0.3"]):
        assert sum(prepare._shares(words, [word[0] for word in words]).values()) == pytest.approx(1)
    beyond = last + (last - 0.5) / 100
    with pytest.raises(ValueError, match=r"--proportion sums to \d\.\d+: expected shares that sum to 1"):
        prepare._shares(["a=0.5", f"b={beyond}"], ["a", "b"])


def test_help_says_how_tokens_may_be_written(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare", "--help"])
    with pytest.raises(SystemExit):
        prepare.parse_arguments()
    assert "420M, 0.42B" in capsys.readouterr().out.partition("--prune_tokens PRUNE_TOKENS\n")[2]
