"""Rewards that a rule decides: exact match, pattern, format, length. Pure functions to a score of 0 to 1."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .response_text import after_thinking, blocks_in


def exact(response: str, answer: str, *, ignore_case: bool = False) -> float:
    """1 if the response after its thinking, or what its answer tags hold, is the answer but for outer white space."""
    after = after_thinking(response)
    said = [after, *re.findall(r"<answer>(.*?)</answer>", after, re.DOTALL)][-1].strip()
    wanted = answer.strip()
    return float(said.casefold() == wanted.casefold() if ignore_case else said == wanted)


def matches(response: str, pattern: str) -> float:
    """1 if the pattern matches the whole response (``.`` matches line ends too)."""
    return float(re.fullmatch(pattern, response.strip(), re.DOTALL) is not None)


def has_tags(response: str, tags: Sequence[str]) -> float:
    """1 if the response is these tags in this order, each once and none empty, with nothing between or around them."""
    body = r"\s*".join(rf"<{re.escape(tag)}>(.+?)</{re.escape(tag)}>" for tag in tags)
    match = re.fullmatch(rf"\s*{body}\s*", response, re.DOTALL)
    once = all(response.count(f"<{tag}>") == 1 and response.count(f"</{tag}>") == 1 for tag in tags)
    return float(match is not None and once and all(part.strip() for part in match.groups()))


def fits_schema(response: str, schema: Mapping[str, Any]) -> float:
    """1 if the response (or its one fenced block) is JSON that the schema accepts."""
    import jsonschema

    said = after_thinking(response)
    blocks = blocks_in(said)
    try:
        value = json.loads(blocks[0].text if len(blocks) == 1 else said)
    except ValueError:
        return 0.0
    validator: Any = jsonschema.Draft202012Validator(dict(schema))
    return float(validator.is_valid(value))


def length_score(tokens: int, *, target_tokens: int, max_tokens: int) -> float:
    """1 up to ``target_tokens``, falling linearly to 0 at ``max_tokens``."""
    if tokens <= target_tokens:
        return 1.0
    return max(0.0, (max_tokens - tokens) / max(1, max_tokens - target_tokens))


def overlong_penalty(tokens: int, *, max_tokens: int, buffer: int) -> float:
    """0 until the last ``buffer`` tokens before the limit, then linearly down to -1 at it (DAPO, eq. 13)."""
    over = tokens - (max_tokens - buffer)
    return -min(1.0, max(0.0, over / buffer)) if buffer else 0.0
