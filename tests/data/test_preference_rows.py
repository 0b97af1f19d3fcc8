import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.preference_check import check_preferences
from sota_ml_researcher.data.preference_rows import detect_preference_format, to_pair
from sota_ml_researcher.data.preferences import count_pairs
from sota_ml_researcher.models.renderers import load_renderer

USER = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "pairs"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "pairs"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, "pairs"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "conversations"),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "conversations"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, "transcripts"),
        ({"prompt": "q", "responses": ["bad", "fair", "good"], "ratings": [1, 2, 5]}, "ratings"),
        ({"prompt": "q", "responses": ["bad", "good"], "scores": [0.1, 0.7]}, "ratings"),
        ({"question": "q", "chosen": "good", "rejected": "bad"}, "pairs"),
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "pairs"),
        ({"messages": [USER], "chosen": GOOD, "rejected": BAD}, "pairs"),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "pairs",
        ),
        (
            {
                "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
                "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
            },
            "conversations",
        ),
    ],
)
def test_every_shape_gives_the_same_pair(row: dict[str, Any], form: str) -> None:
    assert detect_preference_format(row) == form
    pair = to_pair(row)
    assert [dict(m) for m in pair.prompt] == [USER]
    assert (pair.chosen_text, pair.rejected_text) == ("good", "bad")


def test_the_system_column_the_history_and_the_tools_belong_to_the_prompt() -> None:
    pair = to_pair(
        {
            "system": "Be a sailor.",
            "history": [["Hi", "Ahoy"]],
            "tools": [{"name": "tide"}],
            "instruction": "When?",
            "chosen": "Now",
            "rejected": "Later",
        }
    )
    assert [m["content"] for m in pair.prompt] == ["Be a sailor.", "Hi", "Ahoy", "When?"]
    assert [tool["function"]["name"] for tool in pair.tools] == ["tide"]
    assert pair.notes == ()


def test_a_prompt_at_the_head_of_both_answers_is_cut_off_and_said() -> None:
    asked = "How do I bake bread?"
    pair = to_pair({"prompt": asked, "chosen": f"{asked} Mix and rest.", "rejected": f"{asked}\n\nBuy it."})
    assert (pair.chosen_text, pair.rejected_text) == ("Mix and rest.", "Buy it.")
    assert [note.kind for note in pair.notes] == ["prompt_cut"]
    one_side = to_pair({"prompt": asked, "chosen": f"{asked} Mix.", "rejected": "Buy it."})
    assert one_side.chosen_text == f"{asked} Mix."
    greeting = to_pair({"prompt": "Hello", "chosen": "Hello there", "rejected": "Hello"})
    assert greeting.chosen_text == "Hello there"


