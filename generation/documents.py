"""Texts in a file or folder as passages: pieces of a document, each with its range of characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError
from ..core.files import storage_errors

ENDINGS = (".txt", ".md", ".markdown", ".rst", ".text")
# A text of this size is a dump of many: split it, so that a passage can be found again.
_MOST_BYTES = 64 * 2**20
# A rest of a document below this share of a passage is joined to the passage before it.
_SMALL = 0.25
_BREAKS = (re.compile(r"\n[ \t\r]*\n\s*"), re.compile(r"(?<=[.!?。！？])\s+"), re.compile(r"\s+"))
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        document: The file's name, below the folder that was given.
        start: Its first character in the decoded text (without a byte order mark), from 0.
        end: The character after its last.
        line: The line it begins on, from 1.
        text: What stands there.
    """

    document: str
    start: int
    end: int
    line: int
    text: str


def document_files(path: Path) -> list[Path]:
    """The texts that a path stands for, sorted: itself, or those of a folder and the folders in it.

    Raises:
        DataError: If there are none, or a file is of another kind.
    """
    if path.is_dir():
        visible = (f for f in path.rglob("*") if not any(part[0] == "." for part in f.relative_to(path).parts))
        files = sorted(f for f in visible if f.suffix.lower() in ENDINGS and f.is_file())
        if not files:
            raise DataError(
                "there are no texts in this folder", where=str(path), fix=f"Files end in {', '.join(ENDINGS)}"
            )
        return files
    if path.suffix.lower() not in ENDINGS:
        raise DataError(
            f"files of kind '{path.suffix or 'no extension'}' are not read as documents",
            where=str(path),
            fix=f"Write its text to a file that ends in {', '.join(ENDINGS)}",
        )
    return [path]


def read_document(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: If it is not text in UTF-8, or too large.
        StorageError: If it cannot be read.
    """
    with storage_errors(path):
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(f"a document of {size / 1e6:,.0f} MB", where=str(path), fix="Split it into smaller files")
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not a text in UTF-8 (byte {error.start + 1})", where=str(path), fix="Save it as UTF-8, or leave it out"
        ) from error
    if "\0" in text:
        raise DataError(
            f"binary: a zero byte at character {text.index(chr(0)) + 1}", where=str(path), fix="Leave the file out"
        )
    return text


def passages(path: Path, size: int) -> tuple[list[Passage], list[str]]:
    """The passages of all documents in order, and the names of documents without any words.

    Args:
        path: A file or folder.
        size: Characters of a passage at most (a small rest is joined to the last, which may be a quarter longer).

    Raises:
        DataError: If a document cannot be read, or none has any words.
    """
    found: list[Passage] = []
    without: list[str] = []
    root = path if path.is_dir() else path.parent
    for file in document_files(path):
        text, name = read_document(file), file.relative_to(root).as_posix()
        before = len(found)
        line = at = 0
        for start, end in ranges(text, size):
            line += text.count("\n", at, start)
            at = start
            found.append(Passage(name, start, end, line + 1, text[start:end]))
        if len(found) == before:
            without.append(name)
    if not found:
        raise DataError("the documents hold no words", where=str(path))
    return found, without


def ranges(text: str, size: int) -> list[tuple[int, int]]:
    """Ranges of characters that cover a text's words: cut between paragraphs, else sentences, else words."""
    packed: list[tuple[int, int]] = []
    for start, end in _pieces(text, 0, len(text), size, 0):
        if packed and end - packed[-1][0] <= size:
            packed[-1] = (packed[-1][0], end)
        else:
            packed.append((start, end))
    if len(packed) > 1 and packed[-1][1] - packed[-1][0] < size * _SMALL:
        packed[-2:] = [(packed[-2][0], packed[-1][1])]
    return [(a, b) for a, b in packed if _WORD.search(text, a, b)]


def _pieces(text: str, start: int, end: int, size: int, level: int) -> Iterator[tuple[int, int]]:
    """The paragraphs of a range; of those that are too long the sentences, then the words, then plain cuts."""
    piece = text[start:end]
    start, end = start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
    if start < end <= start + size:
        yield start, end
    elif level == len(_BREAKS):
        yield from ((at, min(at + size, end)) for at in range(start, end, size))
    elif start < end:
        at = start
        for gap in _BREAKS[level].finditer(text, start, end):
            yield from _pieces(text, at, gap.start(), size, level + 1)
            at = gap.end()
        yield from _pieces(text, at, end, size, level + 1)
