"""A model in, the same model out, bit for bit; what is broken is refused and leaves nothing behind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from command_line import status_of
from llmshearing.checkpoints import hf_files
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.travelling import read_travelling
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.utils import composer_to_hf, test_composer_hf_eq
from twins import CONFIGS, SIZES, make, masked_checkpoint, save, tokens


def there_and_back(source, tmp_path):
    save_hf_to_composer(source, tmp_path / "c.pt")
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "back")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "back", torch_dtype="auto").eval()


def assert_same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_model(tmp_path, name):
    hf = make(CONFIGS[name])
    back = there_and_back(save(hf, tmp_path / "hf"), tmp_path)
    assert_same(hf, back)
    old, new = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("hf", "back"))
    assert architecture_from_hf(old) == architecture_from_hf(new)
    assert old == new or "rope_parameters" in old  # which is written in the older spelling
    respelt = ("rope_parameters", "layer_types", "max_window_layers", "mamba_n_heads", "mamba_d_head")
    respelt += ("position_embedding_type",) if name == "granitemoehybrid nope" else ()
    assert all(new[key] == value for key, value in old.items() if old == new or key not in respelt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_kept(tmp_path, dtype):
    hf = make(CONFIGS["llama"]).to(dtype)
    assert_same(hf, there_and_back(save(hf, tmp_path / "hf"), tmp_path))


def test_a_config_has_the_type_that_training_gave_the_weights(tmp_path):
    save_hf_to_composer(save(make(CONFIGS["llama"]).bfloat16(), tmp_path / "hf"), tmp_path / "c.pt")
    checkpoint = read_checkpoint(tmp_path / "c.pt")
    trained = {name: weight.float() for name, weight in checkpoint.weights.items()}
    write_checkpoint(tmp_path / "c.pt", trained, checkpoint.record)
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "back")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back", torch_dtype="auto").dtype == torch.float32


@pytest.mark.parametrize(("pad", "pad_id"), [(None, "absent"), ("<end>", 2)])
def test_a_model_from_scratch_gets_the_special_tokens_of_its_tokenizer(tmp_path, pad, pad_id):
    save_hf_to_composer(save(make(CONFIGS["llama"]), tmp_path / "hf"), tmp_path / "c.pt")
    words = Tokenizer(models.WordLevel({"w": 0, "<begin>": 1, "<end>": 2, "<stop>": 3}, unk_token="w"))
    ends = {"bos_token": "<begin>", "eos_token": "<stop>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, **ends)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    record = {"hf_files": read_travelling(tmp_path / "tokenizer"), "config": None}
    write_checkpoint(tmp_path / "c.pt", read_checkpoint(tmp_path / "c.pt").weights, record)
    save_composer_to_hf(
        tmp_path / "c.pt", tmp_path / "back", {"num_attention_heads": SIZES["num_attention_heads"]}
    )
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 3)
    assert config.get("pad_token_id", "absent") == pad_id


@pytest.mark.parametrize("safe", [True, False])
def test_shards_are_read(tmp_path, safe):
    hf = make(CONFIGS["llama"])
    folder = save(hf, tmp_path / "hf", max_shard_size="20kB", safe_serialization=safe)
    assert len(list(folder.glob("*-of-*"))) > 2
    assert_same(hf, there_and_back(folder, tmp_path))


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_files, "SHARD_SIZE", "20kB")
    hf = make(CONFIGS["llama"])
    back = there_and_back(save(hf, tmp_path / "hf"), tmp_path)
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 2
    assert_same(hf, back)


def test_a_single_safetensors_file_is_read_with_the_config_beside_it(tmp_path):
    hf = make(CONFIGS["llama"])
    assert_same(hf, there_and_back(save(hf, tmp_path / "hf") / "model.safetensors", tmp_path))


def test_tensors_of_old_checkpoints_that_are_not_weights_are_skipped(tmp_path):
    hf = make(CONFIGS["llama tied"])
    folder = save(hf, tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert_same(hf, there_and_back(folder, tmp_path))


def test_tokenizer_and_generation_config_travel_and_the_model_generates(tmp_path):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"\x00\xfe\xff")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7}')
    model = there_and_back(folder, tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = back("w5 w17 w90", return_tensors="pt").input_ids
    assert ids.tolist() == [[5, 17, 90]]
    assert model.generate(ids, do_sample=False).shape == (1, 3 + 7)
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == b"\x00\xfe\xff"


# ---------------------------------------------------------------- the commands


def test_the_commands_convert_and_check(tmp_path, monkeypatch, capsys):
    hf, ckpt, back = save(make(CONFIGS["llama"]), tmp_path / "hf"), tmp_path / "c.pt", tmp_path / "back"
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", hf, ckpt) == 0
    sizes = ["hidden_size=32", "num_attention_heads=4", "num_hidden_layers=2", "intermediate_size=56"]
    words = ["model_class=LlamaForCausalLM", *sizes, "num_key_value_heads=4", "_name_or_path=Tiny"]
    assert status_of(monkeypatch, composer_to_hf, "save_composer_to_hf", ckpt, back, *words) == 0
    assert json.loads((back / "config.json").read_text())["_name_or_path"] == "Tiny"
    assert status_of(monkeypatch, test_composer_hf_eq, back, ckpt, "0.025M") == 0
    assert capsys.readouterr().out.endswith("equal\n")


def test_the_check_fails_on_another_model_or_size(tmp_path, monkeypatch, capsys):
    hf = save(make(CONFIGS["llama"]), tmp_path / "hf")
    save_hf_to_composer(hf, tmp_path / "c.pt")
    other = save(make(CONFIGS["llama"]), tmp_path / "other")
    assert status_of(monkeypatch, test_composer_hf_eq, other, tmp_path / "c.pt") == 2
    assert "error: The models are not equal" in capsys.readouterr().err
    assert status_of(monkeypatch, test_composer_hf_eq, hf, tmp_path / "c.pt", "7B") == 2
    assert "SIZE is 7B, but" in capsys.readouterr().err


def test_a_masked_checkpoint_is_not_exported(tmp_path):
    masked_checkpoint(tmp_path / "m.pt", n_layers=1)
    with pytest.raises(ValueError, match=r"llmshearing prune .*m\.pt --hf .*out"):
        save_composer_to_hf(tmp_path / "m.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ broken input


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 missing: model.transformer.ln_f.weight"),
        (
            lambda w: w.update({"model.norm.scale": torch.ones(2)}),
            "a tensor model.norm.scale, which HF models",
        ),
        (lambda w: w.update({"model.norm.weight": torch.ones(31)}), r"expected \(32,\), found \(31,\)"),
        (lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "type other than fp32"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(32).double()}),
            r"ln_f.weight \(torch.float64\)",
        ),
    ],
)
def test_weights_that_do_not_match_the_config_are_rejected(tmp_path, change, message):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        save_hf_to_composer(folder, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_a_shard_missing_from_the_index_is_named(tmp_path):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf", max_shard_size="20kB")
    shard = sorted(folder.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} are missing"):
        save_hf_to_composer(folder, tmp_path / "c.pt")


def test_a_tensor_missing_from_its_shard_is_named(tmp_path):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf", max_shard_size="20kB")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    name, *rest = load_file(shard).items()
    save_file(dict(rest), shard)
    with pytest.raises(ValueError, match=f"names {name[0]} and 0 more tensors that no shard holds"):
        save_hf_to_composer(folder, tmp_path / "c.pt")


def test_a_truncated_safetensors_file_is_rejected(tmp_path):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a safetensors file"):
        save_hf_to_composer(folder, tmp_path / "c.pt")


def test_a_file_beyond_memory_is_not_called_damaged(tmp_path, monkeypatch):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")

    def cannot(*_, **__):
        raise RuntimeError("unable to mmap 27380907834 bytes from file <x>: Cannot allocate memory (12)")

    monkeypatch.setattr(hf_files, "safe_open", cannot)
    with pytest.raises(OSError, match=r"is more than this machine lets a process map .* smaller files"):
        save_hf_to_composer(folder, tmp_path / "c.pt")


def test_a_malicious_pickle_is_rejected_and_not_run(tmp_path):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="nothing of it was run"):
        save_hf_to_composer(folder, tmp_path / "c.pt")
    assert not (tmp_path / "touched").exists()


def test_folders_without_config_or_weights_are_rejected(tmp_path, monkeypatch, capsys):
    folder = save(make(CONFIGS["llama"]), tmp_path / "hf")
    shard = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(shard)
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", folder, tmp_path / "c.pt") == 2
    assert f"has shards such as {shard.name}, but not their index; copy it, too" in capsys.readouterr().err
    shard.unlink()
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", folder, tmp_path / "c.pt") == 2
    assert "has no weights; expected one of model.safetensors" in capsys.readouterr().err
    (folder / "config.json").write_text("{")
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", folder, tmp_path / "c.pt") == 2
    assert "config.json is not JSON" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", folder, tmp_path / "c.pt") == 2
    assert "has no config.json" in capsys.readouterr().err
    (folder / "model.gguf").touch()
    assert status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", folder, tmp_path / "c.pt") == 2
    assert "To convert model.gguf, give that file" in capsys.readouterr().err
    assert (
        status_of(monkeypatch, composer_to_hf, "save_hf_to_composer", tmp_path / "absent", tmp_path / "c.pt")
        == 2
    )
    assert "neither a folder or file nor a model" in capsys.readouterr().err


def test_a_folder_that_holds_anything_is_not_replaced(tmp_path):
    save_hf_to_composer(save(make(CONFIGS["llama"]), tmp_path / "hf"), tmp_path / "c.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for folder in ("mine", "hf"):
        with pytest.raises(FileExistsError, match=rf"{folder} exists and is not empty; choose another"):
            save_composer_to_hf(tmp_path / "c.pt", tmp_path / folder)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "new").mkdir()
    save_composer_to_hf(tmp_path / "c.pt", tmp_path / "new")  # an empty one is taken


@pytest.mark.parametrize("broken", ["safetensors", "checkpoint"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, broken):
    save_hf_to_composer(save(make(CONFIGS["llama"]), tmp_path / "hf"), tmp_path / "c.pt")
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*args, **kwargs):
        (tmp_path / "hf").exists()
        raise OSError(28, "No space left on device")

    if broken == "safetensors":
        monkeypatch.setattr(hf_files, "save_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            save_composer_to_hf(tmp_path / "c.pt", tmp_path / "out")
    else:
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            save_hf_to_composer(tmp_path / "hf", tmp_path / "c.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(tokens(4))
    assert read_checkpoint(tmp_path / "c.pt").weights
