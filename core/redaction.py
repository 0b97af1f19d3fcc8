"""No key leaves this process, and no hidden character: what everything passes that is answered, printed or logged."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Any, cast

from .foreign_text import visible

REMOVED = "[key removed]"
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
# A shorter value is a word or a number that stands in honest texts too.
_SHORTEST = 8
# Keys of the services met here and of those whose keys stand beside them: Tinker, Anthropic and OpenAI, Hugging Face,
# GitHub and GitLab, AWS, Google, Slack, Stripe, npm, Weights & Biases.
_KEYS = (
    r"\b(?:tml-[A-Za-z0-9_-]{12,}|sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|[rs]k_live_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{36}|wandb_v1_[A-Za-z0-9_]{20,})"
)
_KEY = re.compile(_KEYS)
_KEY_HEADS = ("tml-", "sk-", "hf_", "gh", "glpat-", "AKIA", "ASIA", "AIza", "xox", "k_live_", "npm_", "wandb_v1_")
# Also what stands after "Bearer" or between "//user:" and "@".
_SHAPED = re.compile(_KEYS + r"|(?i:(?<=\bbearer )[A-Za-z0-9._~+/-]{12,}=*)|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)")
_known: set[str] = set()


def keep_secret(value: str) -> None:
    """Remember a key that stands in no environment variable, such as one read from a file."""
    if len(value) >= _SHORTEST:
        _known.add(value)


def redacted(text: str, secrets: Sequence[str] | None = None) -> str:
    """The text without the keys of this process and without anything of a key's shape.

    Whoever has many texts to look through asks for the `known_secrets` once and hands them in.
    """
    for value in known_secrets() if secrets is None else secrets:
        if value in text:
            text = text.replace(value, REMOVED)
    return _SHAPED.sub(REMOVED, text)


def keys_in(text: str) -> list[str]:
    """What has the shape of a service's key in a text."""
    return _KEY.findall(text) if any(head in text for head in _KEY_HEADS) else []


def known_secrets() -> list[str]:
    """The keys of this process: those of its environment and those that were read from files, the longest first."""
    of_environment = {
        value for name, value in os.environ.items() if len(value) >= _SHORTEST and _SECRET_NAME.search(name)
    }
    return sorted(of_environment | _known, key=len, reverse=True)  # a key may be the beginning of another


def publishable(value: Any, secrets: Sequence[str] | None = None) -> Any:
    """A text, or JSON's lists and mappings of texts, without keys and with hidden characters spelled out."""
    secrets = known_secrets() if secrets is None else secrets
    if isinstance(value, str):
        return redacted(visible(value), secrets)
    if isinstance(value, list | tuple):
        return [publishable(item, secrets) for item in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {publishable(key, secrets): publishable(item, secrets) for key, item in fields.items()}
    return value


class _Redacting(logging.Formatter):
    """Another formatter's lines, tracebacks included, without keys."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._inner.format(record))


def redact_logs() -> None:
    """Let no handler of the root logger write a key from now on."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, _Redacting):
            handler.setFormatter(_Redacting(handler.formatter or logging.Formatter()))
