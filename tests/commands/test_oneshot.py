"""`llmshearing oneshot`: exactly the named shape, computing what the masked model does, or nothing at all."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from command_line import status
from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands import oneshot as command_of
from llmshearing.commands import oneshot_methods as module
from llmshearing.commands.equality import load_ours
from llmshearing.commands.oneshot import oneshot
from llmshearing.commands.oneshot_methods import SHAPES, Task
from llmshearing.shapes.units import to_z
from tests.datasets.folders import write_folder
from twins import BY_FAMILY, CONFIGS, make, masked_checkpoint, save, shares_kv_heads, tokens

SIZES = {"d_model": 24, "n_layers": 1, "intermediate_size": 40}
READING = {"samples": 6, "length": 8}


def sizes_for(name):
    config = CONFIGS[name]
    heads = {"n_heads": 2, "n_kv_heads": 1} if shares_kv_heads(name) else {"n_heads": 3}
    if config.model_type == "gpt_neox":
        heads = {"n_heads": 3}
    if config.model_type == "granitemoehybrid":  # heads have no size of their own there
        heads |= {"d_model": 16}
    return SIZES | heads


@pytest.fixture
def data(tmp_path):
    return str(write_folder(tmp_path / "data", 12))


def arguments(method, data):
    return {"method": method, **({"data": data, **READING} if SHAPES[method].reads_data else {})}


SCORED = [name for name in SHAPES if name != "layerchop"]
NAMES = [names[0] for names in BY_FAMILY.values()]
# Every method on multi-head and grouped-query attention and on Pythia, every family with one of them.
CASES = [
    (name, method) for name in (NAMES[0], "llama grouped", "llama tied", "gpt_neox") for method in SCORED
]
CASES += [(name, SCORED[i % len(SCORED)]) for i, name in enumerate(NAMES[1:]) if name != "gpt_neox"]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_result_has_the_named_shape_and_equals_the_masked_model(tmp_path, data, name, method):
    hf = save(make(CONFIGS[name]), tmp_path / "hf")
    sizes = sizes_for(name)
    oneshot(hf, tmp_path / "out", **arguments(method, data), sizes=sizes, scores=str(tmp_path / "s"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hidden_size"] == sizes["d_model"]
    assert config["num_attention_heads"] == sizes["n_heads"]
    checkpoint = read_checkpoint(hf)
    source = describe(checkpoint)[0]
    target = describe(read_checkpoint(tmp_path / "out"))[0]
    assert {key: getattr(target, key) for key in sizes} == sizes
    task = Task(method, checkpoint, source, target, scores=str(tmp_path / "s"))
    gates = SHAPES[method].gates(task)
    assert any(bool((gate == 0).any()) for gate in gates.values())
    ids = tokens(12)
    masked = load_ours(checkpoint)({"input_ids": ids, **to_z(gates)})["logits"]
    load = AutoModelForCausalLM.from_pretrained
    exported = load(tmp_path / "out", attn_implementation="eager").eval()(ids).logits
    torch.testing.assert_close(exported, masked, atol=2e-5, rtol=1e-4)


def test_another_shape_of_kept_scores_reads_no_data_and_equals_computing_anew(tmp_path, data, monkeypatch):
    hf = save(make(CONFIGS["llama grouped"]), tmp_path / "hf")
    kept = str(tmp_path / "kept.safetensors")
    oneshot(hf, tmp_path / "a", **arguments("activation", data), scores=kept, sizes={"d_model": 16})
    oneshot(hf, tmp_path / "b", **arguments("activation", data), sizes={"intermediate_size": 16})
    monkeypatch.setattr(module, "read_samples", None)
    oneshot(hf, tmp_path / "c.pt", method="activation", scores=kept, sizes={"intermediate_size": 16})
    expected, found = read_checkpoint(tmp_path / "b"), read_checkpoint(tmp_path / "c.pt")
    assert all(torch.equal(weight, found.weights[name]) for name, weight in expected.weights.items())
    assert found.hf_config["intermediate_size"] == 16


def test_scores_of_another_model_shape_or_making_are_refused(tmp_path, data, capsys):
    hf = save(make(CONFIGS["llama grouped"]), tmp_path / "hf")
    kept = str(tmp_path / "kept")
    oneshot(hf, tmp_path / "a", **arguments("activation", data), scores=kept, sizes={"d_model": 16})
    for name, match in (
        ("llama grouped", "made from other weights"),
        ("llama", "a different shape: n_kv_heads 2 (the model has 4)"),
    ):
        other = save(make(CONFIGS[name]), tmp_path / name)
        words = [str(other), str(tmp_path / "b"), "--method", "activation", "--scores", kept, "d_model=16"]
        assert status(["llmshearing", "oneshot", *words]) == 2
        assert match in capsys.readouterr().err
    for given, match in (
        ({"method": "random"}, "method is activation in the file and random on the command line"),
        ({"method": "activation", "samples": 5}, "samples is 6 in the file and 5 on the command line"),
        ({"method": "activation", "seed": 3}, "seed is 0 in the file and 3 on the command line"),
    ):
        with pytest.raises(ValueError, match=match) as found:
            oneshot(hf, tmp_path / "b", **given, scores=kept, sizes={"d_model": 16})
        change = "give --method activation; to" if given["method"] == "random" else "them, leave out --"
        assert change in str(found.value)
    (tmp_path / "kept").write_text("scores")
    with pytest.raises(ValueError, match="is not a file of scores"):
        oneshot(hf, tmp_path / "b", method="activation", scores=kept, sizes={"d_model": 16})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"method": "magnitud"}, "did you mean magnitude"),
        ({"method": "magnitude", "data": "x"}, "--data is given, but --method magnitude does not read it"),
        ({"method": "activation"}, "reads calibration data: give --data"),
        ({"method": "random", "pattern": "2:4"}, "--method random removes whole units: leave --pattern out"),
        ({"method": "wanda"}, "--method wanda masks single weights: give --pattern, such as --pattern 2:4"),
        ({"method": "importance"}, "give --method layerchop --scheme importance"),
        ({"method": "magnitude", "sizes": {"d_modl": 16}}, "d_model"),
        ({"method": "magnitude", "sizes": {"d_model": 64}}, "^d_model is 64, more than the source's 32"),
        ({"method": "magnitude", "sizes": {}}, "^The target has the shape of the source: nothing would be"),
        ({"method": "magnitude", "sizes": {"d_model": 0}}, "^d_model is 0; expected at least 1"),
        ({"method": "magnitude", "sizes": {"n_heads": 7}}, "^n_heads is 7, .*: set n_heads=2 or n_heads=4.$"),
        ({"method": "magnitude", "out": "full"}, "exists and is not empty"),
        ({"method": "magnitude", "scheme": "input"}, "--scheme is given, but --method magnitude does not"),
        ({"method": "layerchop"}, "layerchop removes layers alone: leave out d_model"),
        ({"method": "layerchop", "sizes": {"n_layers": 1}}, "n_layers is 1; the first and the last layer"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, given, match):
    hf = save(make(CONFIGS["llama grouped"]), tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    given = {"sizes": {"d_model": 16}, **given}
    with pytest.raises((ValueError, OSError), match=match):
        oneshot(hf, tmp_path / given.pop("out", "out"), **given)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "kept", "match"),
    [
        ("/proc/out", "kept", "/proc is a folder where this process"),
        ("/proc/out.pt", None, "/proc is a folder where this process"),
        ("out", "/proc/kept", "/proc is a folder where this process"),
        (
            "out",
            "folder",
            r"folder is a folder; expected a file of scores, such as .*/folder/scores\.safetensors",
        ),
        ("out.pt", "out.pt", "needs two places. Name a file of scores outside of OUT"),
        ("out", "out/../out", "needs two places"),
        ("out", "out/kept", "needs two places"),
        ("kept/out", "kept", "needs two places"),
    ],
)
def test_places_that_cannot_be_written_are_found_before_the_model_is_read(
    tmp_path, monkeypatch, out, kept, match
):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(command_of, "read_model", None)
    with pytest.raises((ValueError, OSError), match=match):
        oneshot(
            tmp_path / "hf",
            tmp_path / out,
            method="activation",
            data="text",
            scores=kept and str(tmp_path / kept),
        )
    assert [each.name for each in tmp_path.rglob("*")] == ["folder"]


def test_masks_that_are_not_applied_are_refused(tmp_path):
    masked = masked_checkpoint(tmp_path / "m.pt", "llama", d_model=16)
    with pytest.raises(ValueError, match="`llmshearing prune"):
        oneshot(masked, tmp_path / "out", method="magnitude", sizes={"d_model": 16})


def test_whole_layers_by_a_scheme_or_by_importance(tmp_path, data, capsys):
    config = copy.deepcopy(CONFIGS["llama grouped"])
    config.num_hidden_layers = 5
    hf, kept = save(make(config), tmp_path / "hf"), str(tmp_path / "kept")
    oneshot(hf, tmp_path / "a", **arguments("activation", data), scores=kept, sizes={"n_layers": 3})
    oneshot(hf, tmp_path / "b", method="layerchop", scheme="importance", scores=kept, sizes={"n_layers": 3})
    words = ["--method", "layerchop", "--scheme", "input", "n_layers=3"]
    capsys.readouterr()
    assert status(["llmshearing", "oneshot", str(hf), str(tmp_path / "c"), *words]) == 0
    assert "layers  0, 3, 4 stay\n" in capsys.readouterr().out
    source = read_checkpoint(hf).weights
    last = "model.transformer.blocks.{}.mlp.up_proj.weight"
    for name, layers in (("b", None), ("c", [0, 3, 4])):
        found = read_checkpoint(tmp_path / name).weights
        stay = [
            next(i for i in range(5) if torch.equal(source[last.format(i)], found[last.format(j)]))
            for j in range(3)
        ]
        assert stay == layers or (layers is None and stay[0] == 0 and stay[-1] == 4)
    for given, match in (
        ({"scheme": "importance"}, "scheme is importance, which is read from a file: give scores"),
        ({"scores": kept}, "scores is given, but nothing here goes by importance"),
        ({"scheme": "inptu"}, "did you mean input"),
    ):
        with pytest.raises(ValueError, match=match):
            oneshot(hf, tmp_path / "d", method="layerchop", sizes={"n_layers": 3}, **given)


@pytest.mark.parametrize("method", SCORED)
def test_importance_is_read_from_scores_that_say_how_much_a_layer_changes_its_input(tmp_path, data, method):
    config = copy.deepcopy(CONFIGS["llama grouped"])
    config.num_hidden_layers = 3
    hf, kept = save(make(config), tmp_path / "hf"), str(tmp_path / "kept")
    oneshot(hf, tmp_path / "a", **arguments(method, data), scores=kept, sizes={"d_model": 16})
    given = {"method": "layerchop", "scheme": "importance", "scores": kept, "sizes": {"n_layers": 2}}
    if SHAPES[method].reads_data:
        oneshot(hf, tmp_path / "b", **given)
        return
    with pytest.raises(ValueError, match=f"scores by '{method}'; expected scores by activation or taylor"):
        oneshot(hf, tmp_path / "b", **given)
    assert not (tmp_path / "b").exists()
