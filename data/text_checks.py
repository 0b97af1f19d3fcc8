"""Damage and leftovers in the text of a row."""

from __future__ import annotations

import re
from collections.abc import Iterator

_REPLACEMENT = "�"
_MOJIBAKE = re.compile(r"Ã[\x80-\xBF©¨ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§]|â€[™œ\x9d“”¢¦˜]|Â[ ©®°±·»«]")
# What chat formats write around turns; a tag that HTML has too counts at an end alone.
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text|end)\|>"
    r"|<(?:start|end)_of_turn>|\[/INST\]|<</SYS>>|<｜(?:User|Assistant|end▁of▁sentence)｜>|</s>$",
    re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def text_problems(text: str) -> Iterator[str]:
    """The kinds of damage in a text: of encoding, and markers that another program left."""
    if not text.isascii():
        if _REPLACEMENT in text:
            yield "replacement_character"
        if _MOJIBAKE.search(text):
            yield "mojibake"
    if _CONTROL.search(text):
        yield "control_character"
    if ("<" in text or "[" in text) and _MARKER.search(text):
        yield "chat_marker"
