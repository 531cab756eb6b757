"""Checkpoints of every kind are read, described and loaded; everything else is refused by name."""

import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from composer import Trainer
from composer.optim import DecoupledAdamW
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from llmshearing.callbacks.run_record import RunRecord
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.hf_files import from_hf, read_hf
from llmshearing.checkpoints.opening import Checkpoint, in_pieces, read_checkpoint
from llmshearing.checkpoints.run_folder import LATEST
from llmshearing.checkpoints.sharded import load_sharded
from llmshearing.checkpoints.writing import load_weights, write_checkpoint
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.shapes.model_section import complete
from twins import CONFIGS, make, masked_checkpoint, save

SECTION = {
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
    "max_seq_len": 16,
}
RECORD = {"hf_files": {"config.json": "{}", "tokenizer.model": b"\x00\xff"}, "config": "run_name: a"}


def weights_of(section=SECTION):
    return ComposerMosaicLlama(section).state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Evil:
    """Touches a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# -------------------------------------------------------------------- reading


def test_a_training_checkpoint_of_composer_is_read_with_its_record(tmp_path):
    section = {**SECTION, "l0_module": {"target_model": {"intermediate_size": 12}}, "set_names": ["a"]}
    model = ComposerMosaicLlama(section)
    batch = {
        "input_ids": torch.randint(0, 32, (16,)),
        "labels": torch.randint(0, 32, (16,)),
        "set": torch.tensor(0),
    }
    loader = DataLoader([batch] * 4, batch_size=2)  # type: ignore[arg-type]
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        eval_dataloader=loader,
        eval_interval="1ba",
        max_duration="2ba",
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-3),
        callbacks=[RunRecord(RECORD)],
        save_folder=str(tmp_path),
        save_interval="2ba",
        save_metrics=True,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    found = read_checkpoint(tmp_path / "latest-rank0.pt")
    assert equal(found.weights, model.state_dict())
    assert found.record == RECORD
    assert "masks.intermediate.z_loga" in found.method_tensors


def test_a_written_checkpoint_is_read_as_it_was(tmp_path):
    weights = {name: weight.bfloat16() for name, weight in weights_of().items()}
    write_checkpoint(tmp_path / "a" / "c.pt", weights, RECORD)
    found = read_checkpoint(tmp_path / "a" / "c.pt")
    assert equal(found.weights, weights)
    assert found.record == RECORD
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c.pt"]


def test_a_checkpoint_comes_whole_in_pieces(tmp_path):
    write_checkpoint(tmp_path / "c.pt", weights_of(), {})
    checkpoint = read_checkpoint(tmp_path / "c.pt")
    pieces = list(in_pieces(checkpoint, size=4000))
    largest = max(weight.nbytes for weight in checkpoint.weights.values())
    assert len(pieces) > 2
    assert all(sum(w.nbytes for w in piece.values()) < 4000 + largest for piece in pieces)
    assert equal({name: w for piece in pieces for name, w in piece.items()}, checkpoint.weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_is_read(tmp_path, zipped):
    torch.save(weights_of(), tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "c.pt")
    assert found.weights.keys() == weights_of().keys()
    assert found.record is None


def test_an_hf_folder_is_read(tmp_path):
    hf = make(CONFIGS["qwen2"])
    found = read_checkpoint(save(hf, tmp_path / "hf"))
    assert torch.equal(
        found.weights["model.transformer.wte.weight"], hf.state_dict()["model.embed_tokens.weight"]
    )
    assert describe(found)[0] == architecture_from_hf(CONFIGS["qwen2"].to_dict())


def sharded(folder, weights, extra=None):
    state = {"model": dict(weights), "callbacks": {"RunRecord": RECORD}, **(extra or {})}
    dcp.save({"state": state}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_is_read_by_one_process(tmp_path):
    found = read_checkpoint(sharded(tmp_path / "ep0", weights_of(), {"optimizers": {"a": torch.ones(3)}}))
    assert equal({n: w.float() for n, w in found.weights.items()}, found.weights)
    assert found.weights.keys() == weights_of().keys()
    assert found.record == RECORD


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_is_not_read_into_tensors_of_a_different_shape(tmp_path):
    folder = sharded(tmp_path / "ep0", weights_of())
    like = {name: torch.zeros_like(weight) for name, weight in weights_of().items()}
    read = load_sharded(folder, like={"state": {"model": like}})["state"]["model"]
    assert read["model.transformer.ln_f.weight"] is like["model.transformer.ln_f.weight"]
    assert (like["model.transformer.ln_f.weight"] == 1).all()
    like["model.transformer.ln_f.weight"] = torch.ones(15)
    with pytest.raises(ValueError, match=r"state\.model\.\S+ has shape \[16\], not \[15\]"):
        load_sharded(folder, like={"state": {"model": like}})


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_holds_more_than_tensors_is_rejected_and_not_run(tmp_path, zipped):
    content = {"state": {"model": weights_of()}, "more": Evil(tmp_path / "touched")}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"c\.pt holds (_io|io)\.open, more than tensors.*nothing of it was run"
    ):
        read_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_malicious_index_of_a_sharded_checkpoint_is_rejected_and_not_run(tmp_path):
    folder = sharded(tmp_path / "ep0", weights_of())
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "touched")))
    with pytest.raises(
        ValueError, match=r"nothing of it was run\. Its \.metadata holds (_io|io)\.open, which no index has"
    ):
        read_checkpoint(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_malicious_value_of_a_sharded_checkpoint_is_rejected_and_not_run(tmp_path):
    folder = tmp_path / "ep0"
    state = {"model": weights_of(), "callbacks": {"RunRecord": {"config": Evil(tmp_path / "touched")}}}
    dcp.save({"state": state}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(
        ValueError,
        match=r"ep0 cannot be read: it holds more than tensors and plain values; nothing of it was run",
    ):
        read_checkpoint(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    folder = sharded(tmp_path / "ep0", weights_of())
    shard = next(folder.glob("*.distcp"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="a shard is missing or truncated"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x02]q\x00.", b"PK\x03\x04" + b"\x00" * 60])
def test_what_is_not_a_checkpoint_is_rejected(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.pt.*(cannot be read as a checkpoint|expected a checkpoint)"):
        read_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_rejected(tmp_path, part):
    write_checkpoint(tmp_path / "c.pt", weights_of(), {})
    content = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"truncated, or was not written by torch\.save"):
        read_checkpoint(tmp_path / "c.pt")


def test_a_file_or_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pt"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor \.metadata; expected a"):
        read_checkpoint(tmp_path)
    (tmp_path / LATEST).touch()
    with pytest.raises(FileNotFoundError, match=r"; use the run's .*/latest-rank0\.pt"):
        read_checkpoint(tmp_path)
    torch.save({"state": {"model": {"lm_head.weight": torch.ones(2)}}}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"wte\.weight is expected; found lm_head\.weight"):
        read_checkpoint(tmp_path / "c.pt")


# ----------------------------------------------------------- what model it is


def bare(tmp_path, name="llama") -> Checkpoint:
    """Weights that nothing describes."""
    weights, _ = from_hf(read_hf(save(make(CONFIGS[name]), tmp_path / "hf")))
    (tmp_path / "alone").mkdir()
    torch.save(weights, tmp_path / "alone" / "c.pt")
    return read_checkpoint(tmp_path / "alone" / "c.pt")


def test_weights_alone_need_the_number_of_heads_and_are_then_llama_2(tmp_path):
    checkpoint = bare(tmp_path)
    with pytest.raises(ValueError, match=r"does not say how many heads its model has.*num_attention_heads="):
        describe(checkpoint)[0]
    arch = describe(
        checkpoint, {"num_attention_heads": 4, "model_class": "LlamaForCausalLM", "hidden_size": 32}
    )[0]
    assert (arch.family, arch.head_dim, arch.max_seq_len, arch.norm_eps) == ("llama", 8, 4096, 1e-5)
    assert (arch.n_layers, arch.intermediate_size, arch.vocab_size) == (2, 56, 96)


# Mistral's weights are those of a Llama model.
@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if CONFIGS[name].model_type in ("llama", "qwen2", "qwen3", "gpt_neox")]
)
def test_weights_alone_tell_their_family_and_options(tmp_path, name):
    expected = architecture_from_hf(CONFIGS[name].to_dict())
    found = describe(bare(tmp_path, name), {"num_attention_heads": 4})[0]
    names = (
        "family",
        "head_dim",
        "n_kv_heads",
        "qkv_bias",
        "out_bias",
        "mlp_bias",
        "qk_norm",
        "tie_embeddings",
    )
    assert [getattr(found, n) for n in names] == [getattr(expected, n) for n in names]


def test_weights_alone_do_not_tell_what_a_family_with_more_to_say_computes(tmp_path):
    with pytest.raises(ValueError, match="its weights do not tell all that a model of family granite needs"):
        describe(bare(tmp_path, "granite"), {"num_attention_heads": 4, "model_class": "GraniteForCausalLM"})


def test_fewer_layers_than_a_config_of_unlike_layers_describes_are_rejected(tmp_path):
    checkpoint = bare(tmp_path, "qwen3 windows")
    kept = {name: w for name, w in checkpoint.weights.items() if "blocks.2." not in name}
    record = {"hf_files": {"config.json": CONFIGS["qwen3 windows"].to_json_string(use_diff=False)}}
    write_checkpoint(tmp_path / "fewer.pt", kept, record)
    with pytest.raises(
        ValueError, match="weights of 2 layers, but its config describes 3 layers that differ"
    ):
        describe(read_checkpoint(tmp_path / "fewer.pt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 64}, "hidden_size=64 was given, but the weights of .* have 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3 was given, but the weights of .* have 2"),
        ({"hiden_size": 32}, r"hiden_size is not a key of the HF config; did you mean hidden_size\?"),
        (
            {"model_class": "MixtralForCausalLM"},
            "model class MixtralForCausalLM is not supported; supported: Llama",
        ),
        ({"num_attention_heads": 7}, "heads of size 4 do not divide|of the wrong shape|was given, but"),
    ],
)
def test_arguments_that_contradict_the_weights_are_rejected(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        describe(bare(tmp_path), {"num_attention_heads": 4, **given})[0]


def original_config(**model):
    section = {"name": "mosaic_llama2_7b", **model, "rms_norm_eps": 3e-5, "max_seq_len": "${max_seq_len}"}
    return OmegaConf.create({"max_seq_len": 128, "model": section})


@pytest.mark.parametrize("file", ["config.pt", "config.yaml"])
def test_a_configuration_beside_the_checkpoint_describes_it(tmp_path, file):
    checkpoint = bare(tmp_path)
    config = original_config(d_model=64, n_heads=8, n_layers=9, intermediate_size=99, vocab_size=96)
    path = tmp_path / "alone" / file
    torch.save(config, path) if file == "config.pt" else OmegaConf.save(config, path)
    arch = describe(checkpoint)[0]  # sizes from the weights, as after pruning; the head size stays
    assert (arch.head_dim, arch.n_heads, arch.n_layers, arch.norm_eps, arch.max_seq_len) == (
        8,
        4,
        2,
        3e-5,
        128,
    )


def test_a_malicious_config_pt_is_rejected_and_not_run(tmp_path):
    checkpoint = bare(tmp_path)
    torch.save({"model": Evil(tmp_path / "touched")}, tmp_path / "alone" / "config.pt")
    with pytest.raises(ValueError, match=r"config\.pt holds (_io|io)\.open"):
        describe(checkpoint)[0]
    assert not (tmp_path / "touched").exists()


# -------------------------------------------------------------------- loading


def model_for(checkpoint, **section):
    return ComposerMosaicLlama(complete(ModelConfig(**section), describe(checkpoint)[0], "W"))


def test_loading_copies_every_weight_and_leaves_fresh_masks(tmp_path):
    checkpoint = read_checkpoint(save(make(CONFIGS["llama"]), tmp_path / "hf"))
    model = model_for(checkpoint, l0_module=L0Config(target_model=TargetConfig(n_layers=1)))
    load_weights(model, checkpoint)
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in checkpoint.weights.items())
    assert (state["model.l0_module.masks.layer.z_loga"] > 4).all()


def test_a_masked_checkpoint_is_not_trained_on_without_its_masks(tmp_path):
    checkpoint = read_checkpoint(masked_checkpoint(tmp_path / "m.pt", n_layers=1))
    with pytest.raises(
        ValueError, match=r"pruning run, whose masks are not applied.*llmshearing prune .*m\.pt"
    ):
        load_weights(model_for(checkpoint), checkpoint)
    model = model_for(checkpoint, l0_module=L0Config(target_model=TargetConfig(n_layers=1)))
    load_weights(model, checkpoint)
    assert equal(model.state_dict(), checkpoint.weights)


def test_masks_of_other_kinds_are_rejected(tmp_path):
    checkpoint = read_checkpoint(masked_checkpoint(tmp_path / "m.pt", n_layers=1))
    model = model_for(checkpoint, l0_module=L0Config(target_model=TargetConfig(d_model=16)))
    with pytest.raises(ValueError, match=r"masks of .*m\.pt do not fit model\.l0_module"):
        load_weights(model, checkpoint)


def test_missing_unexpected_and_misshapen_weights_are_listed(tmp_path):
    checkpoint = read_checkpoint(save(make(CONFIGS["llama"]), tmp_path / "hf"))
    model = model_for(checkpoint)
    prefix = "model.transformer."
    del checkpoint.weights[f"{prefix}ln_f.weight"]
    checkpoint.weights[f"{prefix}extra"] = torch.ones(1)
    checkpoint.weights[f"{prefix}output.weight"] = torch.ones(95, 32)
    checkpoint.weights[f"{prefix}wte.weight"] = torch.ones(96, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match="do not fit the model") as error:
        load_weights(model, checkpoint)
    text = str(error.value)
    assert f"1 missing: {prefix}ln_f.weight." in text
    assert f"1 unexpected: {prefix}extra." in text
    assert f"{prefix}output.weight (expected (96, 32), found (95, 32))" in text
    assert f"{prefix}wte.weight (torch.int8)" in text


def test_a_record_config_that_is_not_the_weights_is_rejected(tmp_path):
    weights, _ = from_hf(read_hf(save(make(CONFIGS["llama biases"]), tmp_path / "hf")))
    config = json.dumps(CONFIGS["llama grouped"].to_dict())
    write_checkpoint(tmp_path / "c.pt", weights, {"hf_files": {"config.json": config}, "config": None})
    with pytest.raises(
        ValueError, match=r"14 unexpected: model\.transformer\.blocks\.0\.mlp\.down_proj\.bias"
    ):
        describe(read_checkpoint(tmp_path / "c.pt"))[0]
