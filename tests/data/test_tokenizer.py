"""Tokenizers from every source give transformers' ids, and the right ids around a document."""

import json
import pickle
import shutil

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer

from llmshearing.data.text_tokenizer import check_tokenizer
from llmshearing.data.tokenizer import load_tokenizer
from llmshearing.datasets.manifest import Manifest
from tests.data.texts import documents


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(documents(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "m"),
        vocab_size=120,
        minloglevel=2,
        model_type="bpe",
    )
    return folder / "m.model"


def test_a_folder_gives_the_ids_of_transformers(tokenizer_folder):
    ours, theirs = load_tokenizer(str(tokenizer_folder)), AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = documents(20)
    expected = theirs(texts, add_special_tokens=False).input_ids
    assert [list(ids) for ids in ours.encode(texts)] == expected
    assert (ours.prefix, ours.suffix) == ((theirs.bos_token_id,), (theirs.eos_token_id,)) == ((0,), (1,))
    assert ours.vocab_size == len(theirs) == 502
    assert ours.dtype == "uint16"
    assert ours.decode([0, *expected[0]]).split() == ["<s>", *texts[0].split()]


def test_a_pickled_tokenizer_is_the_same_tokenizer(tokenizer_folder, sentencepiece_model, tmp_path):
    """As workers get it."""
    slow = tmp_path / "slow"
    ByT5Tokenizer().save_pretrained(slow)  # which has no fast version
    texts = documents(5)
    for name in (tokenizer_folder, sentencepiece_model, slow):
        ours = load_tokenizer(str(name))
        theirs = pickle.loads(pickle.dumps(ours))
        expected = [list(ids) for ids in ours.encode(texts)]
        assert [list(ids) for ids in theirs.encode(texts)] == expected
        assert theirs.decode(expected[0]) == ours.decode(expected[0])
        assert (theirs.record, theirs.dtype) == (ours.record, ours.dtype)


@pytest.mark.parametrize(
    ("config", "special_tokens"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, None),  # the class has defaults
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"bos_token": "a", "eos_token": "b"}),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<new>", "eos_token": "b"}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "b"}, None),
        ({"tokenizer_class": "GPT2Tokenizer", "bos_token": None, "eos_token": "b"}, None),
    ],
)
def test_what_stands_around_a_document_is_what_transformers_says(tmp_path, config, special_tokens):
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if special_tokens:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special_tokens))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ends = theirs.bos_token_id, theirs.eos_token_id
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.suffix == ((ends[1],) if ends[1] is not None else ())
    assert loaded.prefix == ((ends[0],) if ends[0] not in (None, ends[1]) else ())


def test_the_ids_are_those_of_transformers_where_its_configuration_changes_the_tokenizer(tmp_path):
    loaded = Tokenizer(models.BPE({"a": 0, "b": 1, "\u0120": 2, "\u0120a": 3}, [("\u0120", "a")]))
    loaded.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    loaded.save(str(tmp_path / "tokenizer.json"))
    added = {"4": {"content": "<x>", "special": True}}
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<pad>"}))
    text = "a<x>b<pad>a"
    (ids,) = load_tokenizer(str(tmp_path)).encode([text])
    assert list(ids) == AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False)
    assert list(ids)[:3] == [0, 4, 1]  # no space before the first, a token of the configuration alone


