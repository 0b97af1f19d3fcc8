import json
import os
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
        writers = {
            ".csv": lambda: frame.to_csv(path, index=False),
            ".tsv": lambda: frame.to_csv(path, sep="\t", index=False),
        }
        writers |= {".parquet": lambda: frame.to_parquet(path), ".feather": lambda: frame.to_feather(path)}
        writers[kind]()
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".feather"])
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
        ("train.csv", b'a,b\n1,2\n"open\n,3\n', "train.csv:3: not CSV"),
        ("train.csv", b"a,b,a\n1,2,3\n", "two columns have the name 'a'"),
        ("train.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("train.jsonl", b'[\n {"a": 1},\n {"a": 2}\n]\n', "the file is one JSON array"),
        ("train.jsonl", b'\xef\xbb\xbf[{"a": 1}, {"a": 2}]', "the file is one JSON array"),
        ("train.jsonl", b'{\n "a": 1\n}\n{\n "a": 2\n}\n', "a JSON object is spread over several lines"),
        ("train.jsonl", '{"a": 1}\n'.encode("utf-16"), "the file is UTF-16"),
        ("train.jsonl", b"\x1f\x8b\x08\x00rest", "the compressed file is cut or damaged"),
        ("train.jsonl", b"PK\x03\x04rest", "the file is an archive"),
        ("train.jsonl", b"PAR1rest", "the file is Parquet or Arrow"),
        ("train.arrow", b"ARROW1\0\0rest", "not a readable Arrow file, or one that was cut"),
        ("train.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert problem in str(caught.value)


def test_a_record_of_a_csv_has_the_line_on_which_it_begins(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('prompt,completion\n"one\ntwo\nthree",ok\n\nfine,yes\n"a\nb"\n')
    rows = list(read_rows(tmp_path / "train.csv"))
    assert [row.number for row in rows] == [2, 6, 7]
    assert "train.csv:7: not as many fields" in str(rows[2].problem)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_endings_and_separators_in_texts_end_no_row(tmp_path: Path, ending: str) -> None:
    rows = [{"a": "x\u2028y\x85z"}, {"a": "b"}]
    lines = [json.dumps(row, ensure_ascii=False) + ending for row in rows]
    (tmp_path / "train.jsonl").write_bytes("".join(lines).encode())
    assert [row.value for row in read_rows(tmp_path / "train.jsonl")] == rows


def test_a_row_without_end_is_named_by_its_size_and_the_next_is_read(tmp_path: Path) -> None:
    with (tmp_path / "train.jsonl").open("wb") as file:
        file.write(b'{"a": "')
        file.seek(300_000_000)  # a hole: it takes no disk
        file.write(b'"}\n{"a": 1}\n')
    long, good = read_rows(tmp_path / "train.jsonl")
    assert "train.jsonl:1: 300.0 MB in one row; rows above 2 MiB are not read" in str(long.problem)
    assert (good.number, good.value) == (2, {"a": 1})


def test_nesting_without_end_is_a_bad_row_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + '}\n{"a": 1}\n')
    deep, good = read_rows(tmp_path / "train.jsonl")
    assert "nested too deeply" in str(deep.problem)
    assert good.problem is None


def test_a_pipe_or_a_device_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    for name in ("train.jsonl", "endless.jsonl"):
        with pytest.raises(DataError, match="a pipe or a device"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_numbers_that_are_not_json_are_marked(tmp_path: Path, name: str) -> None:
    rows = ['{"a": NaN}', '{"a": "NaN"}', '{"a": [{"b": -Infinity}]}']
    (tmp_path / name).write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")
    assert [row.not_finite for row in read_rows(tmp_path / name)] == [True, False, True]


def test_a_json_null_is_called_null(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("null\n")
    (row,) = read_rows(tmp_path / "train.jsonl")
    assert str(row.problem) == "train.jsonl:1: null, and an object is needed. Write {...}."


def test_a_csv_record_with_too_few_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,completion\na,b\nonly\n")
    assert "train.csv:3: not as many fields" in str(list(read_rows(tmp_path / "train.csv"))[1].problem)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="there are no data files in this folder"):
        list(read_rows(tmp_path))


def test_an_unreadable_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = Path("/proc/self/mem")  # exists, and reading it from its start fails even for root
    link = tmp_path / "train.jsonl"
    link.symlink_to(path)
    with pytest.raises((StorageError, DataError)):
        list(read_rows(link))
