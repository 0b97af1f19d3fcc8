# pyright: basic
# Reason: tokenizers are untyped.
"""When a continuation ends: stop tokens by membership, stop strings by decoding the tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MARGIN_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Stops:
    """Stop conditions of one request."""

    tokens: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` is a stop token, or their text now ends a stop string.

        Every token is at least one byte, so a stop string of n bytes that was completed just now lies within the
        last n tokens; a few more keep the decoder from dropping a space at the start of the window.
        """
        if tokens[-1] in self.tokens:
            return True
        if not self.strings:
            return False
        longest = max(len(text.encode()) for text in self.strings)
        tail = self.tokenizer.decode(list(tokens[-(longest + _MARGIN_TOKENS) :]), skip_special_tokens=False)
        return any(text in tail for text in self.strings)