@pytest.mark.parametrize(
    ("tokenizer_class", "text", "expected"),
    [
        # Digits one by one: SmolLM2's rule. transformers 5 takes the class's rules, without digits.
        ("GPT2Tokenizer", "a 12", [0, 2, 3, 4]),
        # What transformers 5 calls the class without rules of its own.
        ("TokenizersBackend", "a 12<|im_start|>", [0, 2, 3, 4, 6]),
    ],
)
def test_ids_are_those_of_tokenizer_json_whatever_the_class(tmp_path, tokenizer_class, text, expected):
    vocabulary = {"a": 0, "b": 1, "\u0120": 2, "1": 3, "2": 4, "12": 5}
    loaded = Tokenizer(models.BPE(vocabulary, [("1", "2")]))
    loaded.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded.add_special_tokens(["<|im_start|>"])
    loaded.save(str(tmp_path / "tokenizer.json"))
    # As transformers 5 writes it, where 4 expects a mapping.
    config = {"tokenizer_class": tokenizer_class, "backend": "tokenizers", "eos_token": "b"}
    config["extra_special_tokens"] = ["<|im_start|>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(str(tmp_path))
    (ids,) = ours.encode([text])
    assert list(ids) == expected
    assert ours.suffix == (1,)


def test_a_folder_without_a_tokenizer_class_has_none_whatever_its_name(tmp_path):
    """transformers would take it for one of GPT-NeoX, MPT's, which has an EOS, because of its name."""
    folder = tmp_path / "empty"
    folder.mkdir()
    Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    assert load_tokenizer(str(folder)).suffix == ()
    (folder / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    assert load_tokenizer(str(folder)).suffix == (1,)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert load_tokenizer(str(folder)).suffix == (0,)


def with_eos(folder, eos, *others):
    """A tokenizer with BOS <s> and this EOS."""
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(["<s>", eos, *others]))}
    Tokenizer(models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "eos",
    [
        "<|im_end|>",
        "<|eot_id|>",
        "<|eot|>",
        "<|EOT|>",
        "<|eom|>",
        "<eoa>",
        "<eoh>",
        "<end_of_turn>",
        "<|END_OF_TURN_TOKEN|>",
        "[|endofturn|]",
        "<|end_of_role|>",
        "<|role_end|>",
        "<|user|>",
        "<|observation|>",
        "<|return|>",
        "[/INST]",
    ],
)
def test_markers_of_a_chat_are_known(tmp_path, eos):
    found = with_eos(tmp_path, eos, "<EOS_TOKEN>").chat_warning or ""
    assert f"puts {eos} around documents, which mark turns" in found
    assert found.endswith("set --document_separator '<EOS_TOKEN>', which it has")


@pytest.mark.parametrize(
    "eos",
    [
        "</s>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<eos>",
        "<|eod|>",
        "<|END_OF_TEXT|>",
        "[EOS]",
        "<EOD>",
        "im",
    ],
)
def test_separators_of_documents_are_no_markers_of_a_chat(tmp_path, eos):
    assert with_eos(tmp_path, eos).chat_warning is None


def test_a_marker_of_a_chat_that_nobody_chose_is_warned_about_beside_one_that_was(tmp_path):
    loaded = with_eos(tmp_path, "<|im_end|>", "<|im_start|>")
    assert "puts <|im_end|> around" in (loaded.between("<|im_start|>", None).chat_warning or "")
    assert loaded.between(None, "<|im_end|>").chat_warning is None
    assert loaded.between(None, "").chat_warning is None


def test_nothing_of_a_folder_is_run(tmp_path):
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"contains custom code"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_an_empty_vocabulary_is_rejected(tmp_path):
    Tokenizer(models.BPE({}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"its vocabulary is empty"):
        load_tokenizer(str(tmp_path))


def test_the_hash_covers_more_than_the_vocabulary(tmp_path):
    found = set()
    for merges, config in ([], {}), ([("a", "b")], {}), ([], {"eos_token": "a"}):
        Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, merges)).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        found.add(load_tokenizer(str(tmp_path)).sha256)
    assert len(found) == 3


def test_the_hash_of_a_slow_tokenizer_covers_its_rules(tmp_path):
    found = set()
    for lstrip in (False, True):
        ByT5Tokenizer(eos_token=AddedToken("</s>", lstrip=lstrip)).save_pretrained(tmp_path)
        found.add(load_tokenizer(str(tmp_path)).sha256)
    assert len(found) == 2


def test_load_tokenizer_names_the_folder_to_give_for_a_file(tmp_path):
    for name, advice in (
        ("tokenizer.json", "give the folder"),
        ("m.gguf", "convert the model with `llmshearing convert` and `llmshearing export`"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name} is a file: {advice}"):
            load_tokenizer(str(tmp_path / name))


def test_one_token_for_both_ends_stands_after_the_document(tmp_path):
    vocabulary = {"<|endoftext|>": 0, "a": 1}
    Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.prefix, loaded.suffix) == ((), (0,))


