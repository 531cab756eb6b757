"""Only what the assistant says is in the loss, packed rows are separate, and a model learns to answer."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing import fired
from llmshearing.commands.tune import tune
from llmshearing.config.strict import build
from llmshearing.tuning.packing import pack, unpacked
from llmshearing.tuning.settings import TuneConfig
from llmshearing.tuning.templates import IGNORED, TEMPLATES, Example, encode, last_token, with_template

pytest.importorskip("trl")
CHANGING = "{% for m in messages %}{{ m.role + ' ' + (m.content if loop.last else 'w9') + ' ' }}{% endfor %}"


def turns(rounds, first=10):
    found = []
    for i in range(rounds):
        found.append({"role": "user", "content": f"w{first + 2 * i} w{100 + i}"})
        found.append({"role": "assistant", "content": f"w{first + 2 * i + 1} w{200 + i}"})
    return found


@pytest.fixture
def tokenizer(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_token_of_the_user_is_in_the_loss(name, rounds, system, tokenizer):
    conversation = [{"role": "system", "content": "w300 w301"}] * system + turns(rounds)
    example = encode(with_template(tokenizer, name), conversation, 512)
    in_loss = [label for label in example.labels if label != IGNORED]
    words = set(tokenizer.decode(in_loss).split())
    said = {word for turn in conversation for word in turn["content"].split() if turn["role"] == "assistant"}
    others = {word for turn in conversation for word in turn["content"].split()} - said
    assert said <= words
    assert not others & words
    assert all(
        label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True)
    )
    ends = in_loss.count(tokenizer.eos_token_id)
    assert ends == rounds  # each answer is learned with its end
    if name != "chatml":  # which ends a turn with a mark of its own before it
        assert len(in_loss) == 3 * rounds
    assert last_token([example]) in in_loss


def test_a_conversation_is_cut_at_its_length(tokenizer):
    whole = encode(with_template(tokenizer, "vicuna"), turns(3), 512)
    cut = encode(tokenizer, turns(3), len(whole.input_ids) - 4)
    assert cut.input_ids == whole.input_ids[:-4]
    assert cut.labels == whole.labels[:-4]
    assert encode(tokenizer, turns(3), 8) is None


def test_templates_that_cannot_be_used_are_said(tokenizer, tmp_path):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: name one, template=sheared"):
        with_template(tokenizer, None)
    with pytest.raises(
        ValueError, match=r"template is chatm1, which is neither a file .*did you mean chatml"
    ):
        with_template(tokenizer, "chatm1")
    (tmp_path / "t.jinja").write_text(CHANGING)
    with pytest.raises(ValueError, match="writes earlier turns differently when a conversation goes on"):
        encode(with_template(tokenizer, str(tmp_path / "t.jinja")), turns(2), 512)


def test_rows_hold_whole_conversations_and_are_full(tokenizer):
    sizes = [7, 3, 5, 5, 2, 8, 1, 1]
    examples = [Example([i] * size, [i] * size) for i, size in enumerate(sizes)]
    rows = pack(examples, 8)
    assert sorted(length for row in rows for length in row["seq_lengths"]) == sorted(sizes)
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= 8 for row in rows)
    assert len(rows) == 4  # 32 tokens in 4 rows of 8
    for row in rows:
        begin = 0
        for length in row["seq_lengths"]:
            assert len(set(row["input_ids"][begin : begin + length])) == 1
            assert row["labels"][begin] == IGNORED
            begin += length
    assert [row["seq_lengths"] for row in unpacked(examples)] == [[size] for size in sizes]


def test_packed_conversations_do_not_see_each_other(hf, tokenizer, tmp_path):
    """The trainer's own batch and loss of a packed row against each conversation alone."""
    from llmshearing.tuning import training

    with_template(tokenizer, "sheared")
    examples = [encode(tokenizer, turns(1, first=10 + 7 * i), 512) for i in range(4)]
    rows = pack(examples, 128)
    assert len(rows) == 1
    cfg = build(TuneConfig, {"batch_size": 1}, "tune")
    model = AutoModelForCausalLM.from_pretrained(hf, attn_implementation=training.attention())
    made = training.trainer(model, tokenizer, rows, cfg, tmp_path)
    batch = made.data_collator(rows)
    assert (batch["position_ids"] == 0).sum() == len(examples)
    with torch.no_grad():
        packed = float(made.compute_loss(model, batch))
    assert packed == pytest.approx(training.assistant_loss(model, examples), rel=1e-5)


def write(path, count):
    records = [
        {"conversations": [{"from": "human", "value": f"w{i % 50}"}, {"from": "gpt", "value": "w7 w8"}]}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_a_model_learns_to_answer(hf, tmp_path, capsys):
    data = write(tmp_path / "chat.jsonl", 60)
    words = [
        str(hf),
        str(tmp_path / "out"),
        "--data",
        str(data),
        "template=sheared",
        "max_length=64",
        "learning_rate=0.01",
        "batch_size=2",
        "epochs=6",
        "held_out=4",
        "answers=1",
        "answer_tokens=6",
    ]
    fired.call(tune, "llmshearing tune", words)
    out = capsys.readouterr().out
    assert "60 of 60 conversations can be used" in out
    before, after = (float(word) for word in out.split("tokens: ")[1].split() if word[0].isdigit())
    assert after < before / 3
    assert "after   w7 w8\n" in out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w3"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids, mask = asked["input_ids"], asked["attention_mask"]
    said = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True) == "w7 w8"
    with pytest.raises(FileExistsError, match="out exists and is not empty"):
        fired.call(tune, "llmshearing tune", words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["epoch=2"], "epoch.*did you mean epochs"),
        (["learning_rate=0"], "learning_rate"),
        (
            ["max_length=4096", "held_out=1", "template=vicuna"],
            "max_length is 4096, but .* at most 512 tokens",
        ),
        (["held_out=60", "template=vicuna"], "held_out=60 of them are not trained on"),
        (
            ["held_out=1", "template=vicuna", "max_length=64", "batch_size=3", "device_batch_size=2"],
            "batch_size is 3, which is no multiple of 2",
        ),
        (["held_out=1"], "has no chat template"),
    ],
)
def test_settings_that_cannot_be_are_said_and_nothing_is_written(words, reason, hf, tmp_path):
    data = write(tmp_path / "chat.jsonl", 20)
    with pytest.raises(ValueError, match=reason):
        fired.call(tune, "llmshearing tune", [str(hf), str(tmp_path / "out"), "--data", str(data), *words])
    assert not (tmp_path / "out").exists()


def test_every_key_is_documented():
    """docs/evaluation.md has each key with its default and what is said of it here."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for field in fields(TuneConfig):
        value = "null" if field.default is None else str(field.default).lower()
        (known,) = field.metadata.values()
        assert f"| `{field.name}` | `{value}` | {known.about} |" in page
