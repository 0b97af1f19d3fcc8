import json
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.row_findings import DatasetReport
from sota_ml_researcher.models.renderers import load_renderer

LONG = "the quick brown fox jumps over the lazy dog and then it goes home to sleep until the next morning comes again"


def row(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def kinds(report: DatasetReport) -> dict[str, list[int]]:
    return {finding.kind: finding.lines for finding in report.findings}


def test_a_healthy_file_has_counts_and_no_findings(tmp_path: Path, tiny_model: Path) -> None:
    path = write(tmp_path / "train.jsonl", [row(f"question {i}", f"answer {i}") for i in range(50)])
    report = check_dataset(path, renderer=load_renderer(str(tiny_model)))
    assert report.ok
    assert (report.rows, report.usable_rows, report.format) == (50, 50, "prompt_completion")
    assert report.findings == []
    assert report.tokens is not None
    assert 0 < report.tokens.loss < report.tokens.total
    assert sum(report.tokens.histogram.values()) == 50
    assert report.tokens.min <= report.tokens.p50 <= report.tokens.p99 <= report.tokens.max
    assert report.example is not None
    assert report.example.text.endswith("⟦answer 0<|im_end|>⟧")


def test_token_counts_are_those_of_each_row_rendered_alone(tmp_path: Path, tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    path = write(tmp_path / "train.jsonl", [row("a" * n, "b" * n) for n in range(1, 40)])
    report = check_dataset(path, renderer=renderer)
    each = renderer.render_many(
        [[{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * n}] for n in range(1, 40)]
    )
    assert report.tokens is not None
    assert report.tokens.total == sum(len(r.tokens) for r in each)
    assert report.tokens.loss == sum(sum(r.weights) for r in each)


def test_bad_rows_are_grouped_with_their_lines(tmp_path: Path) -> None:
    rows: list[Any] = [row(f"q {i}", f"a {i}") for i in range(30)]
    rows[16] = "{not json"
    rows[20] = {"text": "x"}
    rows[21] = {"text": "y"}
    rows[25] = {"messages": [{"role": "assistant", "content": "x"}]}
    report = check_dataset(write(tmp_path / "train.jsonl", rows))
    assert not report.ok
    assert report.usable_rows == 26
    assert sorted(f.lines for f in report.findings if f.kind == "bad_row") == [[17], [21, 22], [26]]
    assert any("line 17: not JSON" in f.message for f in report.findings)
    assert report.tokens is None


def test_repeats_are_counted_exactly_and_nearly(tmp_path: Path) -> None:
    rows = [row(f"unique question number {i} {LONG[i:]}", f"unique answer {i * 7919}") for i in range(20)]
    rows += [rows[3], row("Tell it.", LONG + " one"), row("Tell it.", LONG + " two")]
    report = check_dataset(write(tmp_path / "train.jsonl", rows))
    assert report.ok
    assert (report.exact_duplicates, report.near_duplicates) == (1, 1)
    assert kinds(report) == {"exact_duplicate": [21], "near_duplicate": [23]}
    assert "line 21 repeats line 4" in " ".join(f.message for f in report.findings)


def test_rows_of_the_validation_file_are_found_in_the_training_file(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl",
        [row(f"question {i}", f"answer {i}") for i in range(10)] + [row("Tell it.", LONG + " x")],
    )
    val = write(
        tmp_path / "val.jsonl", [row("question 4", "answer 4"), row("Tell it.", LONG + " y"), row("fresh", "new")]
    )
    report = check_dataset(train, val_file=val)
    assert report.overlap_with_val == 2
    assert sorted(kinds(report)["in_val"]) == [5, 11]


def test_truncation_says_how_many_trained_tokens_it_costs(tmp_path: Path, tiny_model: Path) -> None:
    renderer = load_renderer(str(tiny_model))
    path = write(tmp_path / "train.jsonl", [row("q", "b" * 10), row("q", "b" * 200), row("q" * 300, "b")])
    report = check_dataset(path, renderer=renderer, max_seq_len=60)
    assert report.tokens is not None
    assert report.tokens.truncated == 2
    assert report.tokens.loss_cut > 100
    assert kinds(report) == {"truncated": [2], "nothing_left": [3]}
    assert not report.ok


def test_damaged_text_is_recognised(tmp_path: Path) -> None:
    texts = ["fine é 日本", "lost � here", "cafÃ© au lait", "bell \x07 rings", "itâ€™s"]
    report = check_dataset(write(tmp_path / "train.jsonl", [row(t, f"a{i}") for i, t in enumerate(texts)]))
    assert kinds(report) == {"replacement_character": [2], "mojibake": [3, 5], "control_character": [4]}


def test_markers_of_another_chat_format_are_named(tmp_path: Path, tiny_model: Path) -> None:
    answers = ["fine", "done</s>", "a <s>struck</s> word", "done<|eot_id|>", "done<|im_end|>"]
    path = write(tmp_path / "train.jsonl", [row(f"q{i}", answer) for i, answer in enumerate(answers)])
    assert kinds(check_dataset(path)) == {"chat_marker": [2, 4, 5]}
    # The last one is this model's own: what becomes of it is known.
    found = kinds(check_dataset(path, renderer=load_renderer(str(tiny_model))))
    assert found == {"chat_marker": [2, 4], "control_in_answer": [5]}


def test_rows_longer_than_the_context_are_counted_as_cut(tmp_path: Path, tiny_model: Path) -> None:
    path = write(tmp_path / "train.jsonl", [row("q", "b" * 100)])
    report = check_dataset(path, renderer=load_renderer(str(tiny_model)), context=60)
    assert report.tokens is not None
    assert (report.tokens.max_seq_len, kinds(report)) == (60, {"truncated": [1]})


def test_numbers_that_are_not_json_are_a_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [row("q", "a"), '{"prompt": "r", "completion": "b", "score": NaN}'])
    assert kinds(check_dataset(path))["not_finite"] == [2]


def test_characters_the_tokenizer_does_not_know_are_reported(tmp_path: Path) -> None:
    from tiny_models import CHATML
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(["<unk>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz<|_>\n "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    (tmp_path / "config.json").write_text("{}")
    path = write(tmp_path / "train.jsonl", [row("abc", "日本")])
    assert "not_round_trip" in kinds(check_dataset(path, renderer=load_renderer(str(tmp_path))))


def test_progress_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [row(f"q{i}", f"a{i}") for i in range(3000)])
    told: list[int] = []
    check_dataset(path, progress=lambda rows, _: told.append(rows))
    assert told[:3] == [1024, 2048, 3000]


def test_the_report_stays_small_whatever_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [{"text": "x"}, "{", *[row("same", "row")] * 5000])
    assert len(check_dataset(path).model_dump_json()) < 4000


def test_an_empty_file_is_an_error_not_a_report(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        check_dataset(tmp_path / "train.jsonl")
