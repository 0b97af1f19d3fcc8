import json
import os
from pathlib import Path
from typing import Any

import pytest
from tool_calls import call

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.rewards.sandbox.modes import isolation
from sota_ml_researcher.templates.catalog import template_path


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


def finished_job(kind: str, **config: str) -> str:
    """A job that has left checkpoints, without having been run."""
    runs = Path(os.environ["ML_RESEARCHER_HOME"]) / "runs"
    job = Registry().create(kind=kind, name=kind, backend="embedded", base_model="demo", runs=runs)
    settings = {"base_model": "demo", "backend": "embedded", "lora_rank": "16", **config}
    (job.folder / run_files.CONFIG).write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    paths = {"state_path": f"tinker://{job.id}/weights/final", "sampler_path": f"tinker://{job.id}/sampler/final"}
    (job.folder / run_files.CHECKPOINTS).write_text(json.dumps({"name": "final", **paths}) + "\n")
    return job.id


def test_rlhf_names_jobs_and_its_reference_is_where_it_starts() -> None:
    start, reward = finished_job("sft"), finished_job("reward_model")
    overrides = {
        "load_checkpoint": start,
        "reward_type": None,
        "rewards": [{"type": "preference_model", "checkpoint": reward}],
        "kl_coef": 0.05,
    }

    def planned(**changes: Any) -> dict[str, Any]:
        failed, text, content = call(
            "start_grpo", config=str(template_path("ppo")), overrides={**overrides, **changes}, validate_only=True
        )
        assert not failed, text
        return content

    content = planned()
    config = content["config"]
    assert config["load_checkpoint"] == f"tinker://{start}/weights/final"
    assert config["ref_model"] == f"tinker://{start}/sampler/final"
    assert config["rewards"][0]["checkpoint"] == f"tinker://{reward}/sampler/final"
    assert content["origins"]["ref_model"] == f"derived: of job {start}, where the run starts"
    assert any("its mean stays at 0.5" in warning for warning in content["warnings"])
    assert planned(ref_model="base")["config"]["ref_model"] == "base"
    assert planned(ref_model=reward)["config"]["ref_model"] == f"tinker://{reward}/sampler/final"
    assert planned(kl_coef=0.0)["config"]["ref_model"] is None


@pytest.mark.parametrize(("tool", "data"), [("start_sft", "demo:sft_train"), ("start_dpo", "demo:dpo_train")])
def test_a_job_is_a_start_for_the_next_one(tool: str, data: str) -> None:
    start = finished_job("sft")
    overrides = {"base_model": "demo", "train_file": data, "load_checkpoint": start}
    failed, text, content = call(tool, overrides=overrides, validate_only=True)
    assert not failed, text
    assert content["config"]["load_checkpoint"] == f"tinker://{start}/weights/final"
    assert content["origins"]["load_checkpoint"] == f"override: of job {start}"


def test_a_reward_model_of_another_model_is_refused() -> None:
    other = finished_job("reward_model", base_model="Qwen/Qwen3-8B")
    rewards = [{"type": "preference_model", "checkpoint": other}]
    overrides = {"reward_type": None, "rewards": rewards}
    failed, text, _ = call("start_grpo", config=str(template_path("ppo")), overrides=overrides, validate_only=True)
    assert failed
    assert f"job {other} trained Qwen/Qwen3-8B on embedded, and this run trains demo" in text
