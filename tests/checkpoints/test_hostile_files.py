"""Checkpoints and models that a stranger made, or that are damaged: nothing is believed unchecked."""

import json
import os
import pickle
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import filesystem

from command_line import status_of
from llmshearing.checkpoints import hf_files, opening, run_folder
from llmshearing.checkpoints.describing import describe, run_config
from llmshearing.checkpoints.hf_files import from_hf, read_hf
from llmshearing.checkpoints.opening import in_pieces, open_checkpoint, read_checkpoint
from llmshearing.checkpoints.safe_load import load_tensors
from llmshearing.checkpoints.sharded import load_sharded
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.commands.equality import load_ours, load_theirs
from llmshearing.files import replacing
from llmshearing.utils import composer_to_hf
from twins import CONFIGS, make, save, tokens

NAME = "llama grouped"


def checkpoint(path, **record):
    """A checkpoint of a small model whose record has these values."""
    hf = make(CONFIGS[NAME])
    weights, _ = from_hf(hf_files.HFModel("twin", hf.config.to_dict(), dict(hf.state_dict()), {}))
    files = {"config.json": json.dumps(hf.config.to_dict())}
    write_checkpoint(path, weights, {"hf_files": files, "config": None, **record})
    return path


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/absolute", "model.safetensors", "modeling_x.py", "a/config.json", "", "..", 7]
)
def test_a_record_names_known_files_or_is_rejected_before_anything_is_written(tmp_path, name):
    path = checkpoint(tmp_path / "in" / "c.pt", hf_files={"config.json": "{}", name: "x"})
    with pytest.raises(ValueError, match=r"c\.pt carries a file named .* Nothing was written"):
        save_composer_to_hf(path, tmp_path / "in" / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c.pt", "in"]


CONFIG_TEXT = json.dumps(CONFIGS[NAME].to_dict())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"hf_files": ["config.json"]}, "carries a list as hf_files"),
        ({"hf_files": {"config.json": 3}}, "config.json is a int; expected the content of a file"),
        ({"hf_files": {"config.json": "{"}}, "config.json is not JSON"),
        ({"hf_files": {"config.json": "[1]"}}, "config.json holds a list; expected an object"),
        ({"hf_files": {"config.json": "[" * 100_000}}, "config.json is not JSON"),
        ({"hf_files": {"config.json": CONFIG_TEXT, "tokenizer.json": b"\xff"}}, "not text in UTF-8"),
        ({"hf_files": {"config.json": CONFIG_TEXT, "merges.txt": "\ud800"}}, "not text in UTF-8"),
        ({"hf_files": {"config.json": '{"model_type": ["llama"]}'}}, "model_type is "),
        ({"hf_files": {}, "config": {"model": 1}}, "carries a dict as configuration; expected YAML"),
        ({"hf_files": {}, "config": "a: [b"}, "configuration in .* cannot be read"),
        ({"hf_files": {}, "config": "- 1"}, "configuration in .* cannot be read"),
        ({"hf_files": {}, "config": "model: 3"}, "it has no section `model`"),
        ({"hf_files": {}, "config": "model: {d_model: '${nowhere}'}"}, "configuration in .* cannot be read"),
        (
            {"hf_files": {}, "config": "model: {d_model: '${model.d_model}'}"},
            "configuration in .* cannot be read",
        ),
    ],
)
def test_a_hostile_record_ends_in_one_line(tmp_path, monkeypatch, capsys, record, message):
    path = checkpoint(tmp_path / "c.pt", **record)
    assert status_of(monkeypatch, composer_to_hf, "save_composer_to_hf", path, tmp_path / "out") == 2
    with pytest.raises(ValueError, match=message):
        describe(read_checkpoint(path))
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("record", [["x"], "text", 3])
def test_a_record_that_is_not_a_mapping_is_rejected(tmp_path, record):
    weights = read_checkpoint(checkpoint(tmp_path / "c.pt")).weights
    torch.save({"state": {"model": weights}, "llmshearing": record}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="as its record; expected"):
        read_checkpoint(tmp_path / "d.pt")


