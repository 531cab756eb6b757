"""What preparing does with records that cannot be read, and with tokenizers that fail."""

import json
import re
import time

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from llmshearing.data import patience, stages
from llmshearing.data.patience import within
from llmshearing.datasets.manifest import read_manifest
from tests.data.preparing import SEQ_LEN, read_documents, run, start, tree_hash
from tests.data.texts import documents, write_jsonl


def write_records(path, texts, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({**fields, "text": text}) + "\n" for text in texts))


def write_other(path, count, key="content"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in documents(count, seed=9)))


def test_many_records_without_the_field_in_small_files_stop_it(monkeypatch, tmp_path, text, tokenizer_folder):
    for i in range(20):
        write_other(text / "book" / f"part{i:02}.jsonl", 90)
    with pytest.raises(ValueError, match=r"--max_broken_share 0\.05") as error:
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert str(error.value).startswith(
        "domain book: 1,800 of 2,050 records (87.80%) are broken (1,800 no field 'text' (first: "
        "book/part00.jsonl, line 1: no field 'text', it has content))"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_larger_share_continues_what_was_tokenized(monkeypatch, tmp_path, text, tokenizer_folder):
    """The share changes no result: what is prepared with one is complete with another."""
    write_other(text / "book" / "part.jsonl", 50)
    out, calls = tmp_path / "out", []
    with pytest.raises(ValueError, match=r"50 of 300 records \(16\.67%\)"):
        run(monkeypatch, text, out, tokenizer_folder)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "DocumentReader", lambda *_: calls.append(1))
        run(monkeypatch, text, out, tokenizer_folder, "--max_broken_share", "0.2")
    run(monkeypatch, text, out, tokenizer_folder)
    assert not calls
    for share in ("-0.1", "1.5", "nan"):
        with pytest.raises(ValueError, match=r"--max_broken_share is .*: expected a share from 0 to 1"):
            run(monkeypatch, text, out, tokenizer_folder, "--max_broken_share", share)


def test_few_broken_records_are_a_warning_by_reason(monkeypatch, tmp_path, text, tokenizer_folder, caplog):
    write_other(text / "book" / "a.jsonl", 3)
    (text / "book" / "b.jsonl").write_text('{"text": 17}\n{"text": "cut\n["a"]\n')
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    (warning,) = [text for text in read_manifest(tmp_path / "out").settings["warnings"] if "broken" in text]
    assert warning.startswith(
        "domain book: 6 of 256 records (2.34%) are broken (3 no field 'text' (first: book/a"
    )
    for reason in (
        "1 text is int, no text",
        "1 not valid JSON (first: book/b.jsonl, line 2",
        "1 a list instead",
    ):
        assert reason in warning
    assert warning in caplog.text
    assert not [
        text for text in read_manifest(tmp_path / "out").settings["warnings"] if "domain wiki" in text
    ]
    sources = {file["name"]: file.get("reasons") for file in read_manifest(tmp_path / "out").sources["book"]}
    assert sources["book/all.jsonl"] is None
    assert sources["book/a.jsonl"]["no field 'text'"]["records"] == 3


def test_many_empty_records_are_a_warning(monkeypatch, tmp_path, text, tokenizer_folder, caplog):
    write_records(text / "book" / "a.jsonl", [None] * 50 + [""] * 50, content="the text is elsewhere")
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    assert "domain book: 100 of 350 records (28.57%) have no text in the field 'text'" in caplog.text


def test_nan_in_another_field_costs_nothing(monkeypatch, tmp_path, text, tokenizer_folder):
    """More such lines than --max_broken, and the same data as without them."""
    texts = documents(250, seed=1)
    run(monkeypatch, text, tmp_path / "plain", tokenizer_folder)
    write_records(text / "book" / "all.jsonl", texts, ppl=float("nan"), more=[float("-inf")])
    run(monkeypatch, text, tmp_path / "nan", tokenizer_folder)
    plain, nan = tree_hash(tmp_path / "plain"), tree_hash(tmp_path / "nan")
    assert plain.pop("manifest.json") != nan.pop("manifest.json")  # it tells the sources
    assert plain == nan
    assert read_manifest(tmp_path / "nan").domains["book"]["broken"] == 0


def test_an_output_is_a_local_folder_whatever_its_name(monkeypatch, tmp_path, text, tokenizer_folder):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, text, tmp_path / "out", tokenizer_folder)
    for name in ("s3:x", "~nobody", "gs:a/b", "file:y"):
        run(monkeypatch, text, name, tokenizer_folder)
        assert tree_hash(tmp_path / name) == tree_hash(tmp_path / "out")
        assert len(read_documents(tmp_path / name / "for_ft" / "book")) > 5
    text.rename(tmp_path / "az:~text")
    run(monkeypatch, "az:~text", "again", tokenizer_folder)
    for name in ("s3://bucket/x", "gs://bucket/x"):
        with pytest.raises(ValueError, match=rf"--output is {name}: expected a local folder"):
            run(monkeypatch, "az:~text", name, tokenizer_folder)


