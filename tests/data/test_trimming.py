"""A trimmed tokenizer writes the same texts, and those made of kept tokens with the same tokens."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmshearing.data.trimming import Trimmable, count_tokens

TEXT = (
    "The table of units says which kind owns the rows and columns of every weight, and what scales them. "
    "A gate is the number of a unit; a gate of 0 removes the unit with everything that it owns. 2048 + 16.\n"
) * 3
SPECIAL = ["<s>", "</s>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def byte_level(ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    around = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, around)
    return tokenizer


def _sentencepiece(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokenizer = _sentencepiece(Tokenizer(models.BPE(unk_token="<s>", fuse_unk=True, byte_fallback=True)))
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]  # bytes are no added tokens
    return Tokenizer.from_str(json.dumps(content))


def unigram() -> Tokenizer:
    tokenizer = _sentencepiece(Tokenizer(models.Unigram()))
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.split("."), trainer)
    return tokenizer


KINDS = {
    "bytes": byte_level,
    "bytes, whole words first": lambda: byte_level(ignore_merges=True),
    "byte fallback": byte_fallback,
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """An old tokenizer, a new one with a third of what can go, and the ids that stay."""
    old = KINDS[request.param]()
    trimmable = Trimmable(old.to_str(), "model")
    keep = len(trimmable.required) + (old.get_vocab_size() - len(trimmable.required)) * 2 // 3
    trimmable.check(keep)
    counts = count_tokens(TEXT.splitlines()[:1], ids_of(old))
    kept = trimmable.choose(counts, keep)
    assert len(kept) == keep
    return old, Tokenizer.from_str(trimmable.trimmed(kept)), kept


def ids_of(tokenizer):
    return lambda texts: [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_kept_tokens_are_numbered_in_their_order(pair):
    old, new, kept = pair
    assert new.get_vocab_size() == len(kept)
    assert [new.id_to_token(i) for i in range(len(kept))] == [old.id_to_token(i) for i in kept]
    assert new.encode("gate").ids == [kept.index(i) for i in old.encode("gate").ids if i in kept]


def test_text_of_kept_tokens_is_encoded_as_before(pair):
    old, new, kept = pair
    words = {word for word in TEXT.replace("\n", " ").split(" ") if word}
    same = 0
    for word in sorted(words):
        before = old.encode(word, add_special_tokens=False).ids
        if set(before) <= set(kept):
            same += 1
            assert [kept[i] for i in new.encode(word, add_special_tokens=False).ids] == before
    assert same > len(words) / 3


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.sampled_from(TEXT.split("\n")[0].split(". ")), st.text(max_size=20)))
def test_every_text_comes_out_as_before(pair, text):
    old, new, _ = pair
    before, after = (t.decode(t.encode(text, add_special_tokens=False).ids) for t in (old, new))
    assert after == before


def test_ids_around_a_text_and_of_padding_are_renumbered():
    old = byte_level()
    old.add_special_tokens(["<end>"])
    last = old.token_to_id("<end>")
    ends = [("<s>", 0), ("<end>", last)]
    for processor in (
        processors.TemplateProcessing("<s> $A <end>", None, ends),
        processors.Sequence([processors.ByteLevel(), processors.BertProcessing(ends[1], ends[0])]),
    ):
        old.post_processor = processor
        old.enable_padding(pad_id=last, pad_token="<end>", length=8)
        trimmable = Trimmable(old.to_str(), "model")
        new = Tokenizer.from_str(trimmable.trimmed(trimmable.choose(np.zeros(last, dtype=np.int64), 300)))
        ids = new.encode("a").ids
        assert [new.id_to_token(i) for i in ids] == ["<s>", "a", *["<end>"] * 6]
        assert ids[-1] == 299 != last


def test_the_most_used_tokens_stay_with_what_they_are_merged_from():
    old = byte_level()
    trimmable = Trimmable(old.to_str(), "model")
    (number,) = old.encode("units", add_special_tokens=False).ids[:1]
    counts = np.zeros(old.get_vocab_size(), dtype=np.int64)
    counts[number] = 1
    parts = trimmable.parts(number)
    kept = trimmable.choose(counts, len(trimmable.required | parts))
    assert set(kept) == trimmable.required | parts
    assert len(parts - trimmable.required) > 1
    assert {*range(2)} < trimmable.required


def test_what_cannot_be_trimmed_is_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(ValueError, match="one of kind WordLevel; a vocabulary of BPE or Unigram"):
        Trimmable(words.to_str(), "model")
    trimmable = Trimmable(byte_level().to_str(), "model")
    with pytest.raises(ValueError, match="fewer than the 258 special, byte and single-character"):
        trimmable.check(257)
    with pytest.raises(ValueError, match="nothing would go"):
        trimmable.check(len(trimmable.tokens))