def test_a_tokenizer_in_a_record_that_is_none_is_reported(tmp_path):
    files = {"tokenizer.json": '{"model": 3}'}
    sizes = "d_model: 32, n_heads: 4, n_kv_heads: 2, n_layers: 2, intermediate_size: 56, vocab_size: 96"
    path = checkpoint(tmp_path / "c.pt", hf_files=files, config=f"model: {{{sizes}, max_seq_len: 64}}")
    run = run_config(read_checkpoint(path))
    assert run is not None
    assert run.n_kv_heads == 2
    with pytest.raises(ValueError, match=r"tokenizer\.json in .* is not a tokenizer"):
        describe(read_checkpoint(path))


# -------------------------------------------------------- pointers to code


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
        ("config.json", {"auto_map": {"AutoConfig": "someone/repo--configuration_x.X"}}),
        ("config.json", {"custom_pipelines": {"chat": {"impl": "pipeline.Chat"}}}),
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        ("generation_config.json", {"custom_generate": "someone/generate"}),
    ],
)
@pytest.mark.parametrize("door", ["folder", "record"])
def test_pointers_to_code_do_not_travel(tmp_path, caplog, file, values, door):
    hf = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (hf / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    edit_json(hf / file, **values)
    key = next(iter(values))
    if door == "folder":
        save_hf_to_composer(hf, tmp_path / "c.pt")
    else:
        files = {path.name: path.read_text() for path in hf.glob("*.json")}
        checkpoint(tmp_path / "c.pt", hf_files=files)
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "out")
    assert key not in json.loads((tmp_path / "out" / file).read_text())
    assert f"{file}: {key} (" in caplog.text
    assert "does not travel" in caplog.text
    ids = tokens(8)
    assert torch.isfinite(load_theirs(tmp_path / "out")(ids).logits).all()


def test_classes_that_transformers_lacks_are_replaced_by_its_own(tmp_path, caplog):
    hf = save(make(CONFIGS[NAME]), tmp_path / "hf")
    edit_json(hf / "config.json", architectures=["FlashLlamaForCausalLM"])
    (hf / "tokenizer.json").write_text('{"version": "1.0"}')
    (hf / "tokenizer_config.json").write_text('{"tokenizer_class": "LLaMATokenizer", "eos_token": "é"}')
    save_hf_to_composer(hf, tmp_path / "c.pt")
    files = read_checkpoint(tmp_path / "c.pt").hf_files
    assert json.loads(files["config.json"])["architectures"] == ["LlamaForCausalLM"]
    assert json.loads(files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "eos_token": "é",
    }
    assert "FlashLlamaForCausalLM" in caplog.text


def test_files_without_pointers_travel_byte_for_byte(tmp_path):
    hf = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (hf / "generation_config.json").write_text('{ "max_new_tokens":7,\n\n"x": "é" }')
    assert read_hf(hf).files["generation_config.json"] == '{ "max_new_tokens":7,\n\n"x": "é" }'


# ----------------------------------------------------------- weights twice


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shards", [True, False])
def test_one_file_is_read_before_an_old_index_as_transformers_does(tmp_path, caplog, safe, shards):
    old, new = make(CONFIGS[NAME]), make(CONFIGS[NAME])
    folder = save(old, tmp_path / "m", max_shard_size="20KB", safe_serialization=safe)
    for shard in folder.glob("*-of-*"):
        if not shards:
            shard.unlink()
    file = "model.safetensors" if safe else "pytorch_model.bin"
    (save(new, tmp_path / "n", safe_serialization=safe) / file).rename(folder / file)
    found = load_ours(open_checkpoint(folder))({"input_ids": (ids := tokens(20))})["logits"]
    assert (found - new(ids).logits).abs().max() < 1e-4
    assert f"{file} is read, as in transformers, and {file}.index.json is not" in caplog.text


def test_safetensors_are_read_before_pickles_and_both_are_named(tmp_path, caplog):
    old, new = make(CONFIGS[NAME]), make(CONFIGS[NAME])
    folder = save(new, tmp_path / "m")
    save(old, tmp_path / "o", safe_serialization=False)
    (tmp_path / "o" / "pytorch_model.bin").rename(folder / "pytorch_model.bin")
    assert torch.equal(read_hf(folder).weights["lm_head.weight"], new.state_dict()["lm_head.weight"])
    assert "model.safetensors is read, as in transformers, and pytorch_model.bin is not" in caplog.text


