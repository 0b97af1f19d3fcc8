import json
from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import DataError, StorageError
from sota_ml_researcher.data.row_files import read_rows

ROWS = [{"prompt": "a, b", "completion": 'c "d"\ne'}, {"prompt": "é", "completion": "日本"}]


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"train{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    else:
        import pandas

        frame = pandas.DataFrame(rows)
        frame.to_csv(path, index=False) if kind == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    assert [row.value for row in read_rows(write(tmp_path, kind, ROWS))] == ROWS


def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0])] * 20
    lines[16] = '{"prompt": "a", "completion": '
    lines[18] = "[1, 2]"
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    rows = list(read_rows(tmp_path / "train.jsonl"))
    assert len(rows) == 20
    assert str(rows[16].problem).startswith("train.jsonl:17: not JSON")
    assert "a JSON list" in str(rows[18].problem)
    assert sum(row.problem is None for row in rows) == 18


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.number for row in read_rows(tmp_path / "train.jsonl")] == [2, 4]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert [row.value for row in read_rows(tmp_path / "train.jsonl")] == [{"a": 1}]


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n')
    good, bad = read_rows(tmp_path / "train.jsonl")
    assert good.problem is None
    assert "train.jsonl:2: not UTF-8" in str(bad.problem)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.jsonl", b"", "the file is empty"),
        ("train.jsonl", b"\n\n", "the file has no rows"),
        ("train.txt", b"x", "files of kind '.txt' are not read here"),
        ("train", b"x", "files of kind 'no extension'"),
        ("train.json", b'{"a": 1}', "must hold one array of rows"),
        ("train.json", b'[{"a": 1},\n{"a": }]', "train.json:2: not JSON"),
        ("train.json", b'["\xff"]', "train.json:1: not UTF-8"),
        ("train.csv", b"prompt,completion\n\xff,b\n", "not UTF-8"),
        ("train.csv", b'prompt,completion\n"a,b\n', "not CSV"),
        ("train.parquet", b"not parquet at all", "not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert problem in str(caught.value)


def test_a_csv_record_with_too_few_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,completion\na,b\nonly\n")
    assert "train.csv:3: not as many fields" in str(list(read_rows(tmp_path / "train.csv"))[1].problem)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="this is a folder"):
        list(read_rows(tmp_path))


def test_an_unreadable_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = Path("/proc/self/mem")  # exists, and reading it from its start fails even for root
    link = tmp_path / "train.jsonl"
    link.symlink_to(path)
    with pytest.raises((StorageError, DataError)):
        list(read_rows(link))
