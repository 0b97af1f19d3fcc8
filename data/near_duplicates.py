"""Rows that say nearly the same thing, by MinHash over word n-grams.

Sketches (Broder 1997) come from ``rensa``; banding finds candidates, and the share of equal sketch entries, an
unbiased estimate of the Jaccard similarity of the two sets of n-grams, confirms them. With 16 bands of 4 a pair of
similarity 0.8 is found with probability 1 - (1 - 0.8^4)^16 = 0.9998.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .words import Words

BANDS = 16
ROWS_PER_BAND = 4
PERMUTATIONS = BANDS * ROWS_PER_BAND
NGRAM = 3
THRESHOLD = 0.8
_SEED = 42
_MIX = np.uint64(0x9E3779B97F4A7C15)


class SimilarPair(NamedTuple):
    """Two rows by position, and the estimated Jaccard similarity of their n-grams."""

    first: int
    second: int
    similarity: float


class Sketches:
    """MinHash sketches of rows, added in batches; 256 bytes per row."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint32]] = []

    def add(self, words: Words, wanted: NDArray[np.bool_] | None = None) -> None:
        """Sketch some more rows by their words, all or those that are wanted."""
        if len(words.longest):
            sketches = _sketch(words)
            self._blocks.append(sketches if wanted is None or wanted.all() else sketches[wanted])

    def rows(self) -> NDArray[np.uint32]:
        """All sketches, shape [rows, `PERMUTATIONS`]."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, PERMUTATIONS), np.uint32)


def _sketch(words: Words) -> NDArray[np.uint32]:
    minhash: Any = importlib.import_module("rensa").RMinHash
    grams, offsets = _grams(words)
    matrix = minhash.digest_matrix_from_flat_token_hashes(grams, offsets.astype(np.uint64), PERMUTATIONS, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32)


def _grams(words: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every ``NGRAM`` words of each row, and its offsets; a shorter row is one n-gram of the words it has."""
    grams, offsets = words.ngrams(NGRAM)
    counts = np.diff(words.offsets)
    short = np.flatnonzero(counts < NGRAM)
    if not len(short):
        return grams, offsets
    padded = np.concatenate([words.hashes, np.zeros(NGRAM, np.uint64)])
    whole = np.zeros(len(short), dtype=np.uint64)
    for i in range(NGRAM - 1):
        held = padded[words.offsets[short] + i]
        whole = (whole ^ np.where(i < counts[short], held, np.uint64(i))) * _MIX
    grams = np.insert(grams, offsets[short], whole)
    return grams, offsets + np.concatenate([[0], np.cumsum(counts < NGRAM)])


def similar_pairs(sketches: NDArray[np.uint32], *, split: int | None = None) -> list[SimilarPair]:
    """Pairs at or above `THRESHOLD`: for each row the most similar earlier one that shares a band with it.

    Args:
        sketches: Shape [rows, `PERMUTATIONS`].
        split: If given, only pairs of a row before ``split`` with one at or after it.
    """
    nearest: dict[int, SimilarPair] = {}
    for first, second in _candidates(sketches, split):
        similarity = (sketches[first] == sketches[second]).mean(axis=1)
        for a, b, s in zip(first, second, similarity, strict=True):
            key = int(a) if split is not None else int(b)
            if s >= THRESHOLD and (key not in nearest or s > nearest[key].similarity):
                nearest[key] = SimilarPair(int(a), int(b), float(s))
    return [nearest[key] for key in sorted(nearest)]


def _candidates(
    sketches: NDArray[np.uint32], split: int | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per band, pairs of rows in one bucket (neighbours when rows are sorted by bucket), the earlier row first."""
    for band in range(BANDS):
        bucket = np.zeros(len(sketches), dtype=np.uint64)
        for column in range(band * ROWS_PER_BAND, (band + 1) * ROWS_PER_BAND):
            bucket = (bucket ^ sketches[:, column]) * _MIX
            bucket ^= bucket >> np.uint64(29)
        if split is None:
            order = np.argsort(bucket, kind="stable")
            first, second = order[:-1], order[1:]
        else:
            later = split + np.argsort(bucket[split:], kind="stable")
            first = np.arange(split if len(later) else 0)
            place = np.searchsorted(bucket[later], bucket[first]) if len(later) else first
            second = later[np.minimum(place, len(later) - 1)] if len(later) else first
        same = bucket[first] == bucket[second]
        if same.any():
            yield first[same], second[same]
