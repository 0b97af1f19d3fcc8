"""What a failing test shows of the output that was captured: its end, where the reason stands."""

KEPT_LINES = 40


def shorten_sections(sections: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The captured sections with their last ``KEPT_LINES`` lines each; a background logger can write thousands."""
    return [(name, _last_lines(text)) for name, text in sections]


def _last_lines(text: str) -> str:
    lines = text.splitlines(keepends=True)
    left_out = len(lines) - KEPT_LINES
    return text if left_out <= 0 else f"[{left_out} earlier lines left out]\n" + "".join(lines[-KEPT_LINES:])
