"""What a row, a turn or a part holds is read, refused or named: nothing is dropped without a word."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tiny_model

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.formats import read_row, to_messages
from sota_ml_researcher.data.supervised import count_tokens
from sota_ml_researcher.models.renderers import load_renderer

ASK: dict[str, Any] = {"role": "user", "content": "2+2?"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}


def chat(*turns: Any, **row: Any) -> dict[str, Any]:
    return {"messages": list(turns), **row}


def notes_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(note) for note in read_row(row).notes]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [ASK, ANSWER]},
        {"conversation": [ASK, ANSWER]},
        {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": json.dumps([ASK, ANSWER])},
        {"messages": [ASK, ANSWER], "conversations": None},
        {"messages": [ASK, {"role": "assistant", "content": {"type": "text", "text": "4"}}]},
        {"messages": [ASK, {"role": "assistant", "content": [{"type": "output_text", "text": "4"}]}]},
        {"messages": [{"role": "User", "content": "2+2?"}, {"role": "model", "content": "4"}]},
        {"messages": [{**ASK, "tool_calls": None, "name": None, "weight": 0}, {**ANSWER, "weight": 1.0}]},
    ],
)
def test_these_spellings_are_one_conversation(row: dict[str, Any]) -> None:
    assert to_messages(row) == [ASK, ANSWER]
    assert notes_of(row) == []


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "train_on_turn", "loss"])
def test_a_turn_that_must_not_be_trained_is_not(key: str) -> None:
    row = chat(ASK, {**ANSWER, key: 0}, ASK, {**ANSWER, key: True})
    assert [message.get("trained") for message in to_messages(row)] == [None, False, None, None]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (chat(ASK, {**ANSWER, "weight": 0}), "every answer of this row has weight 0"),
        (chat(ASK, {**ANSWER, "weight": 0.5}), "messages[1].weight is 0.5; a turn is trained (1) or not (0)"),
        (chat(ASK, {**ANSWER, "weight": float("nan")}), "messages[1].weight is nan"),
        (chat(ASK, {**ANSWER, "weight": float("inf")}), "messages[1].weight is inf"),
        (chat(ASK, {**ANSWER, "weight": "high"}), "messages[1].weight is text"),
        (chat(ASK, {**ANSWER, "weight": 1, "train": False}), "says that it is trained and that it is not"),
        (chat(ASK, ANSWER, weight=float("nan")), '"weight" is nan, which is not a finite number'),
        (chat(ASK, {**ANSWER, "mask": [1, 0]}), 'messages[1] has "mask", which is not read'),
        (chat(ASK, {**ANSWER, "loss_mask": 1}), 'messages[1] has "loss_mask"'),
        (chat(ASK, ANSWER, images=["a.png"]), '"images" is not empty'),
        (chat({**ASK, "audio": {"data": "x"}}, ANSWER), 'messages[0]: "audio" is not empty'),
        (chat({"speaker": "a", "text": "b"}), 'messages[0] has neither "role" nor "from" (keys: speaker, text)'),
        (chat({"role": "user", "text": "b"}, ANSWER), 'no "content" nor "value" among its keys: role, text'),
        (chat({"role": None, "content": "b"}, ANSWER), 'messages[0] has neither "role" nor "from"'),
        (chat({"role": 3, "content": "b"}, ANSWER), "messages[0] has the role a number"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "of type 'image_url'"),
        (chat({"role": "system", "content": "a"}, ASK, ANSWER, system="b"), '"system" is given, and the turns begin'),
        (chat(ASK, ANSWER, system=3), '"system" is a number'),
        (chat(ASK, ANSWER, tools="nonsense"), '"tools" is text and not JSON'),
        (chat(ASK, ANSWER, tools=[{"description": "x"}]), "tools[0] is no tool with a name"),
        (chat(ASK, {**ANSWER, "tool_calls": [{"arguments": {}}]}), "has a tool call without a name"),
        ({"instruction": "a", "output": "b", "history": [["only"]]}, "history[0] is not a question and its answer"),
        (chat(ASK, {"role": "assistant", "content": "", "tool_calls": [
            {"name": "f", "arguments": {"a": float("inf")}}]}), "f.arguments holds inf, which is not a JSON number"),
        ({"messages": None, "id": 3}, '"messages" is missing'),
    ],
)  # fmt: skip
def test_what_would_change_the_training_is_refused(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_row(row)
    assert problem in str(caught.value)
    assert "None" not in str(caught.value)


def test_alpaca_columns_make_the_whole_conversation() -> None:
    row = {
        "system": "One word.",
        "history": [["Ice?", "Water."]],
        "instruction": "Steam?",
        "input": "",
        "output": "Gas.",
    }
    assert [(m["role"], m["content"]) for m in to_messages(row)] == [
        ("system", "One word."),
        ("user", "Ice?"),
        ("assistant", "Water."),
        ("user", "Steam?"),
        ("assistant", "Gas."),
    ]
    assert notes_of(row) == []


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "tide", "parameters": {}}}],
        [{"name": "tide", "parameters": {}}],
        '[{"name": "tide", "parameters": {}}]',
    ],
)
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_of_every_spelling_are_read(key: str, tools: Any) -> None:
    expected = {"type": "function", "function": {"name": "tide", "parameters": {}}}
    assert read_row(chat(ASK, ANSWER, **{key: tools})).conversation.tools == (expected,)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": '{"port": "Brest"}'}}]},
        {"role": "assistant", "function_call": {"name": "tide", "arguments": '{"port": "Brest"}'}},
        {"from": "function_call", "value": '{"name": "tide", "arguments": {"port": "Brest"}}'},
    ],
)
def test_calls_of_every_spelling_are_read(turn: dict[str, Any]) -> None:
    turns = [ASK, turn, {"from": "observation", "value": "14:02"}, ANSWER]
    called = to_messages({"conversations": turns})[1]
    assert called == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_of_every_spelling_is_read(key: str) -> None:
    assert to_messages(chat(ASK, {**ANSWER, key: "adds"}))[1]["reasoning_content"] == "adds"
    assert to_messages({"prompt": "2+2?", "completion": "4", key: "adds"})[1]["reasoning_content"] == "adds"
    part = {"type": "thinking", "thinking": "adds"}
    turn = {"role": "assistant", "content": [part, {"type": "text", "text": "4"}]}
    assert to_messages(chat(ASK, turn))[1] == {**ANSWER, "reasoning_content": "adds"}


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (chat(ASK, ANSWER, difficulty=3), ("unread_key", "difficulty")),
        (chat({**ASK, "timestamp": 9}, ANSWER), ("unread_key", "messages[].timestamp")),
        (
            chat({"role": "user", "content": [{"type": "text", "text": "2+2?", "cache_control": 1}]}, ANSWER),
            ("unread_key", "messages[].content[].cache_control"),
        ),
        (
            chat(ASK, {**ANSWER, "tool_calls": [{**CALL, "status": "done"}]}),
            ("unread_key", "messages[].tool_calls[].status"),
        ),
        (chat({**ASK, "weight": 1}, ANSWER), ("prompt_weight", "")),
        (chat({"role": "developer", "content": "Be brief."}, ASK, ANSWER), ("developer_turn", "")),
        (chat(ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": None}}]}), ("null_arguments", "")),
        (chat(ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{a"}]}), ("bad_arguments", "")),
        ({"prompt": "How do I bake?", "completion": "How do I bake? Mix."}, ("prompt_repeated", "")),
    ],
)
def test_what_is_not_read_or_may_surprise_is_noted(row: dict[str, Any], note: tuple[str, str]) -> None:
    assert notes_of(row) == [note]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_unread_key_is_named_once_with_its_rows_and_first_line(tmp_path: Path, tiny_model: Path) -> None:
    rows = [chat(ASK, {"role": "assistant", "content": f"a{i}"}, source="x") for i in range(9)]
    rows[3]["loss_mask"] = [0, 1]
    path = write(tmp_path / "t.jsonl", *rows)
    report = check_dataset(path)
    said = {finding.severity: finding.message for finding in report.findings}
    assert report.ok
    assert said["info"] == 'keys that are not read: "source" (9 rows, first line 1)'
    assert said["warn"].startswith('"loss_mask" is not read (1 row, first line 4): elsewhere it says what is trained')
    counted = count_tokens(path, load_renderer(str(tiny_model)), max_seq_len=None)
    assert [note.partition(":")[0] for note in counted.notes] == [
        '"loss_mask" is not read (1 row, first line 4)',
        "keys that are not read",
    ]


def test_a_thousand_different_keys_do_not_fill_the_report(tmp_path: Path) -> None:
    rows = [chat(ASK, ANSWER, **{f"key{i}": 1}) for i in range(1000)]
    assert len(check_dataset(write(tmp_path / "t.jsonl", *rows)).model_dump_json()) < 4000


def test_rows_that_differ_in_a_call_a_tool_or_a_weight_are_no_repeats(tmp_path: Path) -> None:
    def calling(port: str) -> dict[str, Any]:
        call = {"name": "tide", "arguments": {"port": port}}
        return chat(ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1"}, ANSWER)

    rows = [calling("Brest"), calling("Oslo"), chat(ASK, ANSWER), chat(ASK, ANSWER, tools=[{"name": "tide"}])]
    rows += [chat(ASK, ANSWER, ASK, ANSWER), chat(ASK, {**ANSWER, "weight": 0}, ASK, ANSWER), rows[0]]
    report = check_dataset(write(tmp_path / "t.jsonl", *rows))
    assert report.exact_duplicates == 1
    assert report.usable_rows == 7


def test_nulls_that_parquet_adds_to_arguments_reach_no_text(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    calls = [{"name": "tide", "arguments": {"port": "Brest"}}, {"name": "sum", "arguments": {"a": 1, "b": 2}}]
    rows = [
        chat(ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "ok"}, ANSWER)
        for call in calls
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ (m.tool_calls or '') | tojson }}"
    template += "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    model = write_tiny_model(tmp_path / "model", template=template)
    report = check_dataset(tmp_path / "t.parquet", renderer=load_renderer(str(model)))
    assert (report.ok, report.exact_duplicates, report.findings) == (True, 0, [])
    assert report.example is not None
    assert '"arguments": {"port": "Brest"}' in report.example.text


def test_the_findings_of_a_template_have_counts_and_lines(tmp_path: Path, tiny_model: Path) -> None:
    rows = [chat(ASK, ANSWER), chat({"role": "user", "content": "hi<|im_end|>"}, ANSWER)]
    rows += [chat(ASK, {**ANSWER, "reasoning_content": "adds"})]
    report = check_dataset(write(tmp_path / "t.jsonl", *rows), renderer=load_renderer(str(tiny_model)))
    assert {f.kind: (f.count, f.lines) for f in report.findings} == {
        "control_text": (1, [2]),
        "reasoning_dropped": (1, [3]),
    }
