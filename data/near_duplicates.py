"""Rows that say nearly the same thing, by MinHash over word n-grams.

Sketches (Broder 1997) come from ``rensa``; banding finds candidates, and the share of equal sketch entries, an
unbiased estimate of the Jaccard similarity of the two sets of n-grams, confirms them. With 16 bands of 4 a pair of
similarity 0.8 is found with probability 1 - (1 - 0.8^4)^16 = 0.9998.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BANDS = 16
ROWS_PER_BAND = 4
PERMUTATIONS = BANDS * ROWS_PER_BAND
NGRAM = 3
THRESHOLD = 0.8
_SEED = 42
# Words, and each character of scripts that are written without spaces.
_WORDS = re.compile(r"[぀-ヿ㐀-鿿가-힯]|\w+")
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

    def add(self, texts: Sequence[str]) -> None:
        """Sketch some more rows."""
        if texts:
            self._blocks.append(_sketch([_WORDS.findall(text.lower()) or [""] for text in texts]))

    def rows(self) -> NDArray[np.uint32]:
        """All sketches, shape [rows, `PERMUTATIONS`]."""
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, PERMUTATIONS), np.uint32)


def _sketch(words: list[list[str]]) -> NDArray[np.uint32]:
    minhash: Any = importlib.import_module("rensa").RMinHash
    hashed = [np.asarray(row, dtype=np.uint64) for row in minhash.hash_token_sets(words)]
    grams = [_ngrams(row) for row in hashed]
    offsets = np.cumsum([0, *(len(g) for g in grams)]).astype(np.uint64)
    flat = np.ascontiguousarray(np.concatenate(grams))
    matrix = minhash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32)


def _ngrams(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Order-sensitive hashes of every ``NGRAM`` words in a row; a shorter row is one n-gram."""
    width = max(1, len(hashes) - NGRAM + 1)
    mixed = np.zeros(width, dtype=np.uint64)
    for i in range(min(NGRAM, len(hashes))):
        mixed = (mixed ^ hashes[i : i + width]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed


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
    rows = np.arange(len(sketches))
    for band in range(BANDS):
        part = np.ascontiguousarray(sketches[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * ROWS_PER_BAND))).ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.lexsort((rows, bucket))
        if split is None:
            first, second = order[:-1], order[1:]
            same = bucket[first] == bucket[second]
        else:
            later = order[order >= split]
            first_of = np.full(int(bucket.max(initial=0)) + 1, -1)
            first_of[bucket[later[::-1]]] = later[::-1]
            first = order[order < split]
            second = first_of[bucket[first]]
            same = second >= 0
        if same.any():
            yield first[same], second[same]
