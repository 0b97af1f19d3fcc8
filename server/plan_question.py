"""Whether a planned job may start, asked of the person at the client (MCP elicitation).

A tool that would spend money answers with a plan and its ``plan_id``. Where the client takes questions, the person gets
the plan as one and its yes hands the id back; everywhere else the assistant does. The gate is the same
(`jobs.plan_store`): an id starts one job, once, so a question that is lost, late or answered twice starts nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import anyio
from mcp.server.elicitation import render_elicitation_schema
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
    TextContent,
)
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field, ValidationError

from ..core.errors import JobError
from ..jobs import plan_store

logger = logging.getLogger(__name__)

# As long as somebody may look at a plan before the assistant gets it instead.
WAIT_S = 600.0
_QUESTION = "start"
# From this revision on a question is an answer to the call, which the client then makes again.
_ASKS_BY_ANSWER = "2026-07-28"
_MOST_OPEN = 1000


class Consent(BaseModel):
    """What the person fills in."""

    start: bool = Field(title="Start this job", description="Nothing has been started or spent so far")


class PlanQuestions:
    """Asks, once for each call, and remembers which calls were asked and not answered."""

    def __init__(self) -> None:
        self._open: dict[str, None] = {}

    def plan_of(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None) -> str | None:
        """The plan that this call answers, if the person agreed to it; None if this call answers no question.

        Raises:
            JobError: If the person did not agree.
        """
        if context is None or context.request_state is None or not (answers := context.input_responses):
            return None
        plan_id = _plan_in(context.request_state)
        reply = answers.get(_QUESTION)
        if plan_id is None or not isinstance(reply, ElicitResult):
            return None
        agreed = _agreed(reply)
        if agreed is None:
            return None
        self._open.pop(_call(name, arguments), None)
        return _settled(plan_id, agreed=agreed)

    async def ask(
        self, name: str, arguments: dict[str, Any], planned: CallToolResult, context: Context[Any, Any] | None
    ) -> InputRequiredResult | str | None:
        """Put a plan to the person.

        Returns:
            The plan's id if the person agreed; a question for the client to bring back answered; or None if nobody can
            be asked, and the assistant gets the plan.

        Raises:
            JobError: If the person did not agree.
        """
        plan_id = _open_plan(planned)
        if plan_id is None or context is None or not _takes_questions(context):
            return None
        request = ElicitRequestFormParams(message=_message(planned), requested_schema=_SCHEMA)
        version = context.protocol_version
        if version is not None and is_version_at_least(version, _ASKS_BY_ANSWER):
            call = _call(name, arguments)
            if call in self._open:  # asked before, and the client came back without an answer
                self._open.pop(call)
                return None
            self._open[call] = None
            while len(self._open) > _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            state = json.dumps({"plan_id": plan_id})
            return InputRequiredResult(input_requests={_QUESTION: ElicitRequest(params=request)}, request_state=state)
        agreed = await _asked_at_once(context, request)
        return None if agreed is None else _settled(plan_id, agreed=agreed)


_SCHEMA = render_elicitation_schema(Consent)


def _takes_questions(context: Context[Any, Any]) -> bool:
    """Whether the client declared forms; a bare ``elicitation: {}`` does, from the time before there were modes."""
    capabilities = context.client_capabilities
    declared = capabilities.elicitation if capabilities is not None else None
    return declared is not None and (declared.form is not None or declared.url is None)


def _open_plan(planned: CallToolResult) -> str | None:
    content: dict[str, Any] = planned.structured_content or {}
    plan_id = content.get("plan_id")
    return plan_id if isinstance(plan_id, str) and content.get("job_id") is None else None


def _message(planned: CallToolResult) -> str:
    """The plan as the assistant would read it, without what the assistant is to do next."""
    text = "\n".join(block.text for block in planned.content if isinstance(block, TextContent))
    return text.rpartition("\nNext: ")[0] or text


async def _asked_at_once(context: Context[Any, Any], request: ElicitRequestFormParams) -> bool | None:
    with anyio.move_on_after(WAIT_S):
        try:
            reply = await context.session.elicit_form(
                request.message, request.requested_schema, related_request_id=context.request_id
            )
            return _agreed(reply)
        except (MCPError, ValidationError) as error:
            logger.warning("The client could not put the plan to its user: %s", type(error).__name__)
    return None


def _agreed(reply: ElicitResult) -> bool | None:
    """Yes or no; None for a form that came back without a readable answer."""
    if reply.action != "accept":
        return False
    try:
        return Consent.model_validate(reply.content or {}, strict=True).start
    except ValidationError:
        logger.warning("The client accepted a question without answering it")
        return None


def _settled(plan_id: str, *, agreed: bool) -> str:
    if agreed:
        return plan_id
    plan_store.withdraw(plan_id)
    raise JobError(
        "the user did not agree to the plan: nothing was started and nothing was spent",
        fix="Ask what should change; a new call makes a new plan",
    )


def _plan_in(state: str) -> str | None:
    """The plan in a state that we gave out; the SDK has checked that it is ours and belongs to this call."""
    try:
        plan_id = json.loads(state).get("plan_id")
    except (ValueError, AttributeError):
        return None
    return plan_id if isinstance(plan_id, str) else None


def _call(name: str, arguments: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, arguments], sort_keys=True, default=str).encode()).hexdigest()
