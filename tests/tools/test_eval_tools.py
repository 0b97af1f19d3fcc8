"""The tools as a client calls them: plans before money, and an assistant that judges."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from eval_helpers import sums
from loopback_judges import KEY, MODEL, Judges, honest, serving
from mcp import Client
from tool_calls import result_of, text_of

from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.server.app import build_server


def test_a_paid_judge_is_planned_and_starts_only_with_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = sums(tmp_path, 50) | {"judge_model": MODEL}
    with serving(Judges()) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        planned = result_of("run_judge_eval", overrides=overrides)
        assert not planned.is_error, text_of(planned)
        assert planned.structured_content is not None
        assert planned.structured_content["job_id"] is None
        shown = text_of(planned)
        assert "Plan only, nothing was started" in shown
        assert "136 judge calls" in shown and "With 80% power" in shown and "prices of 2026-" in shown
        assert f"plan_id='{planned.structured_content['plan_id']}'" in shown
        wrong = result_of(
            "run_judge_eval", overrides=overrides | {"seed": 1}, plan_id=planned.structured_content["plan_id"]
        )
        assert wrong.is_error
        assert "are not those of plan" in text_of(wrong)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-wrong-secret")
        refused = result_of("run_judge_eval", overrides=overrides)
        assert refused.is_error
        assert "the key was refused (401)" in text_of(refused)
        assert "wrong-secret" not in refused.model_dump_json()
    assert Registry().find() == []


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("run_judge_eval", {}, "test_set: this key is required and missing"),
        ("run_judge_eval", {"config": "/nowhere.yaml"}, "no such file"),
        ("submit_verdicts", {"job_id": "judge_eval-000000"}, "there is no job"),
        ("run_benchmark", {"overrides": {}}, "task: this key is required and missing"),
        (
            "run_judge_eval",
            {
                "overrides": {
                    "test_set": "demo:sft_test",
                    "baseline_model": "demo",
                    "finetuned_model": "sft-000000",
                    "judge_model": "check:exact",
                }
            },
            "there is no job 'sft-000000'",
        ),
    ],
)
def test_a_wrong_input_comes_back_as_a_sentence(tool: str, arguments: dict[str, Any], message: str) -> None:
    result = result_of(tool, **arguments)
    assert result.is_error
    assert message in text_of(result)
    assert "Traceback" not in text_of(result)


def test_verdicts_are_for_evaluations_only(tmp_path: Path) -> None:
    job = Registry().create(kind="sft", name="a", backend="embedded", base_model="demo", runs=tmp_path)
    result = result_of("submit_verdicts", job_id=job.id)
    assert result.is_error
    assert "is not a judge evaluation" in text_of(result)


@pytest.mark.slow
def test_an_assistant_judges_through_the_tools(tmp_path: Path) -> None:
    overrides = sums(tmp_path, 4, base_right=0.5) | {"judge_model": "assistant"}
    names = ("correctness", "instruction_following", "helpfulness")

    def judged(packet: dict[str, Any]) -> dict[str, Any]:
        given = honest(Judges()._asked("", [{"content": packet["question"]}]))
        scores = {name: dict(zip("AB", given["quality"], strict=True)) for name in names}
        return {"id": packet["id"], "reason": "r", "verdict": given["verdict"], "scores": scores}

    async def run() -> None:
        async with Client(build_server()) as client:
            started = await client.call_tool("run_judge_eval", {"overrides": overrides})
            assert started.structured_content is not None
            job_id = started.structured_content["job_id"]
            assert f"submit_verdicts(job_id='{job_id}')" in text_of(started)
            answer = await client.call_tool("submit_verdicts", {"job_id": job_id})
            assert answer.structured_content is not None
            assert "Rubric." in answer.structured_content["packets"][0]["rubric"]
            wrong = await client.call_tool("submit_verdicts", {"job_id": job_id, "verdicts": [{"id": "x"}]})
            assert "there is no packet 'x'" in text_of(wrong)
            while packets := (answer.structured_content or {})["packets"]:
                verdicts = [judged(packet) for packet in packets]
                answer = await client.call_tool("submit_verdicts", {"job_id": job_id, "verdicts": verdicts})
                assert not answer.is_error, text_of(answer)
            found = await client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 50})
            assert found.structured_content is not None
            assert found.structured_content["state"] == "succeeded", found.structured_content["error"]
            assert "win rate 0.750" in text_of(found)

    anyio.run(run)
