import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.templates.catalog import template_path
from sota_ml_researcher.training.sandbox import isolation


def call(tool: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    async def run() -> Any:
        async with Client(build_server()) as client:
            return await client.call_tool(tool, arguments)

    result = anyio.run(run)
    return bool(result.is_error), result.content[0].text, dict(result.structured_content or {})


def test_pairs_are_checked_as_pairs() -> None:
    failed, text, content = call("check_dataset", train_file="demo:dpo_train", val_file="demo:dpo_val")
    assert not failed, text
    assert content["report"]["usable_rows"] == 400
    assert "start_dpo" in content["next"]


def test_a_reward_is_tried_on_cheats_before_any_training() -> None:
    config = str(template_path("grpo"))
    failed, text, content = call("check_dataset", train_file="demo:say_train", reward_config=config)
    assert not failed, text
    assert {probe["name"] for probe in content["report"]["probes"]} >= {"empty answer", "answer list"}
    assert "Cheats earn: empty answer 0%" in text


@pytest.mark.parametrize("template", ["dpo", "grpo", "ppo", "rlaif"])
def test_every_template_plans_as_shipped(template: str) -> None:
    tool = "start_dpo" if template == "dpo" else "start_grpo"
    failed, text, content = call(tool, config=str(template_path(template)), validate_only=True)
    assert not failed, text
    assert len(text) <= 1500
    assert content["state"] == "planned"
    assert content["total_steps"] > 0
    assert set(content["origins"]) == set(content["config"])


@pytest.mark.skipif(isolation().mode is None, reason="no isolation here")
def test_a_reward_file_that_cannot_be_used_stops_the_plan(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("def reward(prompt, response):\n    return 1\n")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "1+1="}) + "\n")
    overrides = {
        "base_model": "demo",
        "train_file": str(data),
        "reward_type": "custom",
        "reward_script": str(script),
        "max_response_tokens": 8,
    }
    failed, text, _ = call("start_grpo", overrides=overrides, validate_only=True)
    assert failed
    assert "mine.py: this reward cannot be used: reward must take (prompt, response, row)" in text


@pytest.mark.skipif(isolation().mode is None, reason="no isolation here")
def test_an_environment_is_tried_and_planned_like_a_reward(tmp_path: Path) -> None:
    (tmp_path / "game.py").write_text(
        "def step(messages, reply, row):\n    return {'messages': 'more', 'reward': 0.1}\n"
    )
    config = tmp_path / "rl.yaml"
    config.write_text("base_model: demo\ntrain_file: demo:say_train\nenvironment: game.py\nmax_response_tokens: 8\n")
    failed, text, content = call("check_dataset", train_file="demo:say_train", reward_config=str(config))
    assert not failed, text
    assert {probe["share"] for probe in content["report"]["probes"]} == {0.3}
    failed, text, content = call("start_grpo", config=str(config), overrides={"num_steps": 10}, validate_only=True)
    assert not failed, text
    assert "environment game.py, 3 turns at most" in text
    assert content["config"]["environment"]["script"] == str(tmp_path / "game.py")
    assert content["config"]["environment"]["max_trajectory_tokens"] == 512