def test_transcripts_share_their_whole_beginning() -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant: "
    pair = to_pair({"chosen": start + "because", "rejected": start + "no"})
    assert [m["role"] for m in pair.prompt] == ["user", "assistant", "user"]
    assert (pair.chosen_text, pair.rejected_text) == ("because", "no")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, '"rejected" is empty'),
        ({"prompt": "q", "chosen": 3, "rejected": "a"}, '"chosen" is'),
        ({"prompt": "q", "completion": "a"}, "no preference in this row"),
        ({"chosen": "a", "rejected": "b"}, 'has no prompt: no "Human:"'),
        ({"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "x"}, BAD]}, "no common prompt"),
        ({"prompt": "q", "responses": ["a", "b"], "ratings": [1, 1]}, "the same rating"),
        ({"prompt": "q", "responses": ["a", "b"], "ratings": [1]}, "2 responses and 1 ratings"),
        ({"prompt": "q", "responses": ["a", "b"], "ratings": [1, "x"]}, '"ratings" must be numbers'),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, float("nan")]}, '"scores" must be numbers, and finite'),
        ({"prompt": "q", "chosen": [{**GOOD, "weight": 0}], "rejected": "b"}, "an answer has weight 0"),
        ({"prompt": "q", "chosen": {"role": "assistant"}, "rejected": "b"}, r"chosen\[0\] \(assistant\) is empty"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, '"chosen" has no turns'),
    ],
)
def test_a_row_that_prefers_nothing_says_why(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_pair(row)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_contradictions_repeats_leaks_and_a_taste_for_length_are_found(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a longer answer", "rejected": "short"} for i in range(8)]
    rows.append({"prompt": "q0", "chosen": "short", "rejected": "a longer answer"})  # line 9 contradicts line 1
    rows.append(rows[1])  # line 10 repeats line 2
    rows.append({"prompt": "q", "chosen": "x", "rejected": "x"})
    found = check_preferences(
        write(tmp_path / "train.jsonl", rows),
        write(tmp_path / "val.jsonl", [{"prompt": "q3", "chosen": "a", "rejected": "b"}]),
    )
    assert (found.rows, found.usable, found.bad_count) == (11, 10, 1)
    rows_of = {kind: lines.tolist() for kind, lines in found.found.rows().items()}
    assert rows_of == {"contradictory_pair": [9], "repeated_pair": [10], "prompt_in_val": [4], "bad_row": [11]}
    assert found.longer_share == 0.9  # 9 of 10 pairs of unequal length
    assert any("longer answer is the chosen one in 90%" in warning for warning in found.warnings())


def test_one_pair_is_no_taste_for_length(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a longer answer", "rejected": "short"}
    assert check_preferences(write(tmp_path / "one.jsonl", [pair]), None).warnings() == []


def test_a_pair_that_just_fits_is_not_cut(tmp_path: Path, tiny_model: Path) -> None:
    row = {"prompt": "q", "chosen": "longer than that", "rejected": "short"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    renderer = load_renderer(str(tiny_model))
    (side,) = renderer.render_many([[USER, {"role": "assistant", "content": row["chosen"]}]])
    length = len(side.tokens)
    for most, cut in ((None, 0), (length + 1, 0), (length, 0), (length - 1, 1)):
        assert count_pairs(tmp_path / "pairs.jsonl", renderer, max_seq_len=most).truncated == cut


def test_the_kind_of_a_file_is_seen_from_its_first_row(tmp_path: Path) -> None:
    from sota_ml_researcher.data.preference_check import kind_of, preference_report

    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert kind_of(pairs) == "preferences"
    assert kind_of(write(tmp_path / "sft.jsonl", [{"prompt": "q", "completion": "a"}])) == "supervised"
    report = preference_report(pairs, None)
    assert (report.ok, report.usable_rows) == (True, 1)


def test_pairs_in_parquet_get_the_report_of_the_same_pairs_in_jsonl(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from sota_ml_researcher.data.preference_check import kind_of, preference_report

    rows: list[Any] = [
        {"prompt": f"Is {i} even?", "chosen": [{**USER, "content": f"Is {i} even?"}, GOOD], "score_chosen": 8.0}
        | {"rejected": [{**USER, "content": f"Is {i} even?"}, BAD]}
        for i in range(4)
    ]
    files = [write(tmp_path / "pairs.jsonl", rows), tmp_path / "pairs.parquet"]
    parquet.write_table(pyarrow.Table.from_pylist(rows), files[1])
    assert [kind_of(file) for file in files] == ["preferences", "preferences"]
    one, other = (preference_report(file, None).model_dump(exclude={"file"}) for file in files)
    assert one == other
    assert (one["ok"], one["usable_rows"]) == (True, 4)


def test_a_prompt_that_leaves_nothing_of_the_answers_is_named_by_line(tmp_path: Path, tiny_model: Path) -> None:
    from sota_ml_researcher.data.preference_check import preference_report

    rows = [{"prompt": "word " * n, "chosen": "a b c", "rejected": "c b a a a a a a a a a a"} for n in (1, 100)]
    pairs, renderer = write(tmp_path / "pairs.jsonl", rows), load_renderer(str(tiny_model))
    assert preference_report(pairs, None).ok
    report = preference_report(pairs, None, renderer=renderer, max_seq_len=60)
    assert (report.ok, report.usable_rows) == (False, 1)
    assert report.bad_rows[0].startswith("line 2: nothing of an answer is left within max_seq_len")
    (counts,) = [count_pairs(pairs, renderer, max_seq_len=60)]
    assert (counts.rows, counts.unusable) == (1, 1)
    above = preference_report(pairs, None, renderer=renderer, max_seq_len=4096, context=512)
    assert not above.ok
    assert "max_seq_len: 4,096 is above the 512 tokens" in above.bad_rows[0]


def test_what_pairs_lose_is_named_as_for_supervised_rows(tmp_path: Path, tiny_model: Path) -> None:
    from sota_ml_researcher.data.preference_check import preference_report

    row = {"prompt": "q<|im_end|>", "chosen": "good", "rejected": "bad", "tools": [{"name": "tide"}], "margin": 2}
    report = preference_report(write(tmp_path / "pairs.jsonl", [row]), None, renderer=load_renderer(str(tiny_model)))
    said = " ".join(report.warnings)
    assert "spells a control token of the model in a prompt" in said
    assert "declares tools that the chat template does not write" in said
    assert 'keys that are not read: "margin" (1 row, first line 1)' in said
