# pyright: basic
# Reason: tokenizers are untyped.
"""When a continuation ends: stop tokens by table, stop strings by decoding the tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MARGIN_TOKENS = 4


class Stops:
    """Stop conditions of the rows of one batch; rows of one request share theirs."""

    def __init__(
        self, requests: Sequence[tuple[frozenset[int], tuple[str, ...]]], vocabulary: int, tokenizer: Any
    ) -> None:
        self._table = np.zeros((len(requests), vocabulary), dtype=bool)
        self._strings = [strings for _, strings in requests]
        self._tokenizer = tokenizer
        for index, (tokens, _) in enumerate(requests):
            self._table[index, [token for token in tokens if 0 <= token < vocabulary]] = True

    def by_token(self, request_B: NDArray[np.int64], tokens_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows just drew one of their stop tokens."""
        return self._table[request_B, tokens_B]

    def by_string(self, request: int, tokens: Sequence[int]) -> bool:
        """Whether the text of ``tokens`` now ends a stop string.

        Every token is at least one byte, so a stop string of n bytes that was completed just now lies within the
        last n tokens; a few more keep the decoder from dropping a space at the start of the window.
        """
        strings = self._strings[request]
        if not strings:
            return False
        longest = max(len(text.encode()) for text in strings)
        tail = self._tokenizer.decode(list(tokens[-(longest + _MARGIN_TOKENS) :]), skip_special_tokens=False)
        return any(text in tail for text in strings)

    def has_strings(self, request: int) -> bool:
        """Whether a request has stop strings at all."""
        return bool(self._strings[request])
