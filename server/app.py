"""The MCP server: our tools, resources and completions on the SDK's `MCPServer`.

Nothing heavy is imported here: a client waits for this process before it can do anything.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import server as sdk_server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, Resource, Tool, ToolAnnotations
from pydantic import ValidationError

from ..core.errors import ResearcherError, did_you_mean
from ..core.extras import not_installed
from ..tools import TOOLS, ToolSpec
from . import prompts, resources

INSTRUCTIONS = (
    "Expert post-training research: LoRA fine-tuning on Tinker, on this machine, or on a cluster. "
    "Before a run: check_dataset, then validate_capacity. Start with start_sft, start_dpo or start_grpo (validate_only "
    "shows the plan), follow with wait_for_job, try the result with sample_model. doctrine://{topic} holds the "
    "research facts with their sources; template://{kind} holds configs that run as they are. Numbers come from the "
    "tools: never invent one."
)

# Set by the plugin's launcher: after an update of the plugin the environment holds the server of before.
PLUGIN_VARIABLE = "ML_RESEARCHER_PLUGIN_VERSION"

logger = logging.getLogger(__name__)


class ResearcherServer(MCPServer[Any]):
    """`MCPServer` whose argument errors name the argument, what was given, and the known names."""

    async def list_tools(self) -> list[Tool]:
        """The tools with the leanest schemas that say the same: every client pays for them in its context."""
        tools = await super().list_tools()
        return [
            tool.model_copy(
                update={
                    "input_schema": lean(tool.input_schema),
                    "output_schema": lean(tool.output_schema or {}, answers=True),
                }
            )
            for tool in tools
        ]

    async def list_resources(self) -> list[Resource]:
        """Every doctrine page and template by name; read when asked for, not at start-up."""
        return [*await super().list_resources(), *await anyio.to_thread.run_sync(resources.listed)]

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None, *rest: Any, **named: Any) -> Any:
        """One prompt, filled; an unknown name or argument is a sentence, not an internal error."""
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        if name not in prompts:
            fix = did_you_mean(name, prompts) or f"There are: {', '.join(prompts)}"
            raise MCPError(code=INVALID_PARAMS, message=f"there is no prompt '{name}'. {fix}")
        taken = [argument.name for argument in prompts[name].arguments or []]
        if strays := [key for key in arguments or {} if key not in taken]:
            raise MCPError(
                code=INVALID_PARAMS, message=f"{name}: there is no argument '{strays[0]}'. It takes: {', '.join(taken)}"
            )
        return await super().get_prompt(name, arguments, *rest, **named)

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


def lean(schema: dict[str, Any], *, answers: bool = False) -> dict[str, Any]:
    """A JSON schema without titles, null defaults and descriptions of our own classes.

    Of an answer the outline is enough: its properties and their types. All are always there, so none is named again
    as required, and what lies inside a list or an object is read from the answer itself.
    """

    def slim(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [slim(item) for item in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        fields = cast("dict[str, Any]", node)
        kept = fields if names else _nullable({k: v for k, v in fields.items() if _says_something(k, v)})
        return {k: slim(v, names=k in {"properties", "$defs"} and not names) for k, v in kept.items()}

    if answers:
        return {"type": "object", "properties": {k: _outline(v) for k, v in schema.get("properties", {}).items()}}

    slimmed = slim(schema)
    for definition in [slimmed, *slimmed.get("$defs", {}).values()]:
        definition.pop("description", None)
    return slimmed


def _outline(schema: dict[str, Any]) -> dict[str, Any]:
    """A property's type alone."""
    options = [*schema.get("anyOf", []), schema]
    kinds = ["object" if "$ref" in one else one["type"] for one in options if "type" in one or "$ref" in one]
    return {"type": kinds[0] if len(kinds) == 1 else kinds} if kinds else {}


_SAYS_NOTHING = (("additionalProperties", True), ("default", None))


def _says_something(key: str, value: Any) -> bool:
    return key != "title" and (key, value) not in _SAYS_NOTHING


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """``anyOf`` of one plain type and null as the list of types it is."""
    match schema.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}]:
            return {**{k: v for k, v in schema.items() if k != "anyOf"}, **rest, "type": [kind, "null"]}
        case _:
            return schema


def annotations_of(tool: ToolSpec) -> ToolAnnotations:
    """What a client is told; a hint that is the protocol's default, or idle for a reading tool, is left out."""
    return ToolAnnotations(
        read_only_hint=tool.read_only,
        destructive_hint=None if tool.read_only or tool.destructive else False,
        idempotent_hint=True if tool.idempotent and not tool.read_only else None,
        open_world_hint=None if tool.open_world else False,
    )


def build_server() -> ResearcherServer:
    """The server with everything registered, ready to run on a transport."""
    # The command line has set up logging; the SDK would import rich (20 ms) for a handler that is then not installed.
    sdk_server.configure_logging = _logging_is_set_up  # pyright: ignore[reportPrivateImportUsage]
    server = ResearcherServer(
        "ml-researcher",
        title="ML researcher",
        version=version("sota-ml-researcher"),
        instructions=INSTRUCTIONS + _version_note(),
        log_level="WARNING",
    )
    for tool in TOOLS:
        server.add_tool(
            _guarded(tool.function),
            title=tool.title,
            description=_description(tool.function),
            annotations=annotations_of(tool),
        )
    resources.register(server)
    prompts.register(server, [tool.function.__name__ for tool in TOOLS])
    return server


def _version_note() -> str:
    plugin, own = os.environ.get(PLUGIN_VARIABLE), version("sota-ml-researcher")
    if plugin in {None, own}:
        return ""
    return (
        f" This server is of version {own} and its plugin of {plugin}: tell the user to run the plugin's "
        "scripts/plugin_server.py --setup again."
    )


def _logging_is_set_up(level: Any = "INFO") -> None:
    """In the place of the SDK's own set-up."""


def _description(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors meant for the reader pass as they are; a crash becomes one sentence and a traceback in the log."""

    @functools.wraps(function)
    async def guarded_async(*args: Any, **named: Any) -> Any:
        with _errors_for_the_reader():
            return await function(*args, **named)

    @functools.wraps(function)
    def guarded(*args: Any, **named: Any) -> Any:
        with _errors_for_the_reader():
            return function(*args, **named)

    return guarded_async if inspect.iscoroutinefunction(function) else guarded


@contextmanager
def _errors_for_the_reader() -> Generator[None]:
    try:
        yield
    except (ResearcherError, OSError, sqlite3.Error, ModuleNotFoundError) as error:
        raise _for_the_reader(error) from error


def _for_the_reader(error: Exception) -> ToolError:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, ResearcherError):
        error = not_installed([(error.name or "a package").partition(".")[0]], by="this")
    if isinstance(error, ResearcherError):
        return ToolError(str(error))
    return ToolError(f"the system refused: {error.__class__.__name__}: {error}")


def _argument_problems(name: str, arguments: dict[str, Any], error: ValidationError) -> str:
    parameters = list(inspect.signature(next(t.function for t in TOOLS if t.function.__name__ == name)).parameters)
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_context=False):
        argument = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            problems.append(f"{argument} is required and missing")
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            problems.append(f"{argument}: {message}, got {problem['input']!r:.80}")
    strays = [key for key in arguments if key not in parameters]
    problems += [f"there is no argument '{key}'. {did_you_mean(key, parameters)}".rstrip() for key in strays]
    return f"{name}: " + "; ".join(problems)
