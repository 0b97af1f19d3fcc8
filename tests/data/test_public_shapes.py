"""One small file for each shape that public data sets have: read as it is, read under the columns that are proposed, or
refused with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.column_proposal import unknown_shape
from sota_ml_researcher.data.columns import RowMapper
from sota_ml_researcher.data.formats import read_row
from sota_ml_researcher.data.preference_rows import to_pair

Q, A, B = "What is 6 times 7?", "It is 42.", "It is 41."
ASKED, SAID = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
CALL = {"type": "function", "function": {"name": "times", "arguments": {"a": 6}}}
TOOL = {"type": "function", "function": {"name": "times", "parameters": {}}}
RESULT = {"role": "tool", "content": "42"}
CALLED = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, SAID]


def write(path: Path, row: dict[str, Any]) -> Path:
    path.write_text((json.dumps(row) + "\n") * 2)
    return path


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # OpenAI: arguments are text, content is null.
        (
            {
                "messages": [
                    ASKED,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"type": "function", "function": {"name": "times", "arguments": '{"a": 6}'}},
                        ],
                    },
                    RESULT,
                    SAID,
                ],
                "tools": [TOOL],
            },
            CALLED,
        ),
        # Hugging Face: arguments are an object, content is absent.
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}, RESULT, SAID], "tools": [TOOL]}, CALLED),
        # ShareGPT with tools.
        (
            {
                "conversations": [
                    {"from": "human", "value": Q},
                    {"from": "function_call", "value": json.dumps({"name": "times", "arguments": {"a": 6}})},
                    {"from": "observation", "value": "42"},
                    {"from": "gpt", "value": A},
                ],
                "tools": json.dumps([{"name": "times", "parameters": {}}]),
            },
            CALLED,
        ),
        # Thinking: kept apart, as a part or as its own key, or kept in the text.
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, A]}]},
            [ASKED, {**SAID, "reasoning_content": "hm"}],
        ),
        (
            {"messages": [ASKED, {**SAID, "reasoning_content": "hm"}]},
            [ASKED, {**SAID, "reasoning_content": "hm"}],
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": f"<think>hm</think>{A}"}]},
            [ASKED, {"role": "assistant", "content": f"<think>hm</think>{A}"}],
        ),
        # Content as parts, of OpenAI and of LLaMA-Factory, whose weights say what is trained.
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": Q[8:]}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "value": A}], "loss_weight": 1.0},
                ]
            },
            [ASKED, SAID],
        ),
        # System turns as a role, as a developer and as a column.
        *(
            (row, [{"role": "system", "content": "Be brief."}, ASKED, SAID])
            for row in (
                {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID]},
                {"messages": [{"role": "developer", "content": "Be brief."}, ASKED, SAID]},
                {"system": "Be brief.", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
                {"system_prompt": "Be brief.", "instruction": Q, "output": A},
            )
        ),
    ],
)
def test_these_are_read_as_they_are(tmp_path: Path, row: dict[str, Any], messages: list[Any]) -> None:
    assert list(read_row(row).conversation.messages) == messages
    assert check_dataset(write(tmp_path / "t.jsonl", row)).ok


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": Q, "answer": A}, {"prompt": "question", "completion": "answer"}),  # GSM8K
        ({"problem": Q, "level": "1", "solution": A}, {"prompt": "problem", "completion": "solution"}),  # MATH
        (
            {"id": "1", "system_prompt": "", "question": Q, "response": A},  # OpenOrca
            {"prompt": "question", "completion": "response"},
        ),
        ({"Customer question": Q, "Our reply": A}, {"prompt": "Customer question", "completion": "Our reply"}),
    ],
)
def test_for_these_columns_are_proposed_that_fit(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    unknown = unknown_shape(write(tmp_path / "t.jsonl", row), None, "supervised")
    assert unknown is not None and unknown[0] is not None
    assert unknown[0].columns == columns
    assert list(read_row(RowMapper(unknown[0].columns)(row)).conversation.messages) == [ASKED, SAID]


CHOSEN, REJECTED = [ASKED, SAID], [ASKED, {"role": "assistant", "content": B}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
            None,
        ),  # HH-RLHF
        (
            {"prompt": Q, "prompt_id": "1", "messages": CHOSEN, "chosen": CHOSEN, "rejected": REJECTED},
            None,
        ),  # binarized
        ({"system": "", "input": Q, "chosen": A, "rejected": B, "generations": [B, A]}, None),  # Argilla
        ({"prompt": Q, "chosen": CHOSEN, "chosen-rating": 5.0, "rejected": REJECTED, "rejected-rating": 2.0}, None),
        (
            {"instruction": Q, "chosen_response": A, "rejected_response": B},
            {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
        ),
        (
            {"input": Q, "generations": [B, A], "rating": [5.0, 9.0]},
            {"prompt": "input", "responses": "generations", "ratings": "rating"},
        ),
        (
            {
                "instruction": Q,
                "completions": [{"response": B, "overall_score": 3.0}, {"response": A, "overall_score": 8.5}],
            },
            {
                "prompt": "instruction",
                "responses": "completions[*].response",
                "ratings": "completions[*].overall_score",
            },
        ),
        (
            {
                "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",  # Nectar: rank 1 is the best
                "answers": [{"answer": B, "rank": 7.0}, {"answer": A, "rank": 1.0}, {"answer": "No.", "rank": 3.0}],
            },
            {"prompt": "prompt", "responses": "answers[*].answer", "ranks": "answers[*].rank"},
        ),
    ],
)
def test_each_preference_set_gives_the_same_pair(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str] | None
) -> None:
    unknown = unknown_shape(write(tmp_path / "t.jsonl", row), None, "preferences")
    proposed = unknown[0].columns if unknown is not None and unknown[0] is not None else None
    assert proposed == columns
    pair = to_pair(RowMapper(proposed)(row) if proposed else row)
    assert (list(pair.prompt), pair.chosen_text, pair.rejected_text) == ([ASKED], A, B)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [ASKED, SAID, ASKED]}, "Remove the turns after the answer"),
        ({"messages": [ASKED, SAID], "images": ["a.png"]}, "Tinker's vision models take images"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, SAID]},
            "Tinker's vision models take images",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "tool_call", "value": "{}"}]}]},
            "Give the call under tool_calls",
        ),
    ],
)
def test_these_are_refused_with_what_to_do(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_row(row)
    assert problem in str(caught.value)


def test_an_answer_that_is_marked_as_unwanted_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kto.jsonl"
    rows = [{"prompt": Q, "completion": A, "label": True}, {"prompt": Q, "completion": B, "label": False}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {finding.kind: finding.lines for finding in check_dataset(path).findings}
    assert found["unwanted_answer"] == [2]


def test_rows_to_imitate_are_no_pairs_and_dpo_says_who_takes_them(tmp_path: Path) -> None:
    unknown = unknown_shape(write(tmp_path / "t.jsonl", {"messages": [ASKED, SAID]}), None, "preferences")
    assert unknown is not None
    assert "these are rows to imitate" in str(unknown[1])
    assert "start_sft takes them as they are" in str(unknown[1])
