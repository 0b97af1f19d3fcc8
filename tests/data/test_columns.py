"""`columns:` makes rows of any names ours, refuses what it cannot, and is proposed where it is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.column_proposal import Use, require_known_shape, unknown_shape
from sota_ml_researcher.data.columns import ColumnMap, RowMapper, checked
from sota_ml_researcher.data.formats import read_row, to_messages
from sota_ml_researcher.data.preference_check import kind_of, preference_report
from sota_ml_researcher.data.preference_rows import to_pair
from sota_ml_researcher.data.preferences import load_preference_data
from sota_ml_researcher.data.supervised import count_tokens, load_sft_data
from sota_ml_researcher.models.renderers import load_renderer
from sota_ml_researcher.rewards.problems import load_problems
from sota_ml_researcher.training.dpo.config import DpoConfig
from sota_ml_researcher.training.rl.config import RlConfig
from sota_ml_researcher.training.sft.config import SftConfig
from sota_ml_researcher.training.sft.method import row_datum, weights_of

GSM8K = {"question": "What is 40+2?", "answer": "It is <<40+2=42>>42.\n#### 42"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turns(*said: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


@pytest.mark.parametrize(
    ("columns", "row", "messages"),
    [
        ({"prompt": "question", "completion": "answer"}, GSM8K, turns(GSM8K["question"], GSM8K["answer"])),
        ({"prompt": "meta.q", "completion": "a"}, {"meta": {"q": "hi"}, "a": "ho"}, turns("hi", "ho")),
        ({"prompt": "meta.q", "completion": "a"}, {"meta.q": "hi", "a": "ho"}, turns("hi", "ho")),
        ({"prompt": "Q. (en)", "completion": "a"}, {"Q. (en)": "hi", "a": "ho"}, turns("hi", "ho")),
        (
            {"prompt": "c[0].value", "completion": "c[-1].value"},
            {"c": [{"value": "hi"}, {"value": "no"}, {"value": "ho"}]},
            turns("hi", "ho"),
        ),
        (
            {"prompt": "{title}\n\n{body.text} {{{n}}}", "completion": "a"},
            {"title": "T", "body": {"text": "B"}, "n": 3, "a": "ho"},
            turns("T\n\nB {3}", "ho"),
        ),
        (
            {"messages[*].role": "d[*].by", "messages[*].content": "d[*].text", "roles": {"Bot": "assistant"}},
            {"d": [{"by": "human", "text": "hi"}, {"by": "BOT", "text": "ho"}]},
            turns("hi", "ho"),
        ),
        (
            {"messages[*].role": ["user", "assistant"], "messages[*].content": "d[*]"},
            {"d": ["a", "b", "c", "d"]},
            turns("a", "b", "c", "d"),
        ),
        (
            {"messages": "chat", "system_prompt": "Be {tone}."},
            {"chat": turns("hi", "ho"), "tone": "kind"},
            [{"role": "system", "content": "Be kind."}, *turns("hi", "ho")],
        ),
        ({"instruction": "task", "input": "more?", "output": "a"}, {"task": "hi", "a": "ho"}, turns("hi", "ho")),
        ({"completion": "answer"}, {"prompt": "hi", "answer": "ho"}, turns("hi", "ho")),
        ({"prompt": "q", "completion": "chosen"}, {"q": "hi", "chosen": "ho", "rejected": "no"}, turns("hi", "ho")),
        ({"prompt": "q", "completion": "a"}, {"q": "hi", "a": "ho", "messages": turns("x", "y")}, turns("hi", "ho")),
        ({"prompt": "a", "completion": "prompt"}, {"prompt": "ho", "a": "hi"}, turns("hi", "ho")),
    ],
)
def test_a_row_is_read_under_its_columns(columns: ColumnMap, row: dict[str, Any], messages: list[Any]) -> None:
    assert to_messages(RowMapper(columns)(row)) == messages


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_last_answer_alone_is_trained_where_that_is_chosen(key: str, as_text: bool) -> None:
    said: Any = turns("a", "b", "c", "d")
    row = RowMapper({"train_on": "last"})({key: json.dumps(said) if as_text else said})
    assert [m.get("trained", True) for m in to_messages(row) if m["role"] == "assistant"] == [False, True]
    assert "train" not in said[1], "the file's own rows stay as they are"


def test_each_turn_says_whether_it_is_trained() -> None:
    columns = {f"messages[*].{to}": f"d[*].{of}" for to, of in (("role", "r"), ("content", "c"), ("train", "loss?"))}
    row = {
        "d": [{"r": "user", "c": "a"}, {"r": "gpt", "c": "b", "loss": 0}, *({"r": r, "c": r} for r in ("user", "gpt"))]
    }
    answers = [m for m in to_messages(RowMapper(columns)(row)) if m["role"] == "assistant"]
    assert [m.get("trained", True) for m in answers] == [False, True]


def test_what_no_column_names_is_kept_and_noted() -> None:
    made = RowMapper({"prompt": "q", "completion": "a"})({"q": "hi", "a": "ho", "prompt": "other", "extra": 1})
    assert made == {"prompt": "hi", "completion": "ho", "unmapped.prompt": "other", "extra": 1}
    assert {note.detail for note in read_row(made).notes} == {"unmapped.prompt", "extra"}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"promt": "q"}, "columns fill no 'promt'. Did you mean 'prompt'?"),
        ({"prompt": ["title", "body"]}, "prompt takes one column, and this is a list. Several columns in one text"),
        ({"prompt": "q", "messages": "m"}, "messages and prompt say the same thing twice"),
        ({"prompt": "q", "instruction": "i"}, "prompt and instruction say the same thing twice"),
        ({"system": "s", "system_prompt": "Be kind."}, "system and system_prompt say the same thing twice"),
        ({"messages": "m", "messages[*].role": "r[*]"}, "say the same thing twice"),
        ({"prompt": "{title"}, "prompt: not a template"),
        ({"prompt": "{title!r}"}, "a template holds names of columns alone"),
        ({"prompt": "{turns[*].text}"}, "a template takes texts, and [*] gives a list"),
        ({"prompt": "turns[*].text"}, "'turns[*].text' gives a list"),
        ({"responses": "a[*].b[*]"}, "'a[*].b[*]' gives lists in a list"),
        ({"messages[*].content": "a[*]"}, "turns need both messages[*].role and messages[*].content"),
        ({"messages[*].content": "a", "messages[*].role": "r[*]"}, "goes through 0 lists, and turns are one"),
        ({"messages[*].content": "a[*].b[*]", "messages[*].role": "r[*]"}, "goes through 2 lists"),
        ({"messages[*].content": "a[*]", "messages[*].role": ["user", "bod"]}, "'bod' is no role"),
        ({"roles": {"agent": "bot"}}, "'bot' of 'agent' is no role"),
        ({"train_on": "first"}, "train_on is neither all nor last"),
        ({"prompt": ""}, "prompt names no column"),
    ],
)
def test_columns_that_say_nothing_possible_are_refused(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(columns)
    assert problem in str(caught.value)
    with pytest.raises(ValueError, match="columns"):
        SftConfig.model_validate({"base_model": "demo", "train_file": "x", "columns": columns})


@pytest.mark.parametrize(
    ("columns", "row", "problem"),
    [
        ({"prompt": "qestion"}, GSM8K, 'this row has no "qestion" (the row\'s columns: answer, question)'),
        ({"prompt": "{titel} x"}, {"title": "a"}, 'this row has no "titel" (the row\'s columns: title). Did you mean'),
        ({"prompt": "m.q"}, {"m": {"p": 1}}, 'this row has no "m.q" (m is an object with p, and an object with "q"'),
        ({"prompt": "m.q"}, {"m": "text"}, "(m is text, and an object"),
        ({"prompt": "m[2]"}, {"m": ["a"]}, "(it has 1 entries)"),
        ({"prompt": "n"}, {"n": 3}, '"n" is a number, and prompt takes text. As text it is prompt: "{n}"'),
        ({"prompt": "{n}"}, {"n": [3]}, '"n" is a list, and prompt takes text'),
        (
            {"messages[*].role": "r[*]", "messages[*].content": "c[*]"},
            {"r": ["user"], "c": ["a", "b"]},
            "messages[*].role has 1 entries, messages[*].content 2",
        ),
        (
            {"messages[*].role": "d[*].r", "messages[*].content": "d[*].c"},
            {"d": [{"r": "user", "c": "a"}, [{"r": "user", "c": "b"}]]},
            '(d[1] is a list, and an object with "r" is needed)',
        ),
        ({"messages[*].role": "d[*].r", "messages[*].content": "d[*].c"}, {"d": {"r": "user"}}, "a list is needed"),
    ],
)
def test_a_row_that_its_columns_do_not_fit_says_why(columns: ColumnMap, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        RowMapper(columns)(row)
    assert problem in str(caught.value)
    assert "None" not in str(caught.value)


def test_rows_that_lack_a_column_are_bad_rows_by_line(tmp_path: Path) -> None:
    rows = [GSM8K, {"question": "no answer"}, {**GSM8K, "question": "another"}]
    path, columns = write(tmp_path / "t.jsonl", *rows), {"prompt": "question", "completion": "answer"}
    report = check_dataset(path, columns=columns, val_file=path)
    assert (report.rows, report.usable_rows, report.overlap_with_val) == (3, 2, 2)
    assert report.findings[0].message.startswith('line 2: columns: this row has no "answer"')
    renderer = load_renderer("demo", None)
    with pytest.raises(DataError, match=r"t\.jsonl:2: columns: this row has no"):
        load_sft_data(path, renderer, batch_size=1, max_seq_len=None, seed=0, columns=columns)
    data = load_sft_data(path, renderer, batch_size=1, max_seq_len=None, seed=0, columns=columns, skip_bad_rows=True)
    counts = count_tokens(path, renderer, max_seq_len=None, columns=columns)
    assert (data.rows, data.tokens) == (2, counts.tokens)


def test_what_is_trained_is_what_rows_of_our_names_train(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.jsonl", {"prompt": GSM8K["question"], "completion": GSM8K["answer"]})
    theirs, renderer = write(tmp_path / "theirs.jsonl", GSM8K), load_renderer("demo", None)
    one = load_sft_data(ours, renderer, batch_size=1, max_seq_len=None, seed=0)
    columns = {"prompt": "question", "completion": "answer"}
    other = load_sft_data(theirs, renderer, batch_size=1, max_seq_len=None, seed=0, columns=columns)
    assert np.array_equal(one.row(0).tokens, other.row(0).tokens)
    assert np.array_equal(one.row(0).weights, other.row(0).weights)


def test_a_row_counts_for_as_many_as_its_weight_says(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"q": "a", "a": "b", "w": "2.5"}, {"q": "a", "a": "c", "w": 1})
    columns = {"prompt": "q", "completion": "a", "row_weight": "w"}
    data = load_sft_data(path, load_renderer("demo", None), batch_size=1, max_seq_len=None, seed=0, columns=columns)
    sums = [float(weights_of(row_datum(data.row(i))).sum()) for i in range(2)]
    assert sums == pytest.approx([2.5, 1.0])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "much", True, None, [1]])
def test_a_weight_that_is_no_positive_number_is_refused(weight: object) -> None:
    with pytest.raises(DataError, match=r'"row_weight" is .*, and a finite number above 0 is needed') as caught:
        read_row({"prompt": "a", "completion": "b", "row_weight": weight})
    assert "None" not in str(caught.value)


def test_pairs_and_problems_take_no_weight(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="weights per row are for SFT alone"):
        to_pair({"prompt": "a", "chosen": "b", "rejected": "c", "row_weight": 2})
    with pytest.raises(DataError, match="weights per row are for SFT alone"):
        load_problems(write(tmp_path / "t.jsonl", {"q": "a"}), [], columns={"prompt": "q", "row_weight": "q"})


@pytest.mark.parametrize("columns", [{"train_on": "last"}, {"row_weight": "w"}])
def test_only_sft_chooses_what_is_trained(columns: dict[str, Any]) -> None:
    shared = {"base_model": "demo", "train_file": "x", "columns": columns}
    SftConfig.model_validate(shared)
    for model, more in ((DpoConfig, {}), (RlConfig, {"reward_type": "math"})):
        with pytest.raises(ValueError, match=f"{next(iter(columns))} is for SFT"):
            model.model_validate({**shared, **more})


ULTRA = {
    "source": "x",
    "instruction": "Say hi",
    "completions": [{"response": "hi", "overall_score": 8.0}, {"response": "no", "overall_score": 2.5}],
}


def test_pairs_are_read_under_their_columns_at_every_door(tmp_path: Path) -> None:
    columns = {
        "prompt": "instruction",
        "responses": "completions[*].response",
        "ratings": "completions[*].overall_score",
    }
    path = write(tmp_path / "t.jsonl", ULTRA)
    assert kind_of(path, columns) == "preferences"
    assert preference_report(path, columns=columns).ok
    data = load_preference_data(
        path, load_renderer("demo", None), batch_size=1, max_seq_len=None, seed=0, columns=columns
    )
    assert data.rows == 1


def test_problems_are_read_under_their_columns_with_the_system_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"problem": "1+1?", "solution": r"\boxed{2}", "level": 3})
    columns = {"prompt": "problem", "answer": "solution", "system_prompt": "Think."}
    (problem,) = load_problems(path, [], columns=columns)
    assert [m["content"] for m in problem.messages] == ["Think.", "1+1?"]
    assert (problem.row["answer"], problem.row["level"]) == (r"\boxed{2}", 3)


@pytest.mark.parametrize(
    ("row", "use", "columns"),
    [
        (GSM8K, "supervised", {"prompt": "question", "completion": "answer"}),
        (
            {"Ticket no.": "7", "Customer question": "Where?", "Our reply": "Here."},
            "supervised",
            {"prompt": "Customer question", "completion": "Our reply"},
        ),
        (
            {"task": "Say", "context": "hi", "response": "hi"},
            "supervised",
            {"instruction": "task", "input": "context", "output": "response"},
        ),
        ({"dialog": turns("a", "b"), "id": 3}, "supervised", {"messages": "dialog"}),
        (
            {"chat": [{"speaker": "Customer", "text": "a"}, {"speaker": "Agent", "text": "b"}]},
            "supervised",
            {
                "messages[*].role": "chat[*].speaker",
                "messages[*].content": "chat[*].text",
                "roles": {"Agent": "assistant", "Customer": "user"},
            },
        ),
        ({"text": "A great film", "label": 1}, "supervised", {"prompt": "text", "completion": "{label}"}),
        ({"de": "Hallo", "en": "Hello"}, "supervised", {"prompt": "de", "completion": "en"}),
        (
            ULTRA,
            "preferences",
            {"prompt": "instruction", "responses": "completions[*].response"}
            | {"ratings": "completions[*].overall_score"},
        ),
        (
            {"input": "a", "generations": ["b", "c"], "rating": [1, 5]},
            "preferences",
            {"prompt": "input", "responses": "generations", "ratings": "rating"},
        ),
        (
            {"query": "a", "better": "b", "worse": "c"},
            "preferences",
            {"prompt": "query", "chosen": "better", "rejected": "worse"},
        ),
    ],
)
def test_columns_are_proposed_and_read(tmp_path: Path, row: dict[str, Any], use: Use, columns: ColumnMap) -> None:
    path = write(tmp_path / "t.jsonl", row)
    found = unknown_shape(path, None, use)
    assert found is not None
    proposal, refusal = found
    assert proposal is not None
    assert proposal.columns == columns
    assert proposal.block in str(refusal)
    require_known_shape(path, proposal.columns, use)
    (read_row if use == "supervised" else to_pair)(RowMapper(proposal.columns)(row))


def test_rl_columns_are_proposed_for_what_the_reward_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"problem": "1+1?", "solution": r"\boxed{2}"})
    with pytest.raises(DataError, match=r"columns: \{prompt: problem, answer: solution\}"):
        require_known_shape(path, None, "rl", ["answer"])
    require_known_shape(write(tmp_path / "gsm8k.jsonl", GSM8K), None, "rl", ["answer"])
    require_known_shape(write(tmp_path / "prompts.jsonl", {"prompt": "1+1?"}), None, "rl", ["answer"])


@pytest.mark.parametrize("row", [{"foo": 1}, {"a": "x", "b": "y", "c": "z"}, {"question": "only"}, {"m": [1, 2]}])
def test_where_nothing_fits_nothing_is_proposed(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        require_known_shape(write(tmp_path / "t.jsonl", row), None, "supervised")
    assert "Say which column is what: columns: {prompt: ..., completion: ...}" in str(caught.value)
    assert next(iter(row)) in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("a")},
        {"prompt": "a", "completion": ""},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ],
)
def test_rows_of_a_known_shape_keep_their_own_errors(tmp_path: Path, row: dict[str, Any]) -> None:
    require_known_shape(write(tmp_path / "t.jsonl", row), None, "supervised")