def test_a_folder_with_weights_once_gives_no_warning(tmp_path, caplog):
    read_hf(save(make(CONFIGS[NAME]), tmp_path / "m", max_shard_size="20KB"))
    assert "more than once" not in caplog.text


def test_a_tensor_comes_from_the_shard_that_the_index_names(tmp_path):
    hf = make(CONFIGS[NAME])
    folder = save(hf, tmp_path / "m", max_shard_size="20KB")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.norm.weight"
    other = folder / next(
        file for file in sorted(weight_map.values(), reverse=True) if file != weight_map[name]
    )
    for shard in {*folder.glob("*-of-*"), other} - {folder / weight_map[name]}:
        save_file({**load_file(shard), name: torch.zeros(32)}, shard, metadata={"format": "pt"})
    assert torch.equal(read_hf(folder).weights[name], hf.state_dict()[name])


@pytest.mark.parametrize("safe", [True, False])
def test_a_hub_model_is_downloaded_with_the_weights_that_it_has(tmp_path, monkeypatch, safe):
    from huggingface_hub.utils import filter_repo_objects

    repo = save(make(CONFIGS[NAME]), tmp_path / "repo", safe_serialization=safe, max_shard_size="20KB")
    for extra in ("training_args.bin", "optimizer.bin", "adapter_model.safetensors", "modeling_x.py"):
        (repo / extra).write_bytes(b"x")
    asked = []

    def snapshot(name, allow_patterns):
        folder = tmp_path / f"cache{len(asked)}"
        folder.mkdir()
        asked.append(
            list(filter_repo_objects([p.name for p in repo.iterdir()], allow_patterns=allow_patterns))
        )
        for file in asked[-1]:
            (folder / file).write_bytes((repo / file).read_bytes())
        return str(folder)

    monkeypatch.setattr(hf_files, "snapshot_download", snapshot)
    save_hf_to_composer("org/model", tmp_path / "c.pt")
    assert len(asked) == (1 if safe else 2)
    assert not {"training_args.bin", "optimizer.bin", "modeling_x.py"} & {
        file for files in asked for file in files
    }


# ------------------------------------------------------------- output head


def tied_with_head(tmp_path, head=None, safe=True):
    hf = make(CONFIGS[NAME])
    if head is not None:
        hf.lm_head.weight.data = head(hf)
    folder = save(hf, tmp_path / "hf", safe_serialization=safe)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return hf, folder


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
def test_another_head_under_a_tied_config_is_reported_and_kept_on_request(tmp_path, caplog, safe):
    hf, folder = tied_with_head(tmp_path, safe=safe)
    save_hf_to_composer(folder, tmp_path / "tied.pt")
    assert "output head that differs from the embedding" in caplog.text
    assert "--untie" in caplog.text
    save_hf_to_composer(folder, tmp_path / "c.pt", untie=True)
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "out")
    ids = tokens(20)
    for found in (
        load_ours(read_checkpoint(tmp_path / "c.pt"))({"input_ids": ids})["logits"],
        load_theirs(tmp_path / "out")(ids).logits,
    ):
        assert (found - hf(ids).logits).abs().max() < 1e-4


def test_a_head_equal_to_the_tied_embedding_is_skipped_silently(tmp_path, caplog):
    _, folder = tied_with_head(tmp_path, lambda hf: hf.model.embed_tokens.weight.clone())
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].double()
    save_file(weights, folder / "model.safetensors")
    from_hf(read_hf(folder))
    assert "output head" not in caplog.text


@pytest.mark.parametrize(("name", "message"), [(NAME, "is not tied"), ("llama tied", "has no output head")])
def test_nothing_to_untie_is_an_error(tmp_path, name, message):
    folder = save(make(CONFIGS[name]), tmp_path / "hf")
    with pytest.raises(ValueError, match=f"{message}.*remove --untie"):
        save_hf_to_composer(folder, tmp_path / "c.pt", untie=True)