@pytest.fixture
def catastrophe(tmp_path, tokenizer_folder):
    """A tokenizer whose regular expression needs time that doubles with each letter of some texts."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated"), pre_tokenizers.Whitespace()]
    )
    (tmp_path / "catastrophe").mkdir()
    tokenizer.save(str(tmp_path / "catastrophe" / "tokenizer.json"))
    (tmp_path / "catastrophe" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "catastrophe"


def test_a_regular_expression_that_gives_up_names_the_document(
    monkeypatch, tmp_path, text, tokenizer_folder, catastrophe
):
    write_jsonl(text / "book" / "all.jsonl", ["w1 w2", "w3", "a" * 40 + "!", "w4"])
    with pytest.raises(
        ValueError, match=r"book/all\.jsonl, document 3: tokenizer .*retry-limit.*regular expression"
    ):
        run(monkeypatch, text, tmp_path / "out", catastrophe)
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.slow
def test_in_a_worker_too(tmp_path, text, catastrophe):
    """Where an exception has to travel to the command."""
    write_jsonl(text / "wiki" / "1.jsonl", ["w1 w2", "a" * 40 + "!"])
    process = start(text, tmp_path / "out", catastrophe, "--workers", "2")
    _, error = process.communicate()
    assert process.returncode == 2
    assert b"error: wiki/1.jsonl, document 2: tokenizer" in error


def test_a_tokenizer_that_does_not_end_is_given_up(monkeypatch, tmp_path, text, tokenizer_folder):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(patience, "SLOWEST_RATE", 1e9)
    monkeypatch.setattr("llmshearing.data.tokenizer._encode_fast", lambda *_: time.sleep(3600))
    with pytest.raises(ValueError, match=r"book/all\.jsonl, documents 1 to 250: .*it did not end in 0 s.*"):
        run(monkeypatch, text, tmp_path / "out", tokenizer_folder)


def test_what_a_thread_raises_is_raised():
    assert within(lambda: 17, 10) == 17
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 // 0, 10)
    with pytest.raises(TimeoutError, match="it did not end in 0 s"):
        within(lambda: time.sleep(3600), 0.05)


CHAT = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.fixture
def chat_tokenizer(tmp_path, tokenizer_folder):
    """Words with the tokens of a chat as BOS 502 and EOS 503, and <|endoftext|> 504."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    (tmp_path / "chat").mkdir()
    tokenizer.save(str(tmp_path / "chat" / "tokenizer.json"))
    (tmp_path / "chat" / "tokenizer_config.json").write_text(json.dumps(CHAT))
    return tmp_path / "chat"


def test_chat_tokens_around_documents_are_warned_about(
    monkeypatch, tmp_path, text, chat_tokenizer, tokenizer_folder, caplog, capsys
):
    run(monkeypatch, text, tmp_path / "out", chat_tokenizer)
    message = (
        r"puts <\|im_start\|>, <\|im_end\|> around documents, .* set --document_separator '<\|endoftext\|>'"
    )
    assert re.search(message, caplog.text)
    assert any(re.search(message, text) for text in read_manifest(tmp_path / "out").settings["warnings"])
    assert "each document between <|im_start|> (502) and <|im_end|> (503))" in capsys.readouterr().out
    caplog.clear()
    run(
        monkeypatch, text, tmp_path / "chosen", chat_tokenizer, "--bos", "<|im_start|>", "--eos", "<|im_end|>"
    )
    run(monkeypatch, text, tmp_path / "plain", tokenizer_folder)
    assert "chat" not in caplog.text


@pytest.mark.parametrize(
    ("words", "prefix", "suffix"),
    [
        (("--document_separator", "<|endoftext|>"), [], [504]),
        (("--bos", "", "--eos", "<|endoftext|>"), [], [504]),
        (("--bos", "<|endoftext|>"), [504], [503]),
        (("--eos", ""), [502], []),
        (("--bos", "</s>", "--eos", "</s>"), [1], [1]),
    ],
)
def test_the_tokens_around_documents_are_as_chosen(
    monkeypatch, tmp_path, text, chat_tokenizer, words, prefix, suffix
):
    from llmshearing.datasets.sequence_folder import SequenceFolder

    run(monkeypatch, text, tmp_path / "out", chat_tokenizer, *words)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.tokenizer["prefix"], manifest.tokenizer["suffix"]) == (prefix, suffix)
    names = {502: "<|im_start|>", 503: "<|im_end|>", 504: "<|endoftext|>", 1: "</s>"}
    assert manifest.tokenizer["suffix_tokens"] == [names[number] for number in suffix]
    first = json.loads((text / "book" / "all.jsonl").read_text().splitlines()[0])["text"].split()
    found = SequenceFolder(tmp_path / "out" / "for_ft" / "book", SEQ_LEN)
    tokens = [token for i in range(len(found)) for token in found[i].tokens.tolist()]
    special = [token for token in tokens if token >= 502 or token < 2]
    assert set(special) == {*prefix, *suffix}
    assert tokens[: len(prefix)] == prefix
    assert len(first) > 0
    with pytest.raises(FileExistsError, match="has other special tokens, merges or rules than"):
        run(monkeypatch, text, tmp_path / "out", chat_tokenizer)


def test_wrong_tokens_around_documents_are_named(monkeypatch, tmp_path, text, chat_tokenizer):
    for words, message in (
        (("--document_separator", "<|endoftxt|>"), r"has no token '<\|endoftxt\|>', it has <\|endoftext\|>"),
        (("--bos", "none"), r"has no token 'none'"),
        (("--document_separator", "</s>", "--eos", "</s>"), r"it stands for --bos '' --eos TOKEN"),
    ):
        with pytest.raises(ValueError, match=message):
            run(monkeypatch, text, tmp_path / "out", chat_tokenizer, *words)
