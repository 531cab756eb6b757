"""Records as other programs write them: the text is read, or the reason it is not is counted and named."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import tracemalloc

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llmshearing.data import records
from llmshearing.data.records import DocumentReader
from tests.data.texts import documents

LINES = b"".join(orjson.dumps({"body": text}) + b"\n" for text in documents(50, seed=4))


def read(
    tmp_path, data: bytes, name: str = "a.jsonl", max_broken: int = 9
) -> tuple[list[str], DocumentReader]:
    (tmp_path / name).write_bytes(data)
    reader = DocumentReader(str(tmp_path), "body", max_broken)
    return [document.text for document in reader.read_file(name)], reader


@pytest.mark.parametrize(
    "other",
    [
        *(
            "NaN",
            "Infinity",
            "-Infinity",
            "nan",
            "-nan",
            "inf",
            "-inf",
            "NAN",
            "1.#QNAN",
            "-1.#IND",
            "-nan(ind)",
        ),
        *("undefined", "None", "True", "007", ".5", "+1", "0x1F", "1e999", "-1e999"),
        *("9" * 30, "9" * 5000, "-" + "9" * 5000, "[NaN, [nan, {'a'}]".replace("{'a'}", '{"a": NaN}') + "]"),
        *(
            '"\\ud800"',
            '"tab\there"',
            '"\x01"',
            '{"deep": [1, {"x": NaN}]}',
            '{"body": "inner", "body": NaN}',
        ),
        '"a \\" NaN \\\\", "more": nan',
    ],
)
def test_a_field_that_is_not_read_does_not_cost_the_document(tmp_path, other):
    """Before the text, after it, and with words in the text that look the same."""
    text = 'nan, NaN: {undefined} "quoted" \\ Ünïcode'
    lines = (
        f'{{"other": {other}, "body": {json.dumps(text)}}}\n{{"body": {json.dumps(text)}, "other": {other}}}'
    )
    texts, reader = read(tmp_path, lines.encode())
    assert texts == [text, text]
    assert (reader.documents, reader.empty, reader.broken, reader.reasons) == (2, 0, 0, {})


def test_bytes_that_are_not_utf8_in_another_field(tmp_path):
    texts, _ = read(tmp_path, b'{"url": "http://\xff\xfe", "body": "good \xc3\xa9"}')
    assert texts == ["good é"]


@pytest.mark.parametrize(
    ("line", "reason", "first"),
    [
        (b'{"text": "x", "id": 1}', "no field 'body'", "a.jsonl, line 2: no field 'body', it has text, id"),
        (b'{"doc": {"body": "x"}}', "no field 'body'", "it has doc"),
        (b'{"body": ["a", "b"]}', "body is list, no text", ""),
        (b'{"body": {"text": "x"}}', "body is dict, no text", ""),
        (b'{"body": 17}', "body is int, no text", ""),
        (b'{"body": hello}', "body is bool, no text", ""),
        (b'["a", "b"]', "a list instead of an object", ""),
        (b'"text alone"', "a str instead of an object", ""),
        (b"17", "a int instead of an object", ""),
        (b'{"body": "lone \\ud800 surrogate"}', "not valid UTF-8", ""),
        (b'{"body": "lone \xff byte"}', "not valid UTF-8", ""),
        (b"{'body': 'single'}", "not valid JSON", "not valid JSON ("),
        (b'{"body": "cut of', "not valid JSON", ""),
        (b'{"body": "cut of\\', "not valid JSON", ""),
        (b'{"body": "a"} {"body": "b"}', "not valid JSON", ""),
        (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b', "body": "a"}', "not valid JSON", ""),
        (b"plain text", "not valid JSON", ""),
    ],
)
def test_why_a_record_gives_no_text_is_counted(tmp_path, line, reason, first):
    texts, reader = read(tmp_path, b'{"body": "good"}\n' + line + b"\n" + line + b'\n{"body": "also good"}')
    assert texts == ["good", "also good"]
    assert (reader.broken, reader.reasons.keys()) == (2, {reason})
    assert reader.reasons[reason]["records"] == 2
    assert first in reader.reasons[reason]["first"]
    assert reader.reasons[reason]["first"].startswith("a.jsonl, line 2: ")


@pytest.mark.parametrize("missing", ["null", "NaN", "nan", '""'])
def test_a_text_that_is_missing_is_empty(tmp_path, missing):
    texts, reader = read(tmp_path, f'{{"body": {missing}}}'.encode())
    assert (texts, reader.empty, reader.broken) == ([], 1, 0)


def test_of_a_key_twice_the_last_counts_however_the_line_is_read(tmp_path):
    for other in ("1", "NaN", "nan"):
        texts, _ = read(tmp_path, f'{{"body": "first", "x": {other}, "body": "last"}}'.encode())
        assert texts == ["last"]


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    texts, reader = read(tmp_path, codecs.BOM_UTF8 + b'{"body": "one"}\r\n\r\n{"body": "two", "x": NaN}\r\n')
    assert (texts, reader.broken) == (["one", "two"], 0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(tmp_path, encoding):
    with pytest.raises(ValueError, match=r"a\.jsonl is UTF-16 or UTF-32, expected UTF-8: convert it"):
        read(tmp_path, '{"body": "one"}\n{"body": "two"}\n'.encode(encoding))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"body": "one"},\n {"body": "two"}]', r"holds an array, .*`jq -c \.\[\]`"),
        (b'[\n{"body": "one"},\n{"body": "two"}]', r"holds an array, .*`jq -c \.\[\]`"),
        (b'{\n  "body": "one"\n}\n', r"holds a record over several lines, .*`jq -c \.`"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "is a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_of_unknown_form_is_named(tmp_path, data, message, name):
    packed = gzip.compress(data) if name.endswith("gz") and b"lfs" not in data else data
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        read(tmp_path, packed, name)


PACKERS = {"gz": gzip, "gzip": gzip, "bz2": bz2, "xz": lzma, "zst": zstandard, "zstd": zstandard}
PACKED = {
    "gz": gzip.compress(LINES[:999]) + gzip.compress(LINES[999:]),
    "bz2": bz2.compress(LINES[:999]) + bz2.compress(LINES[999:]),
    "xz": lzma.compress(LINES[:999]) + lzma.compress(LINES[999:]),
    "zst": zstandard.compress(LINES[:999])
    + b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    + zstandard.compress(LINES[999:]),
    "ZSTD": b"\x5f\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(LINES),  # as pzstd begins
    "": LINES,
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_is_unpacked_by_what_it_holds(tmp_path, kind):
    """In its own name, in the name of plain text, and in another's; several streams end to end."""
    expected = [orjson.loads(line)["body"] for line in LINES.splitlines()]
    names = [f"a.jsonl.{kind}".rstrip("."), "a.json.gz", "a.ndjson.zst", "a.jsonl"]
    for name in names[: 1 if kind == "ZSTD" else None]:
        assert read(tmp_path, PACKED[kind], name)[0] == expected


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("left", [0, 3, 0.5, 0.999])
def test_a_packed_file_that_is_cut_off_is_an_error(tmp_path, kind, left):
    packed = PACKERS[kind].compress(LINES)
    size = left if isinstance(left, int) else int(left * len(packed))
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{kind} is damaged or cut off \("):
        read(tmp_path, packed[:size], f"a.jsonl.{kind}")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_streams_with_padding_between_them_are_read_to_the_end(tmp_path, kind):
    """As xz pads streams and tapes pad files; the padding here is longer than what is read at a time."""
    first, second = (PACKERS[kind].compress(part) for part in (LINES[:999], LINES[999:]))
    texts, _ = read(tmp_path, first + bytes(4) + second + bytes(1 << 12), f"a.jsonl.{kind}")
    assert texts == [orjson.loads(line)["body"] for line in LINES.splitlines()]


def test_a_zstd_dictionary_that_is_needed_is_named(tmp_path):
    samples = [b'{"body": "document %d of some"}' % number for number in range(500)]
    packer = zstandard.ZstdCompressor(dict_data=zstandard.train_dictionary(1024, samples))
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst was compressed with a dictionary.*zstd -d -D"):
        read(tmp_path, packer.compress(LINES), "a.jsonl.zst")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_bytes_that_belong_to_no_stream_are_an_error(tmp_path, kind):
    """They may be a stream whose beginning is damaged."""
    packed = PACKERS[kind].compress(LINES)
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{kind} is damaged or cut off \("):
        read(tmp_path, packed + b"\x01" + packed[1:], f"a.jsonl.{kind}")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_file_that_is_packed_twice_is_named(tmp_path, kind):
    packed = gzip.compress(PACKERS[kind].compress(LINES))
    with pytest.raises(
        ValueError, match=r"a\.jsonl\.gz is packed twice, there is \w+ inside: unpack it once"
    ):
        read(tmp_path, packed, "a.jsonl.gz")


def test_parquet_by_another_name(tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"body": ["one", "two"]}), table)
    assert read(tmp_path, table.getvalue(), "a.jsonl")[0] == ["one", "two"]
    with pytest.raises(ValueError, match=r"a\.parquet is damaged or cut off"):
        read(tmp_path, b"no parquet", "a.parquet")


