"""`llmshearing trim_vocabulary`: logits of kept tokens are those of the source; files say the new numbers."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from command_line import status
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.convert import save_hf_to_composer
from llmshearing.commands.trim_vocabulary import trim_vocabulary
from tests.data.test_trimming import TEXT, byte_level
from twins import CONFIGS, make, save

KEEP = 300  # of 352
USED = "The table of units says which kind owns the rows."


@pytest.fixture
def source(tmp_path):
    """A function that makes the twin `name` with a tokenizer, and a folder of text."""

    def make_source(name):
        config = copy.deepcopy(CONFIGS[name])
        config.vocab_size, config.bos_token_id, config.eos_token_id = 448, 0, 1  # padded
        folder = save(make(config), tmp_path / "hf")
        GenerationConfig(bos_token_id=0, eos_token_id=[1, 351]).save_pretrained(folder)
        byte_level().save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "added_tokens_decoder": {str(i): {"content": t} for i, t in enumerate(("<s>", "</s>"))},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.txt").write_text(USED)
        return folder

    return make_source


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama grouped", "llama tied", "gpt_neox"])
def test_logits_of_kept_tokens_and_the_text_are_those_of_the_source(tmp_path, source, name, capsys):
    hf, out = source(name), tmp_path / "out"
    words = [str(hf), str(out), "--data", str(tmp_path / "text"), "--keep", str(KEEP)]
    assert status(["llmshearing", "trim_vocabulary", *words]) == 0
    assert "300 of 352 tokens, 100.000% of those in the text" in capsys.readouterr().out
    old, new = (AutoTokenizer.from_pretrained(path) for path in (hf, out))
    kept = [old.convert_tokens_to_ids(new.convert_ids_to_tokens(i)) for i in range(KEEP)]
    before, after = (tokenizer(USED, return_tensors="pt").input_ids for tokenizer in (old, new))
    assert [kept[i] for i in after[0].tolist()] == before[0].tolist()
    assert new.decode(new(TEXT + "Ünïcode 漢字").input_ids, skip_special_tokens=True) == TEXT + "Ünïcode 漢字"
    ours = AutoModelForCausalLM.from_pretrained(out).eval()
    assert ours.config.vocab_size == KEEP
    logits = AutoModelForCausalLM.from_pretrained(hf).eval()(before).logits
    assert torch.equal(ours(after).logits, logits[..., kept])
    assert (ours.config.bos_token_id, ours.config.eos_token_id) == (0, 1)
    assert ours.generation_config.eos_token_id == [1]  # 351 is gone
    assert 351 not in kept


def test_a_checkpoint_carries_the_new_tokenizer(tmp_path, source):
    save_hf_to_composer(source("llama"), tmp_path / "c.pt")
    trim_vocabulary(tmp_path / "c.pt", tmp_path / "t.pt", data=str(tmp_path / "text"), keep=KEEP)
    made = read_checkpoint(tmp_path / "t.pt")
    assert made.weights["model.transformer.wte.weight"].shape[0] == KEEP
    assert made.hf_config["vocab_size"] == KEEP
    assert len(json.loads(made.hf_files["tokenizer.json"])["model"]["vocab"]) == KEEP


@pytest.mark.parametrize(
    ("change", "keep", "match"),
    [
        (None, 100, "fewer than the 258 special"),
        (None, 500, "nothing would go"),
        ("tokenizer.json", KEEP, "has no tokenizer.json"),
        ("text/a.txt", KEEP, "holds no text"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, source, change, keep, match):
    hf = source("llama")
    if change is not None:
        next(place for place in (hf / change, tmp_path / change) if place.exists()).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        trim_vocabulary(hf, tmp_path / "out", data=str(tmp_path / "text"), keep=keep)
    assert not (tmp_path / "out").exists()
