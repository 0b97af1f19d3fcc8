"""Text that a data row, a model, a program or a server wrote, kept apart from our own words wherever both are shown.

`foreign` puts it between the marks ⟪ and ⟫, which it can neither hold nor close: they are quotes in a log or on a
terminal, and in a tool's answer `fenced` turns them into a tag with a number drawn for that answer alone.
"""

from __future__ import annotations

import re
import secrets

_OPEN, _CLOSE = "⟪", "⟫"
_MARKS = re.compile(f"([{_OPEN}{_CLOSE}])")
# Terminal controls, characters that reorder or hide a line, and halves of surrogate pairs; not \t, \n and \r\n.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]|\r(?!\n)"
)
# A name that needs no fence: it is one word, so it can say nothing.
_WORD = re.compile(r"[\w./:@~+=,#%\\-]{1,200}")


def visible(text: str) -> str:
    """The text with control characters, ANSI escapes and direction overrides spelled out."""
    return _UNSEEN.sub(_spelled, text)


def foreign(text: object, limit: int = 300, *, lines: bool = False) -> str:
    """Somebody else's text between marks, cut at ``limit`` characters.

    Args:
        text: The text.
        limit: Characters shown at most; what is left out is counted.
        lines: Keep its lines, in a block of their own; otherwise line breaks are spelled out.
    """
    whole = str(text)
    shown = visible(whole[:limit])
    shown = _MARKS.sub(_spelled, shown)
    if len(whole) > limit:
        shown += f"… ({len(whole) - limit:,} more characters)"
    if lines:
        return f"{_OPEN}\n{shown}\n{_CLOSE}"
    return f"{_OPEN}{one_line(shown)}{_CLOSE}"


def named(name: object, limit: int = 200) -> str:
    """A name that somebody else chose: as it is if it is a single word, else as `foreign` text."""
    text = str(name)
    return text if len(text) <= limit and _WORD.fullmatch(text) else foreign(text, limit)


def has_foreign(text: str) -> bool:
    """Whether a part of the text stands between marks already."""
    return _OPEN in text


def one_line(text: str) -> str:
    """The text with its line breaks spelled out."""
    return visible(text).replace("\r\n", "\\n").replace("\n", "\\n")


def new_tag() -> str:
    """The name of a fence that no text written before can close."""
    return f"untrusted-data-{secrets.token_hex(4)}"


def fenced(text: str, tag: str) -> str:
    """The text with the marks of `foreign` turned into ``<tag>`` and ``</tag>``; a fence left open is closed."""
    parts: list[str] = []
    inside = False
    for part in _MARKS.split(text):
        if part == (_CLOSE if inside else _OPEN):
            parts.append(f"</{tag}>" if inside else f"<{tag}>")
            inside = not inside
        else:
            parts.append(_MARKS.sub(_spelled, part))
    return "".join(parts) + (f"</{tag}>" if inside else "")


def fitted(text: str, limit: int, tag: str) -> str:
    """`fenced`, in ``limit`` characters: it is cut before its last lines (``Report:``, ``Files:``, ``Next:``)."""
    whole = fenced(text, tag)
    if len(whole) <= limit:
        return whole
    body, tail = _without_tail(text)
    last = fenced(tail, tag)
    if len(last) > limit // 2:
        last = last[: limit // 2 - 1] + "…"
    low, high = 0, len(body)
    while low < high:  # the most of the body that fits, tags and all
        middle = (low + high + 1) // 2
        fits = len(fenced(body[:middle] + "…", tag)) + len(last) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return fenced(body[:low] + "…", tag) + last


def _without_tail(text: str) -> tuple[str, str]:
    own = max(text.rfind(_OPEN), text.rfind(_CLOSE)) + 1
    lines = text[own:].split("\n")
    tail = len(lines)
    while tail > 1 and lines[tail - 1].startswith(("Report: ", "Files: ", "Next: ")):
        tail -= 1
    kept = "".join(f"\n{line}" for line in lines[tail:])
    return text[: len(text) - len(kept)], kept


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
