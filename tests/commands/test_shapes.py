"""`llmshearing shapes`: a section to paste, or a refusal that names the nearest."""

import pytest
from transformers import LlamaConfig
from yaml import safe_load

from command_line import status
from llmshearing.commands import shapes as module
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.pruning import aim_of
from llmshearing.shapes.hf_config import architecture_from_hf
from llmshearing.shapes.model_section import complete
from twins import make, save

CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=1024,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(save(make(CONFIG), tmp_path_factory.mktemp("source") / "hf"))


def test_the_section_that_it_prints_is_one_that_a_run_takes(source, capsys):
    assert status(["llmshearing", "shapes", source, "--parameters", "4M"]) == 0
    said = capsys.readouterr().out
    assert "two rounds" in said
    target = safe_load(said[said.index("target_model:") :])["target_model"]
    section = L0Config(target_model=TargetConfig(**target))
    arch = architecture_from_hf(CONFIG.to_dict())
    aim = aim_of(complete(ModelConfig(l0_module=section), arch, "hf"), arch)
    assert aim is not None
    assert not aim.problems


def test_a_shape_faster_than_asked_is_listed(source, capsys):
    assert status(["llmshearing", "shapes", source, "--speed", "4x"]) == 0
    first = capsys.readouterr().out.splitlines()[2]
    assert float(first.split()[-2].removesuffix("x")) >= 4


def test_speeds_can_be_measured(source, capsys, monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 1)
    words = ["--speed", "1.5x", "--context", "16", "--batch", "2", "--measure"]
    assert status(["llmshearing", "shapes", source, *words]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.endswith("generates (measured)  reads (measured)")
    assert first.split()[-2:] == ["1.00x", "1.00x"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "Give one of --parameters, --memory and --speed; found none"),
        (["--parameters", "4M", "--speed", "2x"], "found --parameters, --speed"),
        (["--parameters", "many"], "expected a number such as"),
        (["--parameters", "1G"], "expected a number such as"),
        (["--parameters", "1B"], "which the source already meets: it has 9,"),
        (["--memory", "8"], "expected bytes such as 8GiB"),
        (["--speed", "0.5x"], "expected how many times the source's"),
        (["--speed", "2x", "--context", "0"], "--context is 0"),
        (["--parameters", "1000"], "The nearest is d_model=128 n_heads="),
        (["--parameters", "1000"], "with 311,936 parameters. Change --parameters"),
        (["--memory", "1MiB"], "with 2.595 MiB of weights and KV cache for 1 x 4096 tokens. Change --memory"),
        (["--speed", "30x"], "with 13.53x the source's speed of generating for 1 x 4096 tokens. Change"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(source, capsys, words, match):
    assert status(["llmshearing", "shapes", source, *words]) == 2
    assert match in capsys.readouterr().err