# ------------------------------------------------------------ quantization


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}},
        {"quant_method": "gptq", "bits": 4},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_quantization_config_left_over_is_dropped(tmp_path, caplog, config, dtype):
    folder = save(make(CONFIGS[NAME]).to(dtype), tmp_path / "hf")
    edit_json(folder / "config.json", quantization_config=config)
    save_hf_to_composer(folder, tmp_path / "c.pt")
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert "is obsolete and is dropped" in caplog.text
    load_theirs(folder)  # the check is not misled by it either


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.zeros(4, 4, dtype=torch.int32)),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(1)),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(56, 32).to(torch.float8_e4m3fn)),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(896, 1, dtype=torch.uint8)),
    ],
)
def test_quantized_weights_are_named(tmp_path, name, tensor):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf")
    edit_json(folder / "config.json", quantization_config={"quant_method": "x"})
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: tensor}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"is quantized: its {name} is torch\..*quant_method"):
        read_hf(folder)


# ------------------------------------------------------------ shared memory


@pytest.mark.parametrize("share", ["whole", "part", "transposed"])
def test_tensors_that_share_memory_are_written_each_its_own_copy(tmp_path, share):
    hf = make(CONFIGS["llama"])
    state = hf.state_dict()
    table = state["model.embed_tokens.weight"]
    if share == "whole":
        state["lm_head.weight"] = table
    elif share == "part":
        state["model.norm.weight"] = table[0]
    else:
        square = state["model.layers.0.self_attn.q_proj.weight"]
        state["model.layers.0.self_attn.k_proj.weight"] = square.T
    hf.config.save_pretrained(tmp_path / "hf")
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    save_hf_to_composer(tmp_path / "hf", tmp_path / "c.pt")
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("text", ["", "\n", "\n  \nSome tensors share memory"])
def test_no_message_is_empty(tmp_path, text):
    with pytest.raises(OSError, match=r"Writing .*x failed: (RuntimeError|Some tensors share memory)\."):  # noqa: SIM117
        with replacing(tmp_path / "x"):
            raise RuntimeError(text)


# ------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_named_at_conversion(tmp_path, value, dtype):
    hf = make(CONFIGS[NAME]).to(dtype)
    hf.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    folder = save(hf, tmp_path / "hf")
    message = r"NaN or infinite.*1 affected: model.*blocks\.1\.mlp\.up_proj\.weight \(1 of 1,792\)"
    with pytest.raises(ValueError, match=message):
        save_hf_to_composer(folder, tmp_path / "c.pt")
    weights, _ = from_hf(read_hf(folder))
    write_checkpoint(tmp_path / "d.pt", weights, {"hf_files": read_hf(folder).files, "config": None})
    with pytest.raises(ValueError, match=message):
        save_composer_to_hf(tmp_path / "d.pt", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "d.pt"}


def test_large_numbers_are_finite(tmp_path):
    hf = make(CONFIGS[NAME]).to(torch.bfloat16)
    hf.model.embed_tokens.weight.data.fill_(3e38)
    save_hf_to_composer(save(hf, tmp_path / "hf"), tmp_path / "c.pt")


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
    torch.save({"a": torch.ones(1000), "b": torch.full((1000,), 7.0)}, tmp_path / "c.pt")
    content = bytearray((tmp_path / "c.pt").read_bytes())
    name = b"/data/0"
    entry = content.rindex(name) - content[: content.rindex(name)][::-1].index(b"\x02\x01KP"[::1]) - 4
    for at in (20, 24):  # sizes in the directory
        content[entry + at : entry + at + 4] = (4000 + 3000).to_bytes(4, "little")
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"overlaps what follows it|has 7,000 bytes"):
        load_tensors(tmp_path / "c.pt")


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
        header(a={"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}) + b"x" * 2,
        header(**{"__metadata__": {"format": 3}}),
        b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": [[[[[[[[[[',
    ],
)
def test_hostile_safetensors_headers_are_reported(tmp_path, content):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file \(.+\)"):
        read_hf(folder)


# -------------------------------------------------------------- many layers