@pytest.mark.parametrize("log", [28, 31])
def test_zstd_windows_up_to_2_gib(tmp_path, log):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(LINES) + stream.flush()
    assert len(read(tmp_path, packed, "RC_2010-01.jsonl.zst")[0]) == 50


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd"])
def test_a_bomb_is_read_in_pieces(tmp_path, kind):
    """256 MiB of blanks take a few KB (of gzip 256)."""
    packed = PACKERS[kind].compress(b" " * (1 << 28) + b"\n" + LINES)
    tracemalloc.start()
    (tmp_path / "a.jsonl").write_bytes(packed)
    with (tmp_path / "a.jsonl").open("rb") as stored:
        stream = records._unpack(stored, kind)
        while stream.read(1 << 16):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_a_record_beyond_the_limit_is_skipped_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 2000)
    monkeypatch.setattr(records, "_PIECE", 300)
    lines = [json.dumps({"body": "x" * size}) for size in (10, 1988, 1989, 9000, 20)]
    lines[0] += " " * 1500
    texts, reader = read(tmp_path, "\n".join(lines).encode())
    assert [len(text) for text in texts] == [10, 1988, 20]
    assert reader.reasons.keys() == {"longer than 0 MiB"}
    assert read(tmp_path, "\n".join([*lines, lines[3]]).encode())[1].broken == 3
    table = io.BytesIO()
    pq.write_table(pa.table({"body": ["x" * 2000, "x" * 2001]}), table)
    texts, reader = read(tmp_path, table.getvalue(), "a.parquet")
    assert ([len(text) for text in texts], reader.broken) == ([2000], 1)


def test_a_line_of_many_quotes_is_given_up_in_linear_time(tmp_path):
    """A backslash at the end of a string that nothing closes; each quote before it could begin a string."""
    line = b'{"x": nan, "body": "' + b'\\"' * 500_000 + b"\\"
    texts, reader = read(tmp_path, line)
    assert (texts, reader.broken) == ([], 1)
