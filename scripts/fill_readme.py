"""Fill in the README's tables of tools and commands, docs/commands.md and tables of clusters.md and benchmarks.md.

Everything comes from the program itself.

Run: ``python scripts/fill_readme.py``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from sota_ml_researcher.backends.servers import Abilities, server_table
from sota_ml_researcher.core.memory import GIB, Batch, Room, estimate, gib
from sota_ml_researcher.models.configs import ModelConfig
from sota_ml_researcher.models.lora_params import model_shape
from sota_ml_researcher.models.model_catalog import config_defaults, load_catalog
from sota_ml_researcher.server.cli import PROGRAM, cli
from sota_ml_researcher.tools import TOOLS

ROOT = Path(__file__).parents[1]
README, COMMANDS, CLUSTERS = ROOT / "README.md", ROOT / "docs" / "commands.md", ROOT / "docs" / "clusters.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
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


# Rows of the table of servers: what a reader calls it, and how it is told.
_SERVER_ROWS: dict[str, Callable[[Abilities], object]] = {
    "training data is read as": lambda can: can.wire,
    "losses": lambda can: can.losses and ", ".join(can.losses),
    "a loss is": lambda can: can.loss_scale and {"sum": "summed", "mean": "averaged"}[can.loss_scale],
    "`apply_to`": lambda can: _layers(can),
    "LoRA alpha": lambda can: can.alpha,
    "ranks": lambda can: can.ranks,
    "optimizers": lambda can: ", ".join(can.optimizers),
    "`grad_clip`": lambda can: can.grad_clip,
    "log-probabilities of prompts": lambda can: can.prompt_logprobs,
    "top-k log-probabilities": lambda can: can.top_k_logprobs,
    "names of sampled sequences": lambda can: can.sequence_ids,
    "older weights sampled while training": lambda can: can.older_weights,
    "a checkpoint sampled after its session": lambda can: can.ended_runs,
    "a state loaded into a new run at once": lambda can: can.loads_new_runs,
    "expiry of checkpoints": lambda can: can.ttl,
    "end of a session": lambda can: can.ends_sessions,
    "one list of all checkpoints": lambda can: can.lists_checkpoints,
    "an adapter is taken home as": lambda can: can.exports,
    "known from": lambda can: can.checked,
}


def _layers(can: Abilities) -> str | None:
    if can.chooses_layers is None:
        return None
    return "as asked" if can.chooses_layers else f"always {', '.join(can.adapts or ())}"


def servers_table_text() -> str:
    """A column for each kind of server whose abilities are known, a row for each ability."""
    kinds = [can for kind, can in server_table().servers.items() if kind != "unknown"]

    def cell(value: object) -> str:
        return {None: "not known", True: "yes", False: "no"}.get(value, str(value)) if value != () else "not known"

    rows = [[what, *(cell(told(can)) for can in kinds)] for what, told in _SERVER_ROWS.items()]
    head = ["server", *(can.title for can in kinds)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def clusters_page(text: str) -> str:
    """The page with its table of servers replaced."""
    return re.sub(r"\| server \|.*?\n\n", lambda _: f"{servers_table_text()}\n\n", text, count=1, flags=re.S)


_MEMORY_FAMILIES = ("meta-llama/", "Qwen/Qwen3", "openai/gpt-oss")


def memory_table() -> str:
    """A row for each shape of the packaged tables that one machine may hold: what training takes on a GPU, in GiB."""
    rows = [["model", "parameters", "weights", "4,096 tokens", "least", "least in nf4"], ["---"] * 6]
    room = Room("cuda", 2, 80 * GIB, 80 * GIB)
    quantised = Room("cuda", 2, 80 * GIB, 80 * GIB, nf4=True)
    for entry in load_catalog().models:
        if entry.config is None or "-VL-" in entry.name or not entry.name.startswith(_MEMORY_FAMILIES):
            continue
        values = {**config_defaults().get(entry.config["model_type"], {}), **entry.config}
        shape = model_shape(ModelConfig(entry.name, values, "table"))
        least = Batch(256, 256, checkpointing=True)
        whole = estimate(shape, room)
        row = [gib(need.total) for need in (whole, estimate(shape, room, least), estimate(shape, quantised, least))]
        rows.append([f"`{entry.name}`", f"{shape.weights / 1e9:.1f}B", gib(whole.weights), *row])
    unique = {tuple(row[1:]): row for row in reversed(rows)}.values()
    return "\n".join(f"| {' | '.join(row)} |" for row in reversed(unique))


def benchmarks_page(text: str) -> str:
    """The page with its table of memory replaced."""
    return re.sub(r"\| model \| parameters .*?\n\n", lambda _: f"{memory_table()}\n\n", text, count=1, flags=re.S)


def main() -> None:
    """Write the four files."""
    BENCHMARKS.write_text(benchmarks_page(BENCHMARKS.read_text(encoding="utf-8")), encoding="utf-8")
    CLUSTERS.write_text(clusters_page(CLUSTERS.read_text(encoding="utf-8")), encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    COMMANDS.write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
