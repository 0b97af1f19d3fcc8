"""Which language a text is in, by its script and by the small words that only one language has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .words import Words, words_in

UNKNOWN = 0
# Frequent words, none of them in two lists.
_SMALL_WORDS: Mapping[str, str] = {
    "English": "the of and is are was were that with this which from they have has been would their what you how",
    "German": "der und das ist nicht ein eine mit sich auf für dem den des wird sind auch werden wie oder ich",
    "French": "le les des est dans une pour qui sur par pas vous avec sont être cette aux ces nous mais",
    "Spanish": "el los las del una por con para como más pero sus este esta está ser son muy también hay cuando",
    "Italian": "il di che della per non una sono nel gli anche più con questo alla delle dei essere può",
    "Portuguese": "o os não uma com são ao mais dos da das pelo pela também você isso seu sua foi em",
    "Dutch": "het een van niet zijn voor dat wordt ook naar aan bij deze worden kan maar hebben uit om",
    "Polish": "się nie jest że jak przez oraz ale może być czy tego które dla po są który od ich",
    "Turkish": "ve bir bu için ile çok daha olarak olan gibi kadar ancak değil sonra veya her ise",
    "Indonesian": "yang dan untuk dengan ini adalah dalam tidak dari pada itu akan juga dapat oleh sebagai",
    "Vietnamese": "và của là có được cho trong các không một với những để này khi từ người đã",
}
# First and last character, in steps of 64.
_SCRIPTS: Mapping[str, tuple[int, int]] = {
    "Greek": (0x380, 0x3FF), "Russian or another in Cyrillic": (0x400, 0x4FF), "Hebrew": (0x5C0, 0x5FF),
    "Arabic or another in its script": (0x600, 0x6FF), "Hindi or another of India": (0x900, 0xDFF),
    "Thai": (0xE00, 0xE7F), "Japanese": (0x3040, 0x30FF), "Chinese": (0x4E00, 0x9FFF), "Korean": (0xAC00, 0xD7BF),
}  # fmt: skip
_STEP_BITS = 6
LANGUAGES = ("", *_SMALL_WORDS, *_SCRIPTS)
_LEAST_SMALL_WORDS = 5
_LEAST_SHARE = 0.1
_LEAST_LETTERS = 20
_HEAD = 2000
_FILTER_BITS = 16


class LanguageDetector:
    """Languages of texts; one that is short or mixed is `UNKNOWN`."""

    def __init__(self) -> None:
        words = [(word, i) for i, small in enumerate(_SMALL_WORDS.values(), 1) for word in small.split()]
        hashes = words_in([word for word, _ in words]).hashes
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._language = np.array([i for _, i in words])[order]
        # Most words are in none of the lists: one look into this table says so.
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        self._filter[hashes >> np.uint64(64 - _FILTER_BITS)] = True
        self._script = np.zeros(0x110000 >> _STEP_BITS, dtype=np.int64)
        for i, (first, last) in enumerate(_SCRIPTS.values(), len(_SMALL_WORDS) + 1):
            self._script[first >> _STEP_BITS : (last >> _STEP_BITS) + 1] = i

    def detect(self, texts: Sequence[str], words: Words) -> NDArray[np.int8]:
        """For each text its place in `LANGUAGES`, shape [texts]."""
        hit = np.flatnonzero(self._filter[words.hashes >> np.uint64(64 - _FILTER_BITS)])
        place = np.minimum(np.searchsorted(self._hashes, words.hashes[hit]), len(self._hashes) - 1)
        is_small = self._hashes[place] == words.hashes[hit]
        hit, place = hit[is_small], place[is_small]
        sizes = np.diff(words.offsets)
        text = np.searchsorted(words.offsets, hit, side="right") - 1
        kinds = len(_SMALL_WORDS) + 1
        counts = np.bincount(text * kinds + self._language[place], minlength=len(texts) * kinds)
        counts = counts.reshape(len(texts), kinds)
        best = counts.max(axis=1, initial=0)
        second = np.sort(counts, axis=1)[:, -2]
        sure = (best >= _LEAST_SMALL_WORDS) & (best >= 2 * second) & (best >= _LEAST_SHARE * sizes)
        found = np.where(sure, counts.argmax(axis=1), UNKNOWN).astype(np.int8)
        for i, one in enumerate(texts):
            if not one.isascii() and (script := self._script_of(one)) != UNKNOWN:
                found[i] = script
        return found

    def _script_of(self, text: str) -> int:
        """The script of more than half of a text's letters, Latin aside."""
        points = np.frombuffer(text[:_HEAD].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        counts = np.bincount(self._script[points >> _STEP_BITS], minlength=len(LANGUAGES))
        counts[UNKNOWN] = 0
        if counts.sum() < _LEAST_LETTERS or 2 * counts.sum() < np.count_nonzero(points > 64):
            return UNKNOWN
        kana, han = LANGUAGES.index("Japanese"), LANGUAGES.index("Chinese")
        if 10 * counts[kana] > counts[han]:  # Japanese is written with both
            counts[kana] += counts[han]
        return int(counts.argmax())
