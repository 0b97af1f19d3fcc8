"""Between Inspect's messages with tools and the cookbook's.

How a model family declares tools and writes calls is the cookbook renderer's knowledge; nothing is parsed here.
"""
# pyright: basic
# reason: Inspect's message types are wide unions, and the cookbook's messages are open dicts

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool, ContentReasoning, ContentText
from inspect_ai.tool import ToolCall, ToolChoice, ToolFunction, ToolInfo


def offered(tools: Sequence[ToolInfo], choice: ToolChoice) -> list[dict[str, Any]]:
    """The tools that the model is offered. A prompt cannot force a call: a required tool is offered alone."""
    if choice == "none":
        return []
    chosen = [t for t in tools if t.name == choice.name] if isinstance(choice, ToolFunction) else tools
    return [
        {"name": t.name, "description": t.description, "parameters": t.parameters.model_dump(exclude_none=True)}
        for t in chosen
    ]


def has_calls(messages: Sequence[ChatMessage]) -> bool:
    """Whether tools were used in this conversation."""
    return any(m.role == "tool" or (isinstance(m, ChatMessageAssistant) and m.tool_calls) for m in messages)


def for_renderer(message: ChatMessage) -> dict[str, Any]:
    """A message as a cookbook renderer takes it."""
    from tinker_cookbook import renderers

    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if isinstance(message, ChatMessageTool):
        named = {"tool_call_id": message.tool_call_id, "name": message.function}
        turn |= {key: value for key, value in named.items() if value is not None}
        if message.error is not None:
            turn["content"] = message.error.message
    if isinstance(message, ChatMessageAssistant):
        if isinstance(message.content, list):
            turn["content"] = [part for each in message.content for part in _part(each)]
        calls = [
            renderers.ToolCall(
                id=call.id,
                function=renderers.ToolCall.FunctionBody(name=call.function, arguments=json.dumps(call.arguments)),
            )
            for call in message.tool_calls or []
        ]
        turn |= {"tool_calls": calls} if calls else {}
    return turn


def _part(content: Any) -> list[dict[str, str]]:
    if isinstance(content, ContentReasoning):
        return [{"type": "thinking", "thinking": content.reasoning}]
    return [{"type": "text", "text": content.text}] if isinstance(content, ContentText) else []


def as_answer(turn: Mapping[str, Any], *, model: str, turns_before: int) -> ChatMessageAssistant:
    """The model's turn as the renderer read it, for Inspect: reasoning, text, calls, calls that could not be read."""
    parts: Any = turn["content"]
    content = [ContentText(text=parts)] if isinstance(parts, str) else [c for p in parts for c in _content(p)]
    calls = [_call(c, f"call_{turns_before}_{n}") for n, c in enumerate(turn.get("tool_calls") or [])]
    broken = [
        ToolCall(
            id=f"unread_{turns_before}_{n}",
            function="unreadable_tool_call",
            arguments={"text": call.raw_text},
            parse_error=call.error,
        )
        for n, call in enumerate(turn.get("unparsed_tool_calls") or [])
    ]
    return ChatMessageAssistant(
        content=cast("Any", content), tool_calls=[*calls, *broken] or None, model=model, source="generate"
    )


def _content(part: Mapping[str, Any]) -> list[ContentReasoning | ContentText]:
    if part["type"] == "thinking":
        return [ContentReasoning(reasoning=part["thinking"])]
    return [ContentText(text=part["text"])] if part["type"] == "text" else []


def _call(call: Any, fallback: str) -> ToolCall:
    name = call.function.name
    try:
        arguments = json.loads(call.function.arguments)
        problem = None if isinstance(arguments, dict) else "the arguments are not a JSON object"
    except ValueError as error:
        arguments, problem = {}, f"the arguments are not JSON: {error}"
    usable = arguments if isinstance(arguments, dict) else {}
    return ToolCall(id=call.id or fallback, function=name, arguments=usable, parse_error=problem)
