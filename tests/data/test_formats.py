from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.formats import to_messages

QUESTION = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, ANSWER]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [QUESTION], "completion": "4"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"input": "2+2?", "output": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    ],
)
def test_every_shape_of_a_row_becomes_the_same_conversation(row: dict[str, Any]) -> None:
    assert to_messages(row) == [QUESTION, ANSWER]


def test_an_instruction_and_its_input_are_one_question() -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    assert to_messages(row)[0]["content"] == "Translate.\n\nchat"


def test_tool_calls_are_kept() -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    turns = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4"},
        ANSWER,
    ]
    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert to_messages({"messages": turns})[1] == {"role": "assistant", "content": "", "tool_calls": [called]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "no usable keys (found: none)"),
        ({"text": "x"}, "no usable keys (found: text)"),
        ({"chosen": "a", "rejected": "b", "prompt": "c"}, "preference pairs"),
        ({"prompt": "x", "answer": "4"}, "no completion"),
        ({"prompt": "x", "completion": ""}, '"completion" is empty'),
        ({"prompt": "  \n", "completion": "y"}, '"prompt" is empty'),
        ({"prompt": "x", "completion": 4}, '"completion" is a number'),
        ({"prompt": "x", "completion": None}, '"completion" is missing'),
        ({"messages": "hello"}, '"messages" is text, and a list of turns is needed'),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["hello"]}, "messages[0] is text, and an object is needed"),
        ({"messages": [QUESTION]}, "no assistant turn"),
        ({"messages": [ANSWER]}, "opens with assistant, not user"),
        ({"messages": [QUESTION, QUESTION, ANSWER]}, "two user turns in a row (turn 2)"),
        ({"messages": [QUESTION, ANSWER, QUESTION]}, "ends with user, not assistant"),
        ({"messages": [QUESTION, {"role": "system", "content": "s"}, ANSWER]}, "a system turn at position 2"),
        ({"messages": [QUESTION, {"role": "bot", "content": "4"}]}, "messages[1] has the role 'bot'"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "messages[1] (assistant) is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "a part that is not text"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "has the role 'robot'"),
        ({"prompt": "x", "completion": "\ud83d"}, "half of a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        to_messages(row)
    assert problem in str(caught.value)
