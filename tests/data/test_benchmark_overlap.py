"""Items of a benchmark in training rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.finding_rows import finding_rows

ITEM = "A farmer has seventeen sheep and all but nine of them run away in the night. How many sheep are left over?"
OTHER = "A train leaves the station at noon and travels north for three hours before it stops. How far has it come?"


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_copied_item_is_found_whatever_its_column_and_answer(tmp_path: Path) -> None:
    tests = [
        {"id": "1", "anything": ITEM, "gold": "9"},
        {"id": "2", "anything": OTHER, "gold": "180"},
        {"q": "too short"},
    ]
    benchmark = write(tmp_path / "bench.jsonl.gz", tests)
    copied = {"prompt": "Solve this. " + ITEM.upper().replace(",", ""), "completion": "It is nine."}
    rows = [{"prompt": f"Count to {i}.", "completion": "Done."} for i in range(5)]
    report = check_dataset(write(tmp_path / "t.jsonl", [*rows, copied]), benchmark_files=[benchmark])
    (overlap,) = report.benchmarks
    assert (overlap.items, overlap.too_short, overlap.found) == (3, 1, 1)
    (finding,) = [f for f in report.findings if f.kind == "in_benchmark"]
    assert finding.lines == [6]
    assert "line 6 has 100% of bench.jsonl.gz:1" in finding.message
    assert "sheep" not in finding.message


def test_less_than_half_of_an_item_is_no_copy(tmp_path: Path) -> None:
    benchmark = write(tmp_path / "bench.jsonl", [{"question": ITEM + " " + OTHER}])
    path = write(tmp_path / "t.jsonl", [{"prompt": ITEM.partition(" run")[0], "completion": "What next?"}])
    assert check_dataset(path, benchmark_files=[benchmark]).benchmarks[0].found == 0


def test_what_all_items_share_is_no_item(tmp_path: Path) -> None:
    frame = "Read the question with care and answer with one letter out of A, B, C and D."
    items = [{"frame": frame, "question": f"{frame} Number {i}?"} for i in range(30)]
    path = write(tmp_path / "t.jsonl", [{"prompt": frame, "completion": "A"}])
    assert check_dataset(path, benchmark_files=[write(tmp_path / "b.jsonl", items)]).benchmarks[0].found == 0


def test_pairs_and_lists_are_compared_too(tmp_path: Path) -> None:
    choices = [{"subject": "maths", "choices": ITEM.split(), "messages": [{"role": "user", "content": OTHER}]}]
    benchmark = write(tmp_path / "b.jsonl", choices)
    pairs = [{"prompt": text, "chosen": "good", "rejected": "bad"} for text in ("Say it.", OTHER, ITEM)]
    found = finding_rows(write(tmp_path / "t.jsonl", pairs), benchmark_files=[benchmark])
    assert found["in_benchmark"].tolist() == [2, 3]


def test_a_benchmark_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b"}])
    (tmp_path / "b.jsonl").write_text('{"q": "fine"}\n{broken\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: not JSON"):
        check_dataset(path, benchmark_files=[tmp_path / "b.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        check_dataset(path, benchmark_files=[tmp_path / "absent.jsonl"])
    numbers = write(tmp_path / "n.jsonl", [{"q": 1}])
    assert check_dataset(path, benchmark_files=[numbers]).benchmarks[0].items == 0
