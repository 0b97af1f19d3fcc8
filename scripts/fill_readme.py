"""Fill in the README's tables of tools and commands, and docs/commands.md, from the program itself.

Run: ``python scripts/fill_readme.py``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from sota_ml_researcher.server.cli import PROGRAM, cli
from sota_ml_researcher.tools import TOOLS

ROOT = Path(__file__).parents[1]
README, COMMANDS = ROOT / "README.md", ROOT / "docs" / "commands.md"
_WIDTH = 100


def tools_table() -> str:
    """One row per tool: its name and the first sentence a model reads."""
    rows: list[str] = []
    for spec in TOOLS:
        first = inspect.cleandoc(spec.function.__doc__ or "").split("\n\n")[0]
        rows.append(f"| `{spec.function.__name__}` | {' '.join(first.split())} |")
    return "\n".join(rows)


def commands_table() -> str:
    """One row per command: how it is called, and what it does."""
    return "\n".join(
        f"| `{path}` | {command.get_short_help_str(200)} |" for path, command in commands() if path != PROGRAM
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with the words it is called by."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from below(f"{path} {name}", inner)

    return below(PROGRAM, cli)


def commands_page() -> str:
    """The page of all commands: what each says with ``--help``."""
    opening = (
        "# Commands\n\nWhat a person types in a terminal; each says this with `--help`. Written by "
        "`scripts/fill_readme.py`.\n\n"
        "- Nothing is asked without a terminal: what would ask needs `--yes`.\n"
        "- On a terminal states are coloured, unless `NO_COLOR` is set; elsewhere lines are plain. Ids are never cut.\n"
        "- `--json` prints the answers of the tools to stdout; questions and errors go to stderr.\n"
        '- Completion: `eval "$(ml-researcher completion bash)"` in `.bashrc` (zsh: `.zshrc`; fish: '
        "`ml-researcher completion fish | source`).\n"
    )
    return "\n".join(
        [opening, *(f"## `{path}`\n\n```text\n{_help(path, command)}\n```\n" for path, command in commands())]
    )


def _help(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path, terminal_width=_WIDTH, help_option_names=["-h", "--help"])
    return command.get_help(context)


def filled(text: str) -> str:
    """The README with the rows of both tables replaced: those between a table's head and the next blank line."""
    for head, rows in (("tool", tools_table()), ("command", commands_table())):
        pattern = rf"(\| {head} \| does \|\n\|---\|---\|\n).*?\n\n"
        text = re.sub(pattern, lambda match, rows=rows: f"{match[1]}{rows}\n\n", text, flags=re.S)
    return text


def main() -> None:
    """Write both files."""
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    COMMANDS.write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
