"""Rows of a training file that hold items of a benchmark, by shared n-grams of words.

The test is that of Tülu 3 (rule ``data.leakage.ngram``): an item counts as seen when more than half of its words lie in
n-grams that it shares with one training row. Of a benchmark only hashes are kept, in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..doctrine.rules import rule
from .row_files import read_rows
from .words import Words, words_in

_FILTER_BITS = 24
_BATCH = 1024
# A text or n-gram that so many items have is the benchmark's frame.
_FRAME_ITEMS = 10


class BenchmarkOverlap(BaseModel):
    """A benchmark's items, how many are too short to compare, and how many a training row holds."""

    file: str
    items: int
    too_short: int
    found: int


class Shared(NamedTuple):
    """A training row (its place in the batch) that holds an item: which, and the share of its words."""

    row: int
    file: str
    line: int
    share: float


class _Grams(NamedTuple):
    """N-grams: their hashes, which text each is of, and where in it; each of shape [n-grams]."""

    hashes: NDArray[np.uint64]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]


def _grams(words: Words, size: int, first_text: int) -> _Grams:
    hashes, offsets = words.ngrams(size)
    counts = np.diff(offsets)
    positions = np.arange(len(hashes)) - np.repeat(offsets[:-1], counts)
    return _Grams(hashes, np.repeat(np.arange(len(counts)) + first_text, counts), positions)


class Benchmarks:
    """The n-grams of benchmark files."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the files: every text of a row counts by itself, whatever its column is called.

        Raises:
            DataError: If a file cannot be read, or a row of it.
        """
        limits = cast("Mapping[str, Any]", rule("data.leakage.ngram").value)
        self._size, self._least = int(limits["ngram"]), float(limits["overlap"])
        self._files = [str(file) for file in files]
        # Of each text that is compared: the file and line it stands in, and its words.
        self._file_of: list[int] = []
        self._line_of: list[int] = []
        lengths: list[int] = []
        grams = [_grams(words_in([]), self._size, first_text=0)]
        self._items: list[int] = []
        for number, file in enumerate(files):
            every = list(_texts(file))
            self._items.append(len({line for line, _ in every}))
            texts = _without_frame(every)
            self._file_of += [number] * len(texts)
            self._line_of += [line for line, _ in texts]
            for start in range(0, len(texts), _BATCH):
                words = words_in([text for _, text in texts[start : start + _BATCH]])
                grams.append(_grams(words, self._size, first_text=len(lengths)))
                lengths += np.diff(words.offsets).tolist()
        self._lengths = np.array(lengths, dtype=np.int64)
        self._seen: list[set[int]] = [set() for _ in files]
        hashes, texts_of, positions = (np.concatenate([getattr(g, name) for g in grams]) for name in _Grams._fields)
        order = np.argsort(hashes, kind="stable")
        self._grams, self._cells, self._positions = hashes[order], texts_of[order], positions[order]
        # Most n-grams of a training row are in no benchmark: one look into this table says so.
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        self._filter[self._grams >> np.uint64(64 - _FILTER_BITS)] = True

    def shared(self, words: Words) -> list[Shared]:
        """The training rows that hold an item, each with the one of which it holds most."""
        grams, offsets = words.ngrams(self._size)
        maybe = np.flatnonzero(self._filter[grams >> np.uint64(64 - _FILTER_BITS)])
        first = np.searchsorted(self._grams, grams[maybe])
        last = np.searchsorted(self._grams, grams[maybe], side="right")
        held = (last > first) & (last - first <= _FRAME_ITEMS)
        maybe, first, counts = maybe[held], first[held], (last - first)[held]
        if not len(maybe):
            return []
        rows = np.repeat(np.searchsorted(offsets, maybe, side="right") - 1, counts)
        starts = np.cumsum(counts) - counts
        place = np.repeat(first - starts, counts) + np.arange(int(counts.sum()))
        return self._over_half(rows, self._cells[place], self._positions[place])

    def _over_half(
        self, rows: NDArray[np.int64], cells: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> list[Shared]:
        """Of every row and text the share of the text's words that the n-grams at ``positions`` cover."""
        order = np.lexsort((positions, cells, rows))
        rows, cells, positions = rows[order], cells[order], positions[order]
        is_first = np.ones(len(rows), dtype=np.bool_)
        is_first[1:] = (rows[1:] != rows[:-1]) | (cells[1:] != cells[:-1])
        # Each n-gram covers its words up to where the next one begins.
        covered = np.full(len(rows), self._size)
        covered[:-1] = np.where(is_first[1:], self._size, np.minimum(np.diff(positions), self._size))
        heads = np.flatnonzero(is_first)
        shares = np.add.reduceat(covered, heads) / self._lengths[cells[heads]]
        best: dict[int, Shared] = {}
        for head, share in zip(
            heads[shares > self._least].tolist(), shares[shares > self._least].tolist(), strict=True
        ):
            row, cell = int(rows[head]), int(cells[head])
            file, line = self._file_of[cell], self._line_of[cell]
            self._seen[file].add(line)
            if row not in best or share > best[row].share:
                best[row] = Shared(row, Path(self._files[file]).name, line, share)
        return [best[row] for row in sorted(best)]

    def overlaps(self) -> list[BenchmarkOverlap]:
        """What was found of each file so far."""
        long: list[set[int]] = [set() for _ in self._files]
        for file, line, length in zip(self._file_of, self._line_of, self._lengths.tolist(), strict=True):
            if length >= self._size:
                long[file].add(line)
        return [
            BenchmarkOverlap(file=file, items=items, too_short=items - len(lines), found=len(seen))
            for file, items, lines, seen in zip(self._files, self._items, long, self._seen, strict=True)
        ]


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Every text of every row, with its line; the texts of a list or an object are one."""
    for row in read_rows(file):
        for value in row.content().values():
            text = " ".join(_strings(value))
            if text:
                yield row.number, text


def _strings(value: object) -> Iterator[str]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            pending += reversed(list(cast("Mapping[str, object]", value).values()))
        elif isinstance(value, Sequence):
            pending += reversed(cast("Sequence[object]", value))


def _without_frame(texts: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The texts without those that many items share: instructions, names of subjects."""
    common = Counter(text for _, text in texts)
    return [(line, text) for line, text in texts if common[text] <= _FRAME_ITEMS]
