"""Every format gives the same documents; what is broken is counted, reported and limited."""

import codecs
import gzip
import json
import os
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmshearing.data import sources
from llmshearing.data.records import DocumentReader
from llmshearing.data.sources import list_tasks
from tests.data.texts import documents, write_jsonl

TEXTS = ["plain", "Ünïcode \U0001f600 \x00 and\nlines", "   spaces  ", "last"]
LINES = b"".join(orjson.dumps({"id": 1, "body": text}) + b"\n" for text in TEXTS)


class Reading:
    """The texts of a file, and the counts of its reader once it was read."""

    def __init__(self, tmp_path, name, max_broken=0):
        self.reader = DocumentReader(str(tmp_path), "body", max_broken)
        self.name = name

    def __iter__(self):
        return (document.text for document in self.reader.read_file(self.name))

    def __getattr__(self, count):
        return getattr(self.reader, count)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "A.PARQUET"])
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = tmp_path / name
    if name.lower().endswith("parquet"):
        pq.write_table(pa.table({"id": range(len(TEXTS)), "body": TEXTS}), path)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(LINES))
    elif name.endswith("zst"):
        path.write_bytes(zstandard.compress(LINES))
    else:
        path.write_bytes(LINES)
    documents = Reading(tmp_path, name)
    assert list(documents) == TEXTS
    assert (documents.documents, documents.empty, documents.broken) == (4, 0, 0)


def test_a_byte_order_mark_and_capital_names_are_read(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "A.JSONL.GZ").write_bytes(gzip.compress(codecs.BOM_UTF8 + LINES))
    (task,) = list_tasks(str(tmp_path), None)
    documents = Reading(tmp_path, task.files[0].name)
    assert list(documents) == TEXTS
    assert documents.broken == 0


def test_a_domain_may_be_a_link_and_is_not_hidden(tmp_path):
    write_jsonl(tmp_path / "elsewhere" / "a.jsonl", documents(2))
    write_jsonl(tmp_path / "text" / ".cache" / "a.jsonl", documents(2))
    (tmp_path / "text" / "book").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "notes.txt").touch()
    (task,) = list_tasks(str(tmp_path / "text"), None)
    assert (task.domain, task.files[0].name) == ("book", "book/a.jsonl")


BROKEN = [
    b"{not json}",
    b'{"body": "invalid \xff utf-8"}',
    b'{"text": "another field"}',
    b'{"body": 17}',
    b'["no", "record"]',
    b'{"body": "cut of',
]


def test_broken_records_are_counted_and_passed_over(tmp_path):
    good = orjson.dumps({"body": "good"})
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *BROKEN, b"", b'{"body": ""}', good]))
    documents = Reading(tmp_path, "a.jsonl", max_broken=len(BROKEN))
    assert list(documents) == ["good", "good"]
    assert (documents.documents, documents.empty, documents.broken) == (2, 1, len(BROKEN))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (BROKEN[0], r"a.jsonl, line 2: .*: more than 0 broken records"),
        (BROKEN[1], r"line 2: .*UTF-8"),
        (BROKEN[2], r"line 2: no field 'body', it has text"),
        (BROKEN[3], r"line 2: body is int, no text"),
    ],
)
def test_too_many_broken_records_stop_with_the_first_line_beyond(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "good"}\n' + line)
    with pytest.raises(ValueError, match=message):
        list(Reading(tmp_path, "a.jsonl"))


def test_parquet_with_a_dictionary_of_texts(tmp_path):
    pq.write_table(
        pa.table({"body": pa.array(["one", "two", "one"]).dictionary_encode()}), tmp_path / "a.parquet"
    )
    assert list(Reading(tmp_path, "a.parquet")) == ["one", "two", "one"]


def test_parquet_with_bytes_that_are_no_utf8(tmp_path):
    values = pa.array([b"good", b"\xff\xfe", b"also good"]).cast(pa.binary())
    text = pa.StringArray.from_buffers(3, *values.buffers()[1:])
    pq.write_table(pa.table({"body": text}), tmp_path / "a.parquet")
    documents = Reading(tmp_path, "a.parquet", max_broken=1)
    assert list(documents) == ["good", "also good"]
    assert documents.broken == 1