@pytest.mark.parametrize("where", ["weights", "config", "both"])
def test_200_000_layers_are_reported_before_anything_is_built(tmp_path, where):
    path = checkpoint(tmp_path / "c.pt")
    found = read_checkpoint(path)
    weights, record = dict(found.weights), dict(found.record or {})
    if where != "config":
        tensor = torch.ones(32)
        weights |= {f"model.transformer.blocks.{i}.ln_1.weight": tensor for i in range(2, 200_000)}
    if where != "weights":
        config = {**CONFIGS["qwen2"].to_dict(), "num_hidden_layers": 10**10}
        record["hf_files"] = {"config.json": json.dumps(config)}
    write_checkpoint(path, weights, record)
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"(n_layers is 200000|num_hidden_layers is 10000000000).*at most 10000"
    ):
        describe(read_checkpoint(path))
    assert time.monotonic() - start < 60  # minutes and gigabytes, were they built


def test_tensors_without_numbers_are_no_weights(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path / "c.pt"))
    name = "model.transformer.ln_f.weight"
    write_checkpoint(
        tmp_path / "d.pt", {**found.weights, name: torch.ones(32, device="meta")}, found.record or {}
    )
    with pytest.raises(ValueError, match=rf"not a dense tensor in memory: {name}"):
        describe(read_checkpoint(tmp_path / "d.pt"))


# ------------------------------------------------- read from what was checked


def run_with(folder, *steps):
    """Checkpoints of a run, each with its manifest, the link pointing to the first."""
    for step in steps:
        path = checkpoint(folder / f"ep0-ba{step}-rank0.pt")
        manifest = {"step": step, "written": step, "files": {path.name: run_folder.describe_file(path)}}
        (folder / f"{path.name}.json").write_text(json.dumps(manifest))
    (folder / run_folder.LATEST).symlink_to(f"ep0-ba{steps[0]}-rank0.pt")


def move_link(folder, step):
    (folder / "new").symlink_to(f"ep0-ba{step}-rank0.pt")
    (folder / "new").rename(folder / run_folder.LATEST)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_a_link_that_moves_meanwhile_is_followed_once(tmp_path, monkeypatch):
    run_with(tmp_path, 2, 4)
    first = load_tensors(tmp_path / "ep0-ba2-rank0.pt")["state"]["model"]
    damage = run_folder.damage

    def moving(*args):
        found = damage(*args)
        move_link(tmp_path, 4)  # a save ends between the comparison and the reading
        return found

    monkeypatch.setattr(run_folder, "damage", moving)
    found = read_checkpoint(tmp_path / run_folder.LATEST)
    assert same(found.weights, first)
    pieces = {}
    for piece in in_pieces(found, size=4000):
        pieces |= piece
    assert same(pieces, first)


def test_a_link_that_moves_between_pieces_mixes_nothing(tmp_path):
    run_with(tmp_path, 2, 4)
    first = load_tensors(tmp_path / "ep0-ba2-rank0.pt")["state"]["model"]
    found = read_checkpoint(tmp_path / run_folder.LATEST)
    pieces = {}
    for piece in in_pieces(found, size=4000):
        pieces |= piece
        if (tmp_path / run_folder.LATEST).resolve().name == "ep0-ba2-rank0.pt":
            move_link(tmp_path, 4)
    assert same(pieces, first)


def test_a_file_that_is_replaced_between_pieces_is_reported(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path / "c.pt"))
    with pytest.raises(ValueError, match=r"c\.pt was replaced or written to while it was read"):  # noqa: PT012
        for _ in in_pieces(found, size=4000):
            checkpoint(tmp_path / "c.pt")


def test_a_file_that_is_replaced_after_the_comparison_is_reported(tmp_path, monkeypatch):
    run_with(tmp_path, 2)
    open_once = opening.open_checkpoint

    def replaced(path):
        (tmp_path / "other.pt").write_bytes(checkpoint(tmp_path / "x.pt").read_bytes())
        (tmp_path / "other.pt").rename(path)
        return open_once(path)

    monkeypatch.setattr(opening, "open_checkpoint", replaced)
    with pytest.raises(ValueError, match="was replaced or written to while it was read"):
        read_checkpoint(tmp_path / "ep0-ba2-rank0.pt")
