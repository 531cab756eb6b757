"""Records of checkpoints that a stranger made: nothing in them is believed unchecked."""

import json
import time

import pytest
import torch
from omegaconf import OmegaConf

from command_line import error_line, status, status_of
from hostile import NAME, checkpoint, edit_json
from llmshearing.checkpoints.describing import describe, run_config
from llmshearing.checkpoints.hf_files import read_hf
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.writing import write_checkpoint
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.commands.equality import load_theirs
from llmshearing.utils import composer_to_hf
from twins import CONFIGS, make, save, tokens

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
        ({"hf_files": {}, "config": "? [a]\n: 1"}, "configuration in .* cannot be read"),
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


WTE, HEAD = "model.transformer.wte.weight", "model.transformer.output.weight"
WQ, UP = (f"model.transformer.blocks.0.{name}.weight" for name in ("attn.wq", "mlp.up_proj"))


def has(key, value):
    """A checkpoint with `value` at a place; `key` may be a weight's name, which has dots."""

    def edit(loaded):
        if key == "callbacks":  # where there is no record at the top
            del loaded["llmshearing"]
            loaded["state"][key] = value
        else:
            loaded["llmshearing"][key] = value

    return edit


def weighs(**weights):
    return lambda loaded: loaded["state"]["model"].update(weights)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (has("callbacks", [1]), "found a list as state.callbacks, expected a mapping"),
        (has("callbacks", torch.ones(3)), "found a Tensor as state.callbacks, expected a mapping"),
        (lambda loaded: loaded.update(llmshearing=torch.ones(3)), "carries a Tensor as its record"),
        (has("hf_files", torch.ones(3)), "carries a Tensor as hf_files"),
        (weighs(**{WQ: torch.tensor(1.0)}), "found shape [] for " + WQ),
        (weighs(**{UP: torch.tensor(1.0)}), "found shape [] for " + UP),
        (weighs(**{WTE: torch.ones(3)}), "found shape [3] for " + WTE),
        (weighs(**{WTE: torch.tensor(1.0)}), "found shape [] for " + WTE),
        (weighs(**{WTE: torch.ones(2, 2, 2)}), "found shape [2, 2, 2] for " + WTE),
        (weighs(**{WTE: 3}), f"found a int named '{WTE}' (str) among the weights"),
        (lambda loaded: loaded["state"]["model"].update({1: torch.ones(2)}), "a Tensor named '1' (int)"),
        (lambda loaded: loaded["state"]["model"].update({("a", 1): torch.ones(2)}), '1)" (tuple)'),
        (lambda loaded: loaded["state"]["model"].update({None: torch.ones(2)}), "'None' (NoneType)"),
        (
            weighs(**dict.fromkeys((WTE, HEAD), torch.ones(1, 1).expand(10**9, 32))),
            f"found 4 bytes for {WTE} of shape [1000000000, 32], expected 128,000,000,000",
        ),
    ],
)
def test_a_checkpoint_of_other_types_ends_in_one_line(tmp_path, monkeypatch, capsys, edit, message):
    loaded = torch.load(checkpoint(tmp_path / "c.pt"), weights_only=False)
    edit(loaded)
    torch.save(loaded, tmp_path / "d.pt")
    words = (tmp_path / "d.pt", tmp_path / "out")
    assert status_of(monkeypatch, composer_to_hf, "save_composer_to_hf", *words) == 2
    line = error_line(capsys)
    assert line.startswith(f"error: {tmp_path / 'd.pt'}")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_heads_are_counted_only_where_there_are_queries(tmp_path):
    weights = dict(read_checkpoint(checkpoint(tmp_path / "c.pt")).weights)
    del weights[WQ]
    torch.save(weights, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"d\.pt has no weight .*wq\.weight"):
        describe(read_checkpoint(tmp_path / "d.pt"), {"num_attention_heads": 4})


def test_pickled_weights_of_an_hf_folder_are_stored_whole(tmp_path):
    folder = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(1).expand(10**9)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: found 4 bytes for model\.norm\.weight"):
        read_hf(folder)


@pytest.mark.parametrize("model_type", [["llama"], {}, 3])
@pytest.mark.parametrize("command", ["convert", "shapes", "export"])
def test_a_model_type_that_is_no_text_is_reported(tmp_path, capsys, model_type, command):
    hf = save(make(CONFIGS[NAME]), tmp_path / "hf")
    edit_json(hf / "config.json", architectures=["X"], model_type=model_type)
    source, rest = hf, [tmp_path / "out"] if command != "shapes" else ["--parameters", "1k"]
    if command == "export":
        source = checkpoint(tmp_path / "c.pt", hf_files={"config.json": (hf / "config.json").read_text()})
    capsys.readouterr()
    assert status(["llmshearing", command, *map(str, (source, *rest))]) == 2
    line = error_line(capsys)
    assert line.startswith(f"error: {source}: config.json: model_type is ")
    assert "expected a text" in line


def damaged(**attributes):
    """A configuration of omegaconf with other attributes, as a pickle can set them."""
    config = OmegaConf.create({"model": {"d_model": 32}})
    vars(config).update(attributes)
    return config


@pytest.mark.parametrize(
    "attributes",
    [{"_content": None}, {"_content": [1]}, {"_content": 5}, {"_content": {"model": 5}}],
)
def test_a_damaged_configuration_of_the_original_is_reported(tmp_path, monkeypatch, capsys, attributes):
    path = checkpoint(tmp_path / "c.pt", hf_files={})
    torch.save(damaged(**attributes), tmp_path / "config.pt")
    assert status_of(monkeypatch, composer_to_hf, "save_composer_to_hf", path, tmp_path / "out") == 2
    line = error_line(capsys)
    assert f"{tmp_path / 'config.pt'} holds an OmegaConf configuration that is damaged" in line
    assert not (tmp_path / "out").exists()


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


def test_a_tokenizer_that_does_not_travel_is_reported(tmp_path, caplog):
    hf = save(make(CONFIGS[NAME]), tmp_path / "hf")
    (hf / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    save_hf_to_composer(hf, tmp_path / "c.pt")
    assert 'tokenizer_class "QWenTokenizer" is code that does not travel' in caplog.text
    assert "transformers will load no tokenizer from the result" in caplog.text


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


# -------------------------------------------------------------- many layers


@pytest.mark.parametrize("where", ["weights", "config", "both"])
def test_200_000_layers_are_reported_before_anything_is_built(tmp_path, where):
    path = checkpoint(tmp_path / "c.pt")
    found = read_checkpoint(path)
    weights, record = dict(found.weights), dict(found.record or {})
    if where != "config":
        tensor = torch.ones(32)
        weights |= {f"model.transformer.blocks.{i}.mlp.down_proj.weight": tensor for i in range(2, 200_000)}
    if where != "weights":
        config = {**CONFIGS["qwen2"].to_dict(), "num_hidden_layers": 10**10}
        record["hf_files"] = {"config.json": json.dumps(config)}
    write_checkpoint(path, weights, record)
    start = time.monotonic()
    too_many = r"(n_layers is 200000|num_hidden_layers is 10000000000).*at most 10000"
    with pytest.raises(ValueError, match=too_many):
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
