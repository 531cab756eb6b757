"""Folders with weights twice, odd output heads, left-over quantization, shared memory or NaN."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from hostile import NAME, edit_json
from llmshearing.checkpoints import hf_files
from llmshearing.checkpoints.hf_files import from_hf, read_hf
from llmshearing.checkpoints.opening import open_checkpoint, read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.commands.equality import load_ours, load_theirs
from llmshearing.files import replacing
from twins import CONFIGS, make, save, tokens

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


@torch.no_grad()
def test_a_tied_embedding_under_the_name_of_the_head_alone_is_read(tmp_path, caplog):
    """As safetensors' save_model writes tensors that share memory: under the first of their names."""
    hf = make(CONFIGS["llama tied"])
    folder = save(hf, tmp_path / "hf")
    save_model(hf, folder / "model.safetensors")
    assert "model.embed_tokens.weight" not in load_file(folder / "model.safetensors")
    save_hf_to_composer(folder, tmp_path / "c.pt")
    assert "output head" not in caplog.text
    ids = tokens(20)
    ours = load_ours(read_checkpoint(tmp_path / "c.pt"))({"input_ids": ids})["logits"]
    assert (ours - hf(ids).logits).abs().max() < 1e-4


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
        {},
        None,
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
    if config is not None:  # which transformers itself cannot read
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


def test_a_hub_model_that_may_not_be_downloaded_is_said_to_be(monkeypatch):
    monkeypatch.setattr(hf_files.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"not in the local cache, and HF_HUB_OFFLINE=1 forbids"):
        hf_files.download("nobody/nothing")
