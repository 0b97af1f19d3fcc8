"""MCP prompts that are the plugin's slash commands, for clients without plugins: one text serves both."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import PromptArgument

# A command is offered where its tool is: a prompt that names a missing tool would only mislead.
TOOL_OF_COMMAND = {
    "plan_experiment": "start_sft",
    "run_sft": "start_sft",
    "run_dpo": "start_dpo",
    "run_grpo": "start_grpo",
    "run_eval": "run_judge_eval",
    "analyze_run": "analyze_run",
    "validate_capacity": "validate_capacity",
}
_ARGUMENTS = "$ARGUMENTS"


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: what it does in one line, what may follow it, and the text the model gets."""

    name: str
    description: str
    argument_hint: str
    text: str

    def filled(self, arguments: str) -> str:
        """The text with what the user wrote after the command."""
        return self.text.replace(_ARGUMENTS, arguments.strip() or "none")


def register(server: MCPServer[Any], tools: Collection[str]) -> None:
    """Add a prompt for each command whose tool is among ``tools``."""
    for name, tool in TOOL_OF_COMMAND.items():
        if tool in tools:
            server.add_prompt(_prompt(read_command(name)))


@cache
def read_command(name: str) -> Command:
    """One command, from its markdown file."""
    text = (files("sota_ml_researcher.commands") / f"{name}.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    fields = dict(re.findall(r'(?m)^([\w-]+): "?(.*?)"?$', head))
    return Command(name, fields["description"], fields["argument-hint"], body.strip())


def _prompt(command: Command) -> Prompt:
    def fill(arguments: str = "") -> str:
        return command.filled(arguments)

    hint = PromptArgument(
        name="arguments", description=f"What would follow the command: {command.argument_hint}", required=False
    )
    return Prompt(
        name=command.name,
        title=command.name.replace("_", " ").capitalize(),
        description=command.description,
        arguments=[hint],
        fn=fill,
        context_kwarg=None,
    )