def test_ids_that_the_tokenizer_puts_around_a_text_come_once(tmp_path):
    loaded = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    loaded.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    loaded.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    ours = load_tokenizer(str(tmp_path))
    assert ([list(ids) for ids in ours.encode(["a"])], ours.prefix) == ([[1]], (0,))


def test_truncation_stored_in_the_tokenizer_is_not_applied(tmp_path):
    loaded = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    loaded.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded.enable_truncation(3)
    loaded.enable_padding(length=5)
    loaded.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    encode = load_tokenizer(str(tmp_path)).encode
    assert [len(ids) for ids in encode(["a a a a a a a", "a"])] == [7, 1]


def test_merges_are_not_dropped_at_random(tmp_path, caplog):
    loaded = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.9))
    loaded.save(str(tmp_path / "tokenizer.json"))
    assert [list(ids) for ids in load_tokenizer(str(tmp_path)).encode(["abab"] * 50)] == [[2, 2]] * 50
    assert "dropout" in caplog.text


def test_sentencepiece_model(sentencepiece_model):
    loaded = load_tokenizer(str(sentencepiece_model))
    (ids,) = loaded.encode(["w1 w2"])
    assert loaded.decode(list(ids)) == "w1 w2"
    assert (loaded.prefix, loaded.suffix) == ((1,), (2,))
    assert loaded.vocab_size == 120


def test_a_llama_folder_with_a_sentencepiece_model_alone(sentencepiece_model, tmp_path):
    """As the first LLaMA models are shared; transformers converts it, which needs protobuf."""
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load_tokenizer(str(tmp_path)), load_tokenizer(str(sentencepiece_model))
    assert [list(ids) for ids in ours.encode(documents(3))] == [
        list(ids) for ids in theirs.encode(documents(3))
    ]
    assert (ours.prefix, ours.suffix) == (theirs.prefix, theirs.suffix)


def test_large_vocabularies_take_four_bytes(tmp_path):
    vocabulary = {f"t{i}": i for i in range(2**16)}
    for extra, dtype in ((0, "uint16"), (1, "uint32")):
        vocabulary |= {f"x{i}": 2**16 + i for i in range(extra)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="t0")).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text("{}")
        assert load_tokenizer(str(tmp_path)).dtype == dtype


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "there is no such folder"), ("missing.model", "")])
def test_a_folder_without_a_tokenizer_is_rejected(tmp_path, name, reason):
    with pytest.raises(ValueError, match=rf"cannot load tokenizer .*{name}' \({reason}.*: expected a folder"):
        load_tokenizer(str(tmp_path / name))


def test_a_folder_without_a_tokenizer_is_said_to_have_none(tmp_path):
    message = r"the folder holds no tokenizer\.json, tokenizer\.model or vocab file\): expected a folder with"
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(ValueError, match=message):
            load_tokenizer(str(tmp_path))
        (tmp_path / name).write_text("{}")


def test_what_is_wrong_with_a_folder_is_said(tmp_path, sentencepiece_model):
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"give that file, .*/tokenizer\.model\)"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"')
    with pytest.raises(ValueError, match=r"\(tokenizer_config\.json is not JSON: Expecting ',' delimiter"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OtherTokenizer"}')
    if transformers.__version__ < "5":  # which reads the file as it is whatever class is named
        with pytest.raises(ValueError, match=r"Tokenizer class OtherTokenizer does not exist"):
            load_tokenizer(str(tmp_path))


def test_another_vocabulary_than_the_datas_is_rejected(tokenizer_folder):
    loaded = load_tokenizer(str(tokenizer_folder))
    made_with = {"name": "llama", "vocab_size": 32000, "vocabulary_sha256": "0" * 64}
    manifest = Manifest(8, "uint16", made_with, {}, {}, {}, {})
    with pytest.raises(ValueError, match=r"\(502 ids\) has another vocabulary .* llama \(32000 ids\)"):
        check_tokenizer(manifest, loaded)
    check_tokenizer(
        Manifest(8, "uint16", made_with | {"vocabulary_sha256": loaded.vocabulary_sha256}, {}, {}, {}, {}),
        loaded,
    )
