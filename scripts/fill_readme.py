"""Fill in the README's table of tools from the tools themselves. Run: ``python scripts/fill_readme.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from sota_ml_researcher.tools import TOOLS

README = Path(__file__).parents[1] / "README.md"


def table() -> str:
    """One row per tool: its name and the first sentence a model reads."""
    rows: list[str] = []
    for spec in TOOLS:
        first = inspect.cleandoc(spec.function.__doc__ or "").split("\n\n")[0]
        rows.append(f"| `{spec.function.__name__}` | {' '.join(first.split())} |")
    return "\n".join(rows)


def main() -> None:
    """Replace the rows between the table's head and the next blank line."""
    text = README.read_text(encoding="utf-8")
    filled = re.sub(r"(\| tool \| does \|\n\|---\|---\|\n).*?\n\n", lambda m: f"{m[1]}{table()}\n\n", text, flags=re.S)
    README.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
