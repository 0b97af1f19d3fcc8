"""The RLHF pipeline through the real client: supervised fine-tuning, a reward model, reinforcement learning."""

import json
import os
import random
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.core.paths import demo_data
from sota_ml_researcher.jobs.states import ACTIVE
from sota_ml_researcher.templates.catalog import template_path

RUNNING = {state.value for state in ACTIVE}


async def done(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text  # type: ignore[union-attr]
    return dict(result.structured_content or {})


async def trained(client: Client, tool: str, template: str, **overrides: Any) -> dict[str, Any]:
    """Start a job and wait until it has succeeded."""
    started = await done(client, tool, {"config": str(template_path(template)), "overrides": overrides})
    shown: dict[str, Any] = {"state": "queued"}
    while shown["state"] in RUNNING:
        shown = await done(client, "wait_for_job", {"job_id": started["job_id"], "timeout_s": 30})
    assert shown["state"] == "succeeded", shown["error"]
    return shown


def records(job: dict[str, Any], name: str) -> list[float]:
    return [r[name] for r in read_json_lines(Path(job["run_folder"]) / "metrics.jsonl") if name in r]


def demonstrations(folder: Path) -> Path:
    """Either side of each pair, as the coin falls: what the policy knows before anybody prefers anything."""
    rng = random.Random(5)
    rows = [json.loads(line) for line in demo_data("dpo_train", where="test").read_text().splitlines()]
    path = folder / "sft.jsonl"
    completions = [{"prompt": r["prompt"], "completion": rng.choice([r["chosen"], r["rejected"]])} for r in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in completions))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_sft_reward_model_and_rl_run_one_on_the_other(tmp_path: Path) -> None:
    data = demonstrations(tmp_path)

    async def pipeline(client: Client) -> None:
        whole = {"num_epochs": None, "val_file": None}
        sft = await trained(client, "start_sft", "sft", train_file=str(data), num_steps=30, **whole)
        model = await trained(
            client,
            "start_dpo",
            "dpo",
            loss="reward_model",
            load_checkpoint=sft["job_id"],
            num_epochs=None,
            num_steps=40,
            learning_rate=1e-3,
        )
        assert model["job_id"].startswith("reward_model-")
        assert records(model, "test/pair_accuracy")[-1] >= 0.9
        rl = await trained(
            client,
            "start_grpo",
            "ppo",
            load_checkpoint=sft["job_id"],
            reward_type=None,
            # The others only watch: the reward model knows of small letters, and nothing of the right word.
            rewards=[
                {"type": "preference_model", "checkpoint": model["job_id"]},
                {"type": "regex", "pattern": "[a-z]+", "weight": 0},
                {"type": "exact", "weight": 0},
            ],
            kl_coef=0.05,
            learning_rate=1e-4,
            num_substeps=1,
            group_size=8,
            batch_size=16,
            num_steps=20,
            eval_every=0,
        )
        small, right = records(rl, "reward/regex"), records(rl, "reward/exact")
        assert small[0] <= 0.65
        assert fmean(small[-4:]) >= 0.75
        assert fmean(right[-4:]) >= 1.4 * right[0]
        assert fmean(records(rl, "reward/mean")) == pytest.approx(0.5, abs=0.02)
        assert records(rl, "kl/k1")[0] == pytest.approx(0.0, abs=1e-3)  # the reference is where the run starts
        links = [(p["job_id"], p["role"]) for p in rl["parents"]]
        assert sorted(links) == sorted(
            [(sft["job_id"], "weights"), (sft["job_id"], "reference"), (model["job_id"], "reward")]
        )
        assert [p["job_id"] for p in model["parents"]] == [sft["job_id"]]
        start = await done(client, "get_job", {"job_id": sft["job_id"]})
        assert {c["job_id"] for c in start["children"]} == {model["job_id"], rl["job_id"]}
        listed = await done(client, "list_jobs", {})
        assert [job["job_id"] for job in listed["jobs"]] == [rl["job_id"], model["job_id"], sft["job_id"]]
        assert {p["job_id"] for p in listed["jobs"][0]["parents"]} == {sft["job_id"], model["job_id"]}

    async def session() -> None:
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "sota_ml_researcher.server", "serve"], env=dict(os.environ)
        )
        async with Client(server) as client:
            await pipeline(client)

    anyio.run(session)
