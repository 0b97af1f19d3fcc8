"""The MCP server: our tools, resources and completions on the SDK's `MCPServer`.

Nothing heavy is imported here: a client waits for this process before it can do anything.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sqlite3
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, cast

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import Tool, ToolAnnotations
from pydantic import ValidationError

from sota_ml_researcher.core.errors import ResearcherError
from sota_ml_researcher.core.suggestions import did_you_mean
from sota_ml_researcher.server import resources
from sota_ml_researcher.tools import TOOLS

INSTRUCTIONS = (
    "Expert post-training research: LoRA fine-tuning on Tinker, on this machine, or on a cluster. "
    "Before a run: check_dataset, then validate_capacity. Start with start_sft, start_dpo or start_grpo (validate_only "
    "shows the plan), follow with wait_for_job, try the result with sample_model. doctrine://{topic} holds the "
    "research facts with their sources; template://{kind} holds configs that run as they are. Numbers come from the "
    "tools: never invent one."
)

logger = logging.getLogger(__name__)


class ResearcherServer(MCPServer[Any]):
    """`MCPServer` whose argument errors name the argument, what was given, and the known names."""

    async def list_tools(self) -> list[Tool]:
        """The tools with the leanest schemas that say the same: every client pays for them in its context."""
        tools = await super().list_tools()
        return [
            tool.model_copy(
                update={"input_schema": lean(tool.input_schema), "output_schema": lean(tool.output_schema or {})}
            )
            for tool in tools
        ]

    async def call_tool(self, name: str, arguments: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Call a tool; wrong arguments come back as sentences instead of a validator's dump."""
        try:
            return await super().call_tool(name, arguments, *rest, **named)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                raise ToolError(_argument_problems(name, arguments, cause)) from None
            if isinstance(cause, ToolError):
                raise ToolError(str(cause)) from None  # without the SDK's "Error executing tool" in front
            if str(error).startswith("Unknown tool"):
                fix = did_you_mean(name, [tool.function.__name__ for tool in TOOLS]) or "tools/list shows them"
                raise ToolError(f"there is no tool '{name}'. {fix}") from None
            raise


def _nullable(fields: dict[str, Any]) -> dict[str, Any]:
    """``anyOf`` a plain type and null, in its short form; and without ``additionalProperties: true``, the default."""
    fields = {k: v for k, v in fields.items() if (k, v) != ("additionalProperties", True)}
    options: list[dict[str, Any]] = fields.get("anyOf") or []
    plain = [option for option in options if option != {"type": "null"}]
    if len(options) != 2 or len(plain) != 1 or not isinstance(plain[0].get("type"), str) or "enum" in plain[0]:
        return fields
    return {**{k: v for k, v in fields.items() if k != "anyOf"}, **plain[0], "type": [plain[0]["type"], "null"]}


def lean(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without titles, null defaults and descriptions of our own classes."""

    def slim(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [slim(item) for item in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        fields = _nullable(cast("dict[str, Any]", node))
        kept = fields if names else {k: v for k, v in fields.items() if k != "title" and (k, v) != ("default", None)}
        return {k: slim(v, names=k in {"properties", "$defs"} and not names) for k, v in kept.items()}

    slimmed = slim(schema)
    for definition in [slimmed, *slimmed.get("$defs", {}).values()]:
        definition.pop("description", None)
    return slimmed


def build_server() -> ResearcherServer:
    """The server with everything registered, ready to run on a transport."""
    server = ResearcherServer(
        "ml-researcher",
        title="ML researcher",
        version=version("sota-ml-researcher"),
        instructions=INSTRUCTIONS,
        log_level="WARNING",
    )
    for tool in TOOLS:
        server.add_tool(
            _guarded(tool.function),
            title=tool.title,
            description=_description(tool.function),
            annotations=ToolAnnotations(
                title=tool.title,
                read_only_hint=tool.read_only,
                destructive_hint=tool.destructive,
                idempotent_hint=tool.idempotent,
                open_world_hint=tool.open_world,
            ),
        )
    resources.register(server)
    return server


def _description(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors meant for the reader pass as they are; a crash becomes one sentence and a traceback in the log."""

    @functools.wraps(function)
    async def guarded_async(*args: Any, **named: Any) -> Any:
        try:
            return await function(*args, **named)
        except ResearcherError as error:
            raise ToolError(str(error)) from error

    @functools.wraps(function)
    def guarded(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except ResearcherError as error:
            raise ToolError(str(error)) from error
        except (OSError, sqlite3.Error) as error:
            raise ToolError(f"the system refused: {error.__class__.__name__}: {error}") from error

    return guarded_async if inspect.iscoroutinefunction(function) else guarded


def _argument_problems(name: str, arguments: dict[str, Any], error: ValidationError) -> str:
    known = list(inspect.signature(next(t.function for t in TOOLS if t.function.__name__ == name)).parameters)
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_context=False):
        argument = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            problems.append(f"{argument} is required and missing")
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            problems.append(f"{argument}: {message}, got {problem['input']!r:.80}")
    strays = [key for key in arguments if key not in known]
    problems += [f"there is no argument '{key}'. {did_you_mean(key, known)}".rstrip() for key in strays]
    return f"{name}: " + "; ".join(problems)
