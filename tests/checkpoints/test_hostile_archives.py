"""Archives, sharded checkpoints and safetensors files that a stranger made, or that are damaged."""

import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem

from hostile import NAME, edit_json
from llmshearing.checkpoints.hf_files import read_hf
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.sharded import load_sharded
from twins import CONFIGS, make, save

# ---------------------------------------------------------------- archives


def rewritten(path, edit):
    """An archive of torch.save with other members: `edit(name, content)` gives content and compression."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(path.with_suffix(".new"), "w") as target:
        for info in source.infolist():
            written = edit(info.filename, source.read(info.filename))
            if written is not None:
                target.writestr(info.filename, written[0], compress_type=written[1])
    path.with_suffix(".new").rename(path)
    return path


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda n, c: (c[:100] if n.endswith("data/0") else c, STORED),
            "storage 0 has 100 bytes; .* need 4,000",
        ),
        (lambda n, c: (c + b"x" if n.endswith("data/0") else c, STORED), "storage 0 has 4,001 bytes"),
        (lambda n, c: None if n.endswith("data/1") else (c, STORED), "storage 1 has nothing"),
        (lambda n, c: (c, DEFLATED if n.endswith("data/0") else STORED), "data/0 is compressed"),
    ],
)
def test_a_member_of_the_wrong_size_is_reported(tmp_path, edit, message):
    torch.save({"a": torch.ones(1000), "b": torch.full((5000,), 7.0)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=message):
        load_tensors(rewritten(tmp_path / "c.pt", edit))


def test_members_that_overlap_are_reported(tmp_path):
    """Two names for the same bytes, each of the right size."""
    torch.save({"a": torch.ones(1000), "b": torch.full((1000,), 7.0)}, tmp_path / "c.pt")
    content = bytearray((tmp_path / "c.pt").read_bytes())
    first, second = (content.rindex(b"PK\x01\x02", 0, content.rindex(n)) for n in (b"/data/0", b"/data/1"))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]  # where the member begins
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match="overlaps what follows it"):
        load_tensors(tmp_path / "c.pt")


def divided(path):
    """Members and directory of an archive, and how many members there are."""
    with zipfile.ZipFile(path) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    content = path.read_bytes()
    return content[:start], content[start:-22], count


def shifted(directory, distance):
    """A directory whose members all lie `distance` further on."""
    moved = bytearray(directory)
    for found in re.finditer(b"PK\x01\x02", directory):
        place = found.start() + 42
        offset = int.from_bytes(directory[place : place + 4], "little") + distance
        moved[place : place + 4] = offset.to_bytes(4, "little")
    return bytes(moved)


def end_of_64(length, start, place, count):
    """The end records of a large archive, their own at `place`."""
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)


def end_of(length, start, count, comment=b""):
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, start, len(comment)) + comment


@pytest.fixture
def archives(tmp_path):
    """The parts of a sound archive and of one whose first member is short, which begins a file."""
    torch.save({"a": torch.ones(1000), "b": torch.full((5000,), 7.0)}, tmp_path / "c.pt")
    sound = divided(rewritten(tmp_path / "c.pt", lambda n, c: (c, STORED)))
    sizes = {"c/data/0": 100, "c/data/1": 30_000}
    lying = divided(rewritten(tmp_path / "c.pt", lambda n, c: ((c * 2)[: sizes.get(n, len(c))], STORED)))
    assert len(sound[1]) == len(lying[1])
    return sound, lying


def two_directories(sound, lying):
    """zipfile takes the last directory and moves its members, torch the first one as it is."""
    (members, directory, count), (false, taken, _) = sound, lying
    moved = shifted(directory, len(false) - len(members))
    return false + taken + members + moved + end_of(len(taken), len(false), count)


def two_directories_of_64(sound, lying):
    (members, directory, count), (false, taken, _) = sound, lying
    content = false + taken + members + shifted(directory, len(false) - len(members))
    return content + end_of_64(len(taken), len(false), len(content), count) + end_of(0, 0, count)


def two_ends_of_64(sound, lying):
    """zipfile takes the end record before the last two, torch the one that is pointed to."""
    (members, directory, count), (false, taken, _) = sound, lying
    first = false + taken
    led = end_of_64(len(taken), len(false), len(first), count)
    content = first + led + members
    content += shifted(directory, len(first + led))
    own = end_of_64(len(directory), len(first + led + members), len(first), count)
    return content + own + end_of(0, 0, count)


def an_end_in_a_comment(sound, lying):
    """zipfile finds no archive at all, torch the end record before the comment."""
    members, directory, count = lying
    return members + directory + end_of(len(directory), len(members), count, b"PK\5\6")


@pytest.mark.parametrize(
    "build", [two_directories, two_directories_of_64, two_ends_of_64, an_end_in_a_comment]
)
def test_an_archive_that_torch_reads_in_another_way_is_reported(tmp_path, archives, build):
    (tmp_path / "d.pt").write_bytes(build(*archives))
    with pytest.raises(ValueError, match="its directory is not where its end records say"):
        load_tensors(tmp_path / "d.pt")


def test_names_that_differ_in_case_are_one_name_to_torch(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "a") as archive:
        archive.writestr("c/DATA/0", b"x")
    with pytest.raises(ValueError, match="a name occurs twice"):
        load_tensors(tmp_path / "c.pt")


def test_a_file_of_the_older_format_is_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensors(tmp_path / "c.pt")["a"], torch.ones(3))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int16, torch.float8_e4m3fn, torch.bool]
)
def test_sound_archives_of_every_type_are_read(tmp_path, dtype):
    shared = torch.arange(10).to(dtype)
    state = OrderedDict(
        a=shared, b=shared[2:5], c=torch.nn.Parameter(torch.ones(3)), d=torch.zeros(0), e=[1, {2}]
    )
    torch.save(state, tmp_path / "c.pt")
    found = load_tensors(tmp_path / "c.pt")
    assert torch.equal(found["b"].double(), torch.arange(2, 5).double().to(dtype).double())


# -------------------------------------------------------- sharded checkpoints


def sharded(folder):
    weights = {"wte": torch.ones(100), "head": torch.full((100,), 2.0)}
    dcp.save({"state": {"model": weights}}, checkpoint_id=folder, no_dist=True)
    return folder


def spoil_index(folder, edit):
    index = pickle.loads((folder / ".metadata").read_bytes())
    edit(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def set_paths(name):
    def edit(index):
        for info in index.storage_data.values():
            info.relative_path = name

    return edit


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", 3])
def test_an_index_that_leads_out_of_its_folder_is_reported(tmp_path, name):
    folder = sharded(tmp_path / "ep0")
    (tmp_path / "secret").write_bytes((folder / "__0_0.distcp").read_bytes())
    spoil_index(folder, set_paths(name))
    with pytest.raises(ValueError, match="expected a plain name in its own folder"):
        load_sharded(folder)


def test_an_index_that_leads_to_a_pipe_does_not_wait(tmp_path):
    folder = sharded(tmp_path / "ep0")
    os.mkfifo(folder / "pipe")
    spoil_index(folder, set_paths("pipe"))
    with pytest.raises(ValueError, match="pipe is missing"):
        load_sharded(folder)


def shorten(index):
    for info in index.storage_data.values():
        info.offset += 10**6


def lose_a_part(index):
    for entry in index.state_dict_metadata.values():
        entry.chunks = []


def odd_places(index):
    index.planner_data = dict.fromkeys(index.planner_data, ("state", "model", "x"))
    index.planner_data[list(index.planner_data)[-1]] = ("state", "model", "x", "y")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (shorten, "should hold more of"),
        (lose_a_part, "do not hold all of state.model"),
        (odd_places, "cannot be read"),
    ],
)
def test_an_index_that_promises_more_than_there_is_is_reported(tmp_path, edit, message):
    folder = sharded(tmp_path / "ep0")
    spoil_index(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_sharded(folder)


def test_a_part_with_an_inconsistent_archive_is_reported(tmp_path):
    folder = sharded(tmp_path / "ep0")
    file = folder / "__0_0.distcp"
    index = pickle.loads((folder / ".metadata").read_bytes())
    (place, info), *_ = index.storage_data.items()
    torch.save(torch.ones(100), tmp_path / "t.pt")
    lying = rewritten(
        tmp_path / "t.pt", lambda n, c: (c[:8] if n.endswith("data/0") else c, STORED)
    ).read_bytes()
    start = file.stat().st_size
    with file.open("ab") as target:
        target.write(lying)

    def edit(index):
        index.storage_data[place] = filesystem._StorageInfo(info.relative_path, start, len(lying))

    spoil_index(folder, edit)
    with pytest.raises(ValueError, match="storage 0 has 8 bytes; its tensors need 400"):
        load_sharded(folder)


@pytest.mark.parametrize("name", ["../m.safetensors", "/dev/zero", 5, ""])
def test_an_hf_index_that_leads_out_of_its_folder_is_reported(tmp_path, name):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf", max_shard_size="20KB")
    (tmp_path / "m.safetensors").write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "lm_head.weight": name})
    with pytest.raises(ValueError, match="expected a plain name in its own folder"):
        read_hf(folder)


def test_an_hf_index_that_leads_to_a_pipe_does_not_wait(tmp_path):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf", max_shard_size="20KB")
    shard = next(folder.glob("model-00001-*"))
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-.* are missing"):
        read_hf(folder)


@pytest.mark.parametrize("weight_map", [None, [], "x", {}])
def test_an_hf_index_without_names_is_reported(tmp_path, weight_map):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf", max_shard_size="20KB")
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ValueError, match="has no weight_map"):
        read_hf(folder)


def header(**tensors):
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        header(a=3),
        header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 99999]}),
        header(a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}) + b"x" * 16,
        header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + b"x" * 4,
        header(a={"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}) + b"x" * 16,
        header(a={"dtype": "F4", "shape": [4], "data_offsets": [0, 3]}) + b"x" * 3,
        header(**{"__metadata__": {"format": 3}}),
        b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": [[[[[[[[[[',
    ],
)
def test_hostile_safetensors_headers_are_reported(tmp_path, content):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file \(.+\)"):
        read_hf(folder)
