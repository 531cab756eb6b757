"""Every form of a file is read, and every bad conversation counted with its reason and place."""

import json

import pytest

from llmshearing.tuning.conversations import conversation, first_rounds, read

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
BAD = {
    "in which user and assistant do not take turns, the user first": {"messages": [ASSISTANT, USER]},
    "with an empty turn of the assistant": {"messages": [USER, {"role": "assistant", "content": " "}]},
    "without a turn of the assistant": {"messages": [SYSTEM, USER]},
    "with a role other than user, assistant and system": {
        "messages": [USER, {"role": "tool", "content": "x"}]
    },
    "with a turn that is not role and content": {"messages": [{"role": "user"}]},
    "with a turn that is not from and value": {"conversations": [["human", "a"]]},
    "with neither conversations nor messages": {"text": "a"},
}


@pytest.mark.parametrize("record", [SHAREGPT, {"messages": [USER, ASSISTANT]}])
def test_both_forms_give_the_same_turns(record):
    assert conversation(record) == [USER, ASSISTANT]


def test_what_follows_the_last_answer_is_left_out():
    assert conversation({"messages": [SYSTEM, USER, ASSISTANT, USER]}) == [SYSTEM, USER, ASSISTANT]


def test_the_first_rounds_keep_the_system_turn():
    turns = [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    assert first_rounds(turns, 1) == turns[:3]
    assert first_rounds(turns[1:], 1) == turns[1:3]
    assert first_rounds(turns, 0) == turns


@pytest.mark.parametrize("reason", BAD)
def test_bad_conversations_have_their_reason(reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        conversation(BAD[reason])


def test_lines_and_lists_are_read_and_bad_records_counted(tmp_path):
    lines, listed = tmp_path / "a.jsonl", tmp_path / "b.json"
    records = [SHAREGPT, *BAD.values(), {"messages": [USER]}]
    lines.write_text("\n".join([json.dumps(r) for r in records] + ["", "{broken", json.dumps(SHAREGPT)]))
    listed.write_text(json.dumps([SHAREGPT, 3], indent=1))
    found = read([lines, listed], turns=1)
    assert found.conversations == [[USER, ASSISTANT]] * 3
    assert found.bad["that are not JSON"] == 1
    assert found.bad["without a turn of the assistant"] == 2
    said = found.in_words()
    assert said.startswith("3 of 13 conversations can be used; skipped: ")
    assert f"1 that are not JSON (first: {lines}, line 11)" in said
    assert f"2 with neither conversations nor messages (first: {lines}, line 8)" in said
    with pytest.raises(ValueError, match=r"at most 5% may be bad: correct the files, or set max_bad"):
        found.check(0.05)
    found.check(0.8)


def test_files_without_conversations_are_rejected(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="0 of 0 conversations can be used"):
        read([tmp_path / "empty"], 1).check(1.0)
    (tmp_path / "half").write_text('[{"messages": []}')
    with pytest.raises(ValueError, match=r"half begins as a JSON list but is not one"):
        read([tmp_path / "half"], 1)
