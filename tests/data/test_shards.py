"""Folders, patterns and compressed files read as one file of rows; a shard that is cut is named."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.core.files import sha256_of
from sota_ml_researcher.data.check import check_dataset
from sota_ml_researcher.data.row_files import read_rows
from sota_ml_researcher.data.shards import digest_of, facts_of
from sota_ml_researcher.data.supervised import load_sft_data
from sota_ml_researcher.models.renderers import load_renderer

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i} \u00e9"} for i in range(300)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def values(path: Path) -> list[Any]:
    return [row.value for row in read_rows(path)]


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["train.jsonl.{}", "train.jsonl"])
def test_compressed_lines_are_read_whatever_their_name(tmp_path: Path, packer: str, name: str) -> None:
    path = tmp_path / name.format(packer)
    path.write_bytes(PACKERS[packer](lines(ROWS)))
    assert values(path) == ROWS


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_csv_and_json_are_read(tmp_path: Path, packer: str) -> None:
    table = "prompt,completion\r\n" + "".join(f"{r['prompt']},{r['completion']}\r\n" for r in ROWS)
    (tmp_path / f"a.csv.{packer}").write_bytes(PACKERS[packer](table.encode()))
    (tmp_path / f"a.json.{packer}").write_bytes(PACKERS[packer](json.dumps(ROWS).encode()))
    assert values(tmp_path / f"a.csv.{packer}") == values(tmp_path / f"a.json.{packer}") == ROWS


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_files_of_several_parts_are_read_to_the_end(tmp_path: Path, packer: str) -> None:
    pack = PACKERS[packer]
    (tmp_path / "a.jsonl").write_bytes(pack(lines(ROWS[:100])) + pack(lines(ROWS[100:])))
    assert values(tmp_path / "a.jsonl") == ROWS


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_compressed_shard_that_is_cut_is_named(tmp_path: Path, packer: str, kept: float) -> None:
    whole = PACKERS[packer](lines(ROWS))
    (tmp_path / "train-0.jsonl").write_bytes(whole)
    (tmp_path / "train-1.jsonl").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"train-1\.jsonl: the compressed file is cut or damaged"):
        values(tmp_path)


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("cut", [0, 8, 200])
def test_arrow_files_are_read_in_both_formats_and_cut_ones_refused(tmp_path: Path, form: str, cut: int) -> None:
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=100):
            writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(content[: len(content) - cut])
    if not cut:
        assert values(tmp_path) == ROWS
        return
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow: not a readable Arrow file, or one that was cut"):
        values(tmp_path)


def test_a_saved_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set", num_shards=3)
    assert values(tmp_path / "set") == ROWS
    with pytest.raises(DataError, match=r"there are no data files in this folder\. Name one of the folders in it: set"):
        values(tmp_path)


def write_shards(folder: Path) -> list[Path]:
    """Three shards of 100 rows, written in another order than that of their names."""
    paths = [folder / f"part-{i}.jsonl" for i in range(3)]
    for i in (2, 0, 1):
        paths[i].write_bytes(lines(ROWS[i * 100 : i * 100 + 100]))
    return paths


def test_shards_are_read_sorted_and_each_is_hashed(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    assert values(tmp_path) == values(tmp_path / "part-*.jsonl") == ROWS
    assert [row.number for row in read_rows(tmp_path)] == list(range(1, 301))
    facts = facts_of(tmp_path)
    assert facts["files"] == {str(path): sha256_of(path) for path in paths}
    assert facts["bytes"] == sum(path.stat().st_size for path in paths)
    before = digest_of(tmp_path)
    paths[1].write_bytes(lines(ROWS[:1]))
    assert digest_of(tmp_path) != before
    assert "files" not in facts_of(paths[0])


def test_a_bad_row_of_a_shard_is_named_by_its_file_and_line(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    paths[1].write_bytes(lines(ROWS[:4]) + b'{"prompt": "q", "compl')
    (finding,) = [f for f in check_dataset(tmp_path).findings if f.kind == "bad_row"]
    assert finding.message.startswith("part-1.jsonl:5: not JSON")
    assert finding.lines == [105]
    (numbering,) = [f for f in check_dataset(tmp_path).findings if f.kind == "several_files"]
    assert "part-0.jsonl from 1, part-1.jsonl from 101, part-2.jsonl from 106" in numbering.message
    assert "the file ends within this line, so it may be cut" in finding.message
    renderer = load_renderer("demo", None)
    with pytest.raises(DataError, match=r"^part-1.jsonl:5: not JSON"):
        load_sft_data(tmp_path, renderer, batch_size=2, max_seq_len=None, seed=0)
    assert load_sft_data(tmp_path, renderer, batch_size=2, max_seq_len=None, seed=0, skip_bad_rows=True).rows == 204


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.jsonl", "b.parquet"], "it holds files of several kinds (.jsonl, .parquet)"),
        (["train-0.jsonl", "test-0.jsonl"], "it holds files of several splits (test, train)"),
        (["a.txt", ".b.jsonl", "_c.jsonl"], "there are no data files in this folder"),
    ],
)
def test_a_folder_that_is_not_one_set_of_shards_is_refused(tmp_path: Path, names: list[str], problem: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(lines(ROWS[:1]))
    with pytest.raises(DataError) as caught:
        values(tmp_path)
    assert problem in str(caught.value)
    with pytest.raises(DataError, match="no file matches this pattern"):
        values(tmp_path / "nothing-*.jsonl")


def test_an_empty_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)[1].write_bytes(b"")
    with pytest.raises(DataError, match=r"part-1.jsonl: the file is empty"):
        values(tmp_path)


def test_a_spreadsheet_with_semicolons_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffQuestion;Reply\r\n"a; b";c, d\r\n'.encode())
    assert values(tmp_path / "a.csv") == [{"Question": "a; b", "Reply": "c, d"}]


_READ = """
import resource, sys
from pathlib import Path
from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.data.row_files import read_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print([str(row.problem) for row in read_rows(Path(sys.argv[1]))])
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("packer", "kind"), [("gz", "jsonl"), ("zst", "jsonl"), ("xz", "csv"), ("zst", "csv"), ("gz", "json")]
)
def test_a_bomb_takes_no_memory(tmp_path: Path, packer: str, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    with path.open("wb") as file:
        block = PACKERS[packer](b"a" * 50_000_000)
        for _ in range(12):  # 600 MB in a line
            file.write(block)
    done = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, text=True, check=True)
    said = {
        "jsonl": "600.0 MB in one row",
        "csv": "a line of more than 2 MiB",
        "json": "would be read into memory whole",
    }
    assert said[kind] in done.stdout
    kilobytes = int(done.stderr) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < (300_000 if kind == "json" else 100_000)
