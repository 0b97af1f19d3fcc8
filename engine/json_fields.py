"""Reading the fields of a JSON object one by one, each as what it must be; what is wrong is said by name."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np

from .interface import IntArray, RequestRejectedError

MOST_TOKEN = 2**31 - 1
MOST_SEED = 2**64 - 1


class Fields:
    """The fields of a JSON object that are set, each read as what it must be.

    Args:
        content: The object.
        where: What to call it in a refusal.
        known: The names it may have; None leaves them unchecked.

    Raises:
        RequestRejectedError: If it has another name.
    """

    def __init__(self, content: Mapping[str, Any], where: str, known: Collection[str] | None = None) -> None:
        self._content = {key: value for key, value in content.items() if value is not None}
        self._where = where
        unknown = [key for key in content if known is not None and key not in known]
        if unknown:
            raise RequestRejectedError(f"{where} has a field '{unknown[0][:80]}' that this engine does not know")

    def get(self, key: str) -> Any:
        """A field as it came, or None."""
        return self._content.get(key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A field that must be an object; one left out is empty."""
        value = self._content.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return cast("dict[str, Any]", value)

    def text(self, key: str) -> str:
        """A field that must be there and be text."""
        value = self._content.get(key)
        if value is None:
            raise RequestRejectedError(f"{self._where} lacks '{key}'")
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def optional_text(self, key: str) -> str | None:
        """A field that is text where it is there."""
        return self.text(key) if key in self._content else None

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self._content.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def number(self, key: str, default: float) -> float:
        """A field that is a finite number."""
        value = self._content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        try:
            number = float(value)
        except OverflowError as error:
            raise self._wrong(key, "a number of ordinary size") from error
        if not math.isfinite(number):
            raise self._wrong(key, "a finite number")
        return number

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """A field that is a whole number from ``least`` to ``most``."""
        value = self._content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def optional_whole(self, key: str, least: int, most: int) -> int | None:
        """The same, None where it is left out."""
        return self.whole(key, 0, least, most) if key in self._content else None

    def _wrong(self, key: str, wanted: str) -> RequestRejectedError:
        return RequestRejectedError(f"'{key}' must be {wanted}, got {shown(self._content.get(key))}")


def shown(value: object) -> str:
    """A value as JSON has it, cut to what a sentence can hold."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def tokens_of(values: object, where: str) -> IntArray:
    """A list of token ids.

    Raises:
        RequestRejectedError: If it is not a list, or something in it is not a token id.
    """
    if not isinstance(values, list):
        raise RequestRejectedError(f"{where} must be a list of token ids, got {shown(values)}")
    tokens = cast("list[Any]", values)
    if not set(map(type, tokens)) <= {int}:
        wrong = next(token for token in tokens if type(token) is not int)
        raise RequestRejectedError(f"{where} must hold token ids, which are whole numbers, got {shown(wrong)}")
    if tokens and not (min(tokens) >= 0 and max(tokens) <= MOST_TOKEN):
        raise RequestRejectedError(f"{where} has a number that is no token id: from 0 to {MOST_TOKEN}")
    return np.asarray(tokens, dtype=np.int64)


def integers_of(values: object, where: str, least: int) -> IntArray:
    """A list of whole numbers, none below ``least``.

    Raises:
        RequestRejectedError: If it is not one.
    """
    every = cast("list[Any]", values)
    if not isinstance(values, list) or not set(map(type, every)) <= {int}:
        raise RequestRejectedError(f"{where} must be a list of whole numbers")
    if every and not (min(every) >= least and max(every) <= MOST_TOKEN):
        raise RequestRejectedError(f"{where} has a number outside {least} to {MOST_TOKEN}")
    return np.asarray(every, dtype=np.int64)
