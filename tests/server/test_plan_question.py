"""The plan as a question to the person at the client: yes, no, silence, faults, both ways that the protocol asks."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from job_helpers import settings
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolResult, ElicitResult, ErrorData, InputRequiredResult
from tool_calls import text_of

from sota_ml_researcher.backends.prices import PRICES_VARIABLE
from sota_ml_researcher.jobs import control
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.server import plan_question
from sota_ml_researcher.server.app import build_server

Mode = Literal["legacy", "2026-07-28"]
MODES: list[Mode] = ["legacy", "2026-07-28"]
Reply = Callable[[str], Awaitable[ElicitResult | ErrorData]]
YES = ElicitResult(action="accept", content={"start": True})


@pytest.fixture
def job(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A start_sft on an engine that charges for the tiny model."""
    prices = tmp_path / "prices.yaml"
    prices.write_text(json.dumps({"backends": {"embedded": {"models": {str(tiny_weights): {"train": 10.0}}}}}))
    monkeypatch.setenv(PRICES_VARIABLE, str(prices))
    return {"overrides": settings(tmp_path, tiny_weights, num_steps=1, val_file=None)}


def start(mode: Mode, job: dict[str, Any], *replies: ElicitResult | ErrorData | Reply) -> list[CallToolResult | str]:
    """Call start_sft once for each reply, with a client that answers so; what came back, or the client's own error."""

    async def run() -> list[CallToolResult | str]:
        waiting = list(replies)

        async def answer(_: Any, params: Any) -> ElicitResult | ErrorData:
            asked.append(params.message)
            reply = waiting.pop(0)
            return await reply(params.message) if callable(reply) else reply

        results: list[CallToolResult | str] = []
        async with Client(build_server(), mode=mode, elicitation_callback=answer) as client:
            for _ in replies:
                try:
                    results.append(await client.call_tool("start_sft", job))
                except MCPError as error:
                    results.append(error.error.message)
        return results

    asked.clear()
    return anyio.run(run)


asked: list[str] = []


def only(results: list[CallToolResult | str]) -> CallToolResult:
    (result,) = results
    assert isinstance(result, CallToolResult)
    return result


def open_plans(home: Path) -> int:
    return len(list((home / "plans").glob("plan-*.json")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("shared_engine")
def test_a_yes_starts_the_job_once_and_the_assistant_sees_no_plan_id(
    mode: Mode, job: dict[str, Any], own_home: Path
) -> None:
    result = only(start(mode, job, YES))
    content = result.structured_content or {}
    assert not result.is_error and content["job_id"] and content["plan_id"] is None
    assert [found.id for found in Registry().find()] == [content["job_id"]]
    assert len(asked) == 1 and "Cost: $" in asked[0] and "plan_id" not in asked[0]
    assert open_plans(own_home) == 0
    control.cancel(Registry(), content["job_id"])


@pytest.mark.usefixtures("shared_engine")
def test_a_yes_that_is_sent_twice_starts_one_job(job: dict[str, Any]) -> None:
    async def unused(_: Any, params: Any) -> ElicitResult:
        raise AssertionError

    async def run() -> tuple[CallToolResult, CallToolResult]:
        async with Client(build_server(), mode="2026-07-28", elicitation_callback=unused) as client:
            question = await client.session.call_tool("start_sft", job, allow_input_required=True)
            assert isinstance(question, InputRequiredResult) and "plan-" not in str(question.request_state)
            replies = dict.fromkeys(question.input_requests or {}, YES)
            first, second = [
                await client.session.call_tool(
                    "start_sft", job, input_responses=replies, request_state=question.request_state
                )
                for _ in range(2)
            ]
            return first, second

    first, second = anyio.run(run)
    assert second.is_error and "no open plan" in text_of(second)
    assert [found.id for found in Registry().find()] == [(first.structured_content or {})["job_id"]]
    control.cancel(Registry(), Registry().find()[0].id)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "reply",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"start": False}),
    ],
    ids=["decline", "cancel", "unticked"],
)
def test_anything_but_a_yes_starts_nothing_and_voids_the_plan(
    mode: Mode, reply: ElicitResult, job: dict[str, Any], own_home: Path
) -> None:
    result = only(start(mode, job, reply))
    assert result.is_error
    assert "nothing was started and nothing was spent" in text_of(result)
    assert (result.structured_content or {})["failure"]["kind"] == "job"
    assert Registry().find() == []
    assert open_plans(own_home) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("content", [None, {}, {"start": "yes"}, {"other": True}])
def test_a_yes_without_a_readable_answer_is_none(mode: Mode, content: Any, job: dict[str, Any]) -> None:
    result = only(start(mode, job, ElicitResult(action="accept", content=content)))
    assert not result.is_error and (result.structured_content or {})["plan_id"]
    assert "call start_sft again with the same arguments and plan_id=" in text_of(result)
    assert Registry().find() == []


@pytest.mark.parametrize("mode", MODES)
def test_no_key_leaves_in_a_question(
    mode: Mode, job: dict[str, Any], tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tiny_weights.parent.name
    start(mode, job, ElicitResult(action="decline"))
    assert key in asked[0]
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    start(mode, job, ElicitResult(action="decline"))
    assert asked and key not in asked[0]


FAULT = ErrorData(code=INTERNAL_ERROR, message="no window to ask in")


def test_an_older_client_that_fails_to_ask_leaves_the_plan_to_the_assistant(job: dict[str, Any]) -> None:
    result = only(start("legacy", job, FAULT))
    assert (result.structured_content or {})["plan_id"]
    assert Registry().find() == []


def test_a_newer_client_that_fails_to_ask_gets_the_plan_when_it_calls_again(job: dict[str, Any]) -> None:
    failed, again = start("2026-07-28", job, FAULT, YES)
    assert failed == "no window to ask in"
    assert isinstance(again, CallToolResult) and (again.structured_content or {})["plan_id"]
    assert len(asked) == 1
    assert Registry().find() == []


def test_a_client_that_is_slow_gets_the_plan_and_its_late_yes_starts_nothing(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_question, "WAIT_S", 0.5)

    async def late(_: str) -> ElicitResult:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1.5)
        return YES

    result = only(start("legacy", job, late))
    assert (result.structured_content or {})["plan_id"]
    assert Registry().find() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_is_killed_over_the_question_starts_nothing(mode: Mode, job: dict[str, Any]) -> None:
    async def run() -> None:
        async def killed(_: Any, params: Any) -> ElicitResult:
            scope.cancel()
            await anyio.sleep_forever()
            raise AssertionError

        with anyio.CancelScope() as scope:
            async with Client(build_server(), mode=mode, elicitation_callback=killed) as client:
                await client.call_tool("start_sft", job)

    anyio.run(run)
    assert Registry().find() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_client_without_questions_gets_the_plan_as_before(mode: Mode, job: dict[str, Any]) -> None:
    async def run() -> CallToolResult:
        async with Client(build_server(), mode=mode) as client:
            return await client.call_tool("start_sft", job)

    result = anyio.run(run)
    assert (result.structured_content or {})["plan_id"]
    assert Registry().find() == []


@pytest.mark.parametrize("mode", MODES)
def test_what_needs_no_yes_is_not_asked(mode: Mode, job: dict[str, Any]) -> None:
    result = only(start(mode, {**job, "validate_only": True}, YES))
    assert (result.structured_content or {})["state"] == "planned"
    assert asked == []
