import itertools
from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.generation.documents import document_files, passages, ranges

LONG = "One sentence of it. " * 40 + "\n\n" + "x" * 900 + "\n\n" + "Short.\n"


@pytest.mark.parametrize("size", [200, 333, 5000])
@pytest.mark.parametrize("text", [LONG, LONG.replace("\n", "\r\n"), "słowo " * 300, "字" * 1000])
def test_ranges_cover_every_word_once_and_keep_to_the_size(text: str, size: int) -> None:
    found = ranges(text, size)
    assert all(a < b <= a + size * 1.25 + 4 for a, b in found)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(found))
    left = list(text)
    for a, b in found:
        left[a:b] = " " * (b - a)
    assert not "".join(left).strip()


def test_passages_end_between_paragraphs_where_they_can(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("First paragraph.\n\nSecond one.\n\n" + "Third. " * 40)
    first = passages(file, 200)[0][0]
    assert first.text.startswith("First paragraph.\n\nSecond one.")
    assert file.read_text()[first.start : first.end] == first.text
    assert first.line == 1


def test_a_folder_is_read_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "deep/c.rst", ".hidden.md", ".git/x.md", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}")
    assert [passage.document for passage in passages(tmp_path, 200)[0]] == ["a.txt", "b.md", "deep/c.rst"]


def test_a_byte_order_mark_is_not_text_and_an_empty_document_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHello there.")
    (tmp_path / "b.txt").write_text(" \n\n")
    found, without = passages(tmp_path, 200)
    assert [(p.start, p.text) for p in found] == [(0, "Hello there.")]
    assert without == ["b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", r"not a text in UTF-8 \(byte 1\)"),
        ("a.md", b"PK\x00\x03", "binary: a zero byte at character 3"),
        ("a.txt", b"", "the documents hold no words"),
        ("a.pdf", b"%PDF", r"there are no texts in this folder. Files end in .txt"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        passages(tmp_path, 200)


def test_a_file_of_another_kind_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no texts in this folder"):
        document_files(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"files of kind '\.docx' are not read as documents"):
        document_files(tmp_path / "a.docx")