def test_null_is_not_text_in_any_format(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": null}\n{"body": "good"}')
    pq.write_table(pa.table({"body": [None, "good"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        documents = Reading(tmp_path, name)
        assert list(documents) == ["good"]
        assert (documents.empty, documents.broken) == (1, 0)


def test_a_column_of_a_wrong_type_is_named(tmp_path):
    for values, kind in (([1, 2], "int64"), ([["a"]], "list")):
        pq.write_table(pa.table({"body": values}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"a.parquet: column 'body' is {kind}.*, expected text"):
            list(Reading(tmp_path, "a.parquet"))


def test_hidden_files_are_skipped_and_others_reported(tmp_path, caplog):
    for name in ("book/a.jsonl", "book/.cache/b.jsonl", "book/.c.jsonl", "book/d.txt", "book/e.jsonl.lz4"):
        write_jsonl(tmp_path / name, ["some text"])
    (task,) = list_tasks(str(tmp_path), None)
    assert [file.name for file in task.files] == ["book/a.jsonl"]
    skipped = "domain book: 2 files are skipped: 1 .txt (such as book/d.txt), 1 .jsonl.lz4 (such as book/e"
    assert skipped in caplog.text
    write_jsonl(tmp_path / "elsewhere" / "f.jsonl", ["some text"])
    (tmp_path / "book" / "linked").symlink_to(tmp_path / "elsewhere")
    list_tasks(str(tmp_path), ["book"])
    assert "1 linked folders such as book/linked are not followed" in caplog.text


def test_anything_but_a_regular_file_is_rejected(tmp_path):
    (tmp_path / "book").mkdir()
    os.mkfifo(tmp_path / "book" / "a.jsonl")
    with pytest.raises(ValueError, match=r"'book/a\.jsonl' is no regular file"):
        list_tasks(str(tmp_path), None)
    (tmp_path / "book" / "a.jsonl").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path / "book") + b"/\xff.jsonl")).touch()
    with pytest.raises(ValueError, match="is no UTF-8: rename it"):
        list_tasks(str(tmp_path), None)


def test_files_without_documents_are_counted_by_kind(tmp_path, caplog):
    """A kind is a suffix, and what it is packed as; names beside it are no kinds of their own."""
    for name in ("a.json.gz", "b.NDJSON", "c.jsonl.bz2", "c.jsonlines", "d.v1.jl", "e.json.jsonl"):
        write_jsonl(tmp_path / "c4" / name, ["some text"])
    for name in ("x.2019.txt", "y.2020.txt", "z.txt", "a.warc.gz", "README", "part.00001", "b.jsonl.bak"):
        (tmp_path / "c4" / name).touch()
    (task,) = list_tasks(str(tmp_path), None)
    assert len(task.files) == 6
    for shown in (
        "7 files are skipped: 3 .txt (such as c4/x.2019.txt), ",
        "2 without a suffix (such as c4/README)",
        "1 .warc.gz (such as c4/a.warc.gz)",
        "1 .bak (such as c4/b.jsonl.bak)",
    ):
        assert shown in caplog.text


def test_a_json_file_is_read_where_it_begins_with_a_record(tmp_path, caplog):
    """Settings, which lie beside data with the same suffix, are no records; an array of them is reported."""
    for name, text in {
        "a.json": '{"text": "some text"}\n',
        "b.json": '\ufeff\n {"text": "more"}',
        "info.json": '{\n "features": {}}',
        "array.json": "[1, 2]",
        "nothing.json": "",
    }.items():
        (tmp_path / "c4").mkdir(exist_ok=True)
        (tmp_path / "c4" / name).write_text(text)
    (task,) = list_tasks(str(tmp_path), None)
    assert [file.name for file in task.files] == ["c4/a.json", "c4/b.json"]
    assert "3 .json without a record a line (such as c4/array.json)" in caplog.text
    for text in ('[{"text": "some text"}]', '[\n  {"text": "some text"}\n]'):
        (tmp_path / "c4" / "array.json").write_text(text)
        (task,) = list_tasks(str(tmp_path), None)
        assert "c4/array.json" in [file.name for file in task.files]
        with pytest.raises(ValueError, match=r"array\.json holds an array, .*`jq -c \.\[\]`"):
            list(DocumentReader(str(tmp_path), "text", 0).read_file("c4/array.json"))


def test_sharing_out_files_looks_at_each_once(tmp_path, monkeypatch):
    """However many small files make up a task."""
    looked = []

    class Counted(sources.Source):
        def __getattribute__(self, name):
            looked.append(name)
            return super().__getattribute__(name)

    for i in range(60):
        write_jsonl(tmp_path / "a" / f"{i}.jsonl", ["some text"])
    monkeypatch.setattr(sources, "Source", Counted)
    list_tasks(str(tmp_path), None)
    assert 0 < looked.count("size") <= 120


def test_a_local_name_is_a_path_whatever_characters_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s3:x", "~nobody", "a::b", "hf:text"):
        write_jsonl(tmp_path / name / "book" / "a.jsonl", ["some text"])
        (task,) = list_tasks(name, None)
        assert task.files[0].name == "book/a.jsonl"
        assert [
            d.text for d in DocumentReader(sources.open_folder(name), "text", 0).read_file("book/a.jsonl")
        ]


def test_parquet_without_the_column(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has no column 'body', it has text: set --text_field"):
        list(Reading(tmp_path, "a.parquet"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_cut_off_is_an_error(tmp_path, name):
    many = b"".join(orjson.dumps({"body": text}) + b"\n" for text in documents(2000))
    if name.endswith("gz"):
        data = gzip.compress(many)
    elif name.endswith("zst"):
        data = zstandard.compress(many)
    else:
        pq.write_table(pa.table({"body": documents(2000)}), tmp_path / name)
        data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged or cut off"):
        list(Reading(tmp_path, name))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_packed_file_without_a_byte_is_cut_off(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name} is damaged or cut off"):
        list(Reading(tmp_path, name))


def test_a_datatrove_pipeline_reads_a_folder_with_it(tmp_path):
    """Files in order, counts anew for each, ids that tell where a document stood."""
    for name, texts in (("a.jsonl", ["one", ""]), ("b.jsonl", ["two", "three"])):
        (tmp_path / name).write_bytes(b"".join(orjson.dumps({"body": text}) + b"\n" for text in texts))
    reader = DocumentReader(str(tmp_path), "body", 0)
    found = [(document.text, document.id) for document in reader.run()]
    assert found == [("one", "a.jsonl/0"), ("two", "b.jsonl/0"), ("three", "b.jsonl/1")]
    assert (reader.documents, reader.empty) == (2, 0)


def test_files_without_text_are_empty(tmp_path):
    for name, data in (("a.jsonl", b""), ("a.jsonl.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(data)
        assert list(Reading(tmp_path, name)) == []


def test_tasks_group_files_by_name_and_size(tmp_path, monkeypatch):
    for name in ("b/2.jsonl", "b/1.jsonl", "b/notes.txt", "b/deep/3.jsonl", "a/x.jsonl"):
        write_jsonl(tmp_path / name, ["some text"])
    size = (tmp_path / "a" / "x.jsonl").stat().st_size
    monkeypatch.setattr(sources, "TASK_BYTES", 2 * size)
    tasks = [(task.domain, [file.name for file in task.files]) for task in list_tasks(str(tmp_path), None)]
    assert tasks == [("a", ["a/x.jsonl"]), ("b", ["b/1.jsonl", "b/2.jsonl"]), ("b", ["b/deep/3.jsonl"])]
    assert [task.domain for task in list_tasks(str(tmp_path), ["b"])] == ["b", "b"]


def test_wrong_inputs_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere not found: --input is a folder with one folder"):
        list_tasks(str(tmp_path / "nowhere"), None)
    with pytest.raises(ValueError, match="has no folders: expected one for each domain"):
        list_tasks(str(tmp_path), None)
    (tmp_path / "wiki").mkdir()
    with pytest.raises(ValueError, match=r"domain wiki has no text below .*/wiki: expected files .jsonl"):
        list_tasks(str(tmp_path), None)
    with pytest.raises(ValueError, match="has no folder cc: it has wiki"):
        list_tasks(str(tmp_path), ["cc"])
    with pytest.raises(ValueError, match="--domains names wiki twice"):
        list_tasks(str(tmp_path), ["wiki", "wiki"])


def test_json_text_is_read_as_it_is(tmp_path):
    """A record written by Python's json, with escapes, equals the text."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": TEXTS[1]}))
    assert list(Reading(tmp_path, "a.jsonl")) == [TEXTS[1]]
