"""The tokenizer of a GGUF file: special tokens, how text is split, and SentencePiece's own ids."""

import json

import pytest
from transformers import AutoTokenizer

pytest.importorskip("gguf")


import gguf_twins
from gguf_twins import WORDS, twin
from llmshearing.commands.convert import save_composer_to_hf, save_hf_to_composer
from llmshearing.data.tokenizer import load_tokenizer


def exported(path):
    save_hf_to_composer(path, path.with_suffix(".pt"))
    save_composer_to_hf(path.with_suffix(".pt"), path.with_suffix(""))
    return path.with_suffix("")


def test_special_tokens_are_those_of_the_file(tmp_path):
    hf = twin("llama grouped")
    more = {
        "tokenizer.ggml.padding_token_id": 7,
        "tokenizer.ggml.eot_token_id": 9,
        "tokenizer.chat_template": "{{x}}",
    }
    folder = exported(gguf_twins.write(tmp_path / "m.gguf", hf, more))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (298, 299, 7)
    assert tokenizer.chat_template == "{{x}}"
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}  # what generate() takes
    config = json.loads((folder / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [298, 299, 7]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [299, 9]
    prepared = load_tokenizer(str(folder))
    assert (prepared.prefix, prepared.suffix) == ((298,), (299,))


def test_special_tokens_that_a_file_lacks_are_not_made_up(tmp_path):
    none = {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    folder = exported(gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"), none))
    config = json.loads((folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)
    assert AutoTokenizer.from_pretrained(folder).bos_token_id is None


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 1234!\n\n b", ["a", " 1234", "!", "\n\n", " b"]),
        ("smollm", "a 1234!\n\n b", ["a", " ", "1", "2", "3", "4", "!", "\n\n", " b"]),
        ("llama-bpe", "It's 12345.\n\nYES", ["It", "'s", " ", "123", "45", ".\n\n", "YES"]),
        ("qwen2", "It's 123.\n\nYES", ["It", "'s", " ", "1", "2", "3", ".\n\n", "YES"]),
        ("tekken", "helloWorld 12/\n", ["hello", "World", " ", "1", "2", "/\n"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path, pre, text, pieces):
    path = gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"), {"tokenizer.ggml.pre": pre})
    tokenizer = AutoTokenizer.from_pretrained(exported(path)).backend_tokenizer
    found = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in found] == pieces
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.pre": "some-new-one"}, "splitting 'some-new-one', which is not supported"),
        ({"tokenizer.ggml.model": "t5"}, "of kind 't5'"),
        ({"tokenizer.ggml.tokens": ["a"] * WORDS}, "the same token more than once"),
        ({"tokenizer.ggml.tokens": None, "tokenizer.ggml.bos_token_id": None}, "holds no tokenizer"),
    ],
)
def test_an_unknown_tokenizer_is_skipped_with_a_warning(tmp_path, caplog, metadata, words):
    path = gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped"), metadata)
    folder = exported(path)
    assert words in caplog.text
    assert not (folder / "tokenizer.json").exists()


def test_a_sentencepiece_tokenizer_gives_the_ids_of_sentencepiece(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    lines = [
        f"The quick brown fox number {i} jumps over lazy dogs, again and again: {i * i}." for i in range(200)
    ]
    text.write_text("\n".join(lines))
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "t"), vocab_size=WORDS + 20, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    model = spm.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    size = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(size)
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": kinds,
        **{f"tokenizer.ggml.{name}": None for name in ("pre", "merges", "bos_token_id", "eos_token_id")},
    }
    folder = exported(gguf_twins.write(tmp_path / "m.gguf", twin("llama grouped", vocab_size=size), metadata))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in [*lines[::20], "lazy  foxes", "jümps 123 € x"]:
        assert tokenizer(line, add_special_tokens=False).input_ids == model.encode(line)
        assert tokenizer.decode(model.encode(line)) == line
    assert tokenizer("fox").input_ids[0] == model.bos_id() == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == model.eos_id()
