"""The words of many texts at once, as hashes: for near duplicates, benchmarks and languages, in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Words, and each character of scripts that are written without spaces.
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+")
_LETTERS = b"abcdefghijklmnopqrstuvwxyz0123456789_"
_IS_WORD = np.zeros(256, dtype=np.bool_)
_IS_WORD[list(_LETTERS)] = True
_IS_WORD[128:] = True
# Odd, so that it has an inverse modulo 2^64, in which the hashes of positions are undone.
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)
# What the arrays behind a block take fits into a processor's cache.
_BLOCK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Words:
    """The words of some texts, lower case and in order.

    Attributes:
        hashes: Of each word, 64 bits, shape [words].
        offsets: Where each text begins among them, shape [texts + 1].
        longest: Bytes of each text's longest word, shape [texts]; 0 where there is none.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    longest: NDArray[np.int64]

    def ngrams(self, size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Order-sensitive hashes of every ``size`` words in a row, and the offsets of each text's."""
        counts = np.diff(self.offsets)
        most = max(0, len(self.hashes) - size + 1)
        mixed = np.zeros(most, dtype=np.uint64)
        for i in range(size):
            mixed ^= self.hashes[i : i + most]
            mixed *= _MIX
            mixed ^= mixed >> np.uint64(29)
        fits = np.maximum(counts - size + 1, 0)
        offsets = np.concatenate([[0], np.cumsum(fits)])
        text = np.repeat(np.arange(len(counts)), fits)
        position = np.arange(int(offsets[-1])) - offsets[text] + self.offsets[text]
        return mixed[position], offsets


def words_in(texts: Sequence[str]) -> Words:
    """The words of some texts; runs of letters, digits and ``_``, or single characters of Chinese and the like."""
    blocks = [_words(block) for block in _blocks([_plain(text) for text in texts])]
    if not blocks:
        return Words(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.int64))
    hashes, counts, longest = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Words(hashes, np.concatenate([[0], np.cumsum(counts)]), longest)


def _plain(text: str) -> bytes:
    """A text as bytes in which a word is a run of `_IS_WORD`, also of letters that are not ASCII."""
    if text.isascii():
        return text.lower().encode()
    return " ".join(_WORD.findall(text.lower())).encode("utf-8", "surrogatepass")


def _blocks(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The texts in groups of not much more than `_BLOCK_BYTES`, which bounds the arrays behind each."""
    first = size = 0
    for i, text in enumerate(texts):
        if size and size + len(text) > _BLOCK_BYTES:
            yield texts[first:i]
            first, size = i, 0
        size += len(text) + 1
    if size:
        yield texts[first:]


def _words(texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of all words, how many each text has, and the bytes of its longest."""
    raw = np.frombuffer(b" ".join([b"", *texts, b""]), dtype=np.uint8)  # no word touches either end
    borders = np.flatnonzero(np.diff(_IS_WORD[raw]))
    starts, ends = borders[::2] + 1, borders[1::2] + 1
    power, inverse = _powers(1 << (len(raw) - 1).bit_length())
    sums = np.cumsum(raw * power[: len(raw)])
    hashes = (sums[ends - 1] - sums[starts - 1]) * inverse[starts]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    edges = np.cumsum([1, *(len(text) + 1 for text in texts)])
    first = np.searchsorted(starts, edges)
    counts = np.diff(first)
    longest = np.zeros(len(texts), dtype=np.int64)
    some = counts > 0
    if some.any():
        longest[some] = np.maximum.reduceat(ends - starts, first[:-1][some])
    return hashes, counts, longest


@lru_cache(maxsize=2)
def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of `_BASE` modulo 2^64, and their inverses."""

    def row(base: int) -> NDArray[np.uint64]:
        powers = np.full(length, np.uint64(base), dtype=np.uint64)
        powers[0] = 1
        return np.cumprod(powers, dtype=np.uint64)

    return row(_BASE), row(pow(_BASE, -1, 2**64))
