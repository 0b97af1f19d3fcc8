"""The demo's session: an MCP client that does what an assistant would do, against the server as users run it."""

from __future__ import annotations

import json
import time
from functools import partial

from mcp import Client
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from ..core.paths import demo_data
from .session import Interval, Session, Stage, exit_code, verdict_text

TEST_PROMPTS = 50
MAX_TOKENS = 24
# What the demo promises: the base cannot do the task, the tuned model can, and held-out loss at least halves.
WORST_BEFORE, BEST_AFTER, NLL_RATIO = 0.2, 0.9, 0.5
# And that preferences and rewards are learnt: held-out pair accuracy, mean reward of the samples.
PAIR_ACCURACY, REWARD_BEFORE, REWARD_AFTER = 0.9, 0.3, 0.8
# The reward of so many steps is averaged: one step is a few hundred samples.
_LAST_STEPS = 4
# The quick demo's fine-tuning: a third of the steps at three times the learning rate, which the tiny model bears.
_QUICK = {"num_epochs": None, "num_steps": 200, "learning_rate": 2e-3, "run_name": "sft-quick-demo"}


class DemoResult(BaseModel):
    """What the demo measured. NLL in nats per trained token; accuracies are exact matches on held-out prompts.

    ``dpo`` and ``grpo`` are left out of the quick demo.
    """

    job_id: str
    run_folder: str
    rows: int
    loss_tokens: int
    lora_parameters: int
    capacity_verdict: str
    steps: int
    nll_before: float
    nll_after: float
    exact_match_before: float
    exact_match_after: float
    test_prompts: int
    judge_verdict: str
    judge_win_rate: float
    judge_interval: list[float]
    example_prompt: str
    example_before: str
    example_after: str
    dpo: Stage | None
    grpo: Stage | None
    seconds: dict[str, float]
    targets_met: bool


class Demo(Session[DemoResult]):
    """One run of the demo: quick leaves out preferences and rewards, and trains for fewer steps."""

    def __init__(self, *, quiet: bool, quick: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._quick = quick

    async def _session(self, client: Client, began: float) -> DemoResult:
        train, val = "demo:sft_train", "demo:sft_val"
        checked = await self._call(client, "check_dataset", train_file=train, base_model="demo", val_file=val)
        report = checked["report"]
        capacity = await self._call(client, "validate_capacity", base_model="demo", lora_rank=32, train_file=train)
        prompts, answers = test_set()
        before = await self._sample(client, "before", "demo", prompts)
        job = await self._train(client, "start_sft", "sft", **(_QUICK if self._quick else {}))
        after = await self._sample(client, "after", job.job_id, prompts)
        judged = (await self._judge(client, job.job_id)).verdict
        interval = judged.interval or Interval()
        dpo = None if self._quick else await self._preferences(client, job.job_id)
        grpo = None if self._quick else await self._rewards(client)
        self._seconds["total"] = round(time.monotonic() - began, 1)
        nll = job.metric("test/nll")
        matches = [sum(s == a for s, a in zip(said, answers, strict=True)) / len(answers) for said in (before, after)]
        met = matches[0] < WORST_BEFORE and matches[1] > BEST_AFTER and nll[-1] <= NLL_RATIO * nll[0]
        met = met and judged.verdict == "better"
        met = met and (dpo is None or dpo.after >= PAIR_ACCURACY)
        met = met and (grpo is None or (grpo.before <= REWARD_BEFORE and grpo.after >= REWARD_AFTER))
        return DemoResult(
            job_id=job.job_id,
            run_folder=str(job.run_folder),
            rows=report["rows"],
            loss_tokens=report["tokens"]["loss"],
            lora_parameters=capacity["parameters"],
            capacity_verdict=capacity["verdict"],
            steps=job.step,
            nll_before=nll[0],
            nll_after=nll[-1],
            exact_match_before=matches[0],
            exact_match_after=matches[1],
            test_prompts=len(answers),
            judge_verdict=judged.verdict,
            judge_win_rate=judged.mean,
            judge_interval=[interval.low, interval.high],
            example_prompt=prompts[0],
            example_before=before[0],
            example_after=after[0],
            dpo=dpo,
            grpo=grpo,
            seconds=self._seconds,
            targets_met=met,
        )

    async def _sample(self, client: Client, phase: str, model: str, prompts: list[str]) -> list[str]:
        arguments = {"model": model, "prompts": prompts, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        sampled = await self._call(client, "sample_model", phase=f"sample {phase}", **arguments)
        return [one["completions"][0]["text"] for one in sampled["samples"]]

    async def _preferences(self, client: Client, sft_job: str) -> Stage:
        """DPO on top of the SFT job: small letters are preferred to capitals."""
        job = await self._train(client, "start_dpo", "dpo", load_checkpoint=sft_job)
        values = job.metric("test/accuracy")
        return job.stage("held-out pair accuracy", values[0], values[-1])

    async def _rewards(self, client: Client) -> Stage:
        """GRPO from the base model, which says a word in small letters less than one time in three."""
        job = await self._train(client, "start_grpo", "grpo")
        values = job.metric("reward/mean")
        return job.stage("mean reward", values[0], sum(values[-_LAST_STEPS:]) / _LAST_STEPS)


def test_set() -> tuple[list[str], list[str]]:
    """Held-out prompts and the answers that count as right."""
    rows = [json.loads(line) for line in demo_data("sft_test", where="demo").read_text().splitlines()[:TEST_PROMPTS]]
    return [row["messages"][-2]["content"] for row in rows], [row["messages"][-1]["content"] for row in rows]


def show_result(result: DemoResult, *, as_json: bool) -> int:
    """Print the result, as a table or as JSON; returns the exit code."""
    promise = (
        f"exact match must go from below {WORST_BEFORE:.0%} to above {BEST_AFTER:.0%}, held-out NLL must halve, the "
        f"tuned model be judged better, pair accuracy (DPO) must reach {PAIR_ACCURACY:.0%}, the mean reward (GRPO) go "
        f"from at most {REWARD_BEFORE} to {REWARD_AFTER}."
    )
    return exit_code(result, partial(_show_table, result), as_json=as_json, met=result.targets_met, promise=promise)


def _show_table(result: DemoResult) -> None:
    table = Table("", "before", "after", title=f"Fine-tuning the demo model ({result.steps} steps)")
    table.add_row("held-out NLL (nats per token)", f"{result.nll_before:.3f}", f"{result.nll_after:.3f}")
    table.add_row(
        f"exact match on {result.test_prompts} held-out prompts",
        f"{result.exact_match_before:.0%}",
        f"{result.exact_match_after:.0%}",
    )
    verdict = verdict_text(result.judge_verdict, result.judge_win_rate, result.judge_interval)
    table.add_row("judged against its base", "", verdict)
    table.add_row(f"'{result.example_prompt}'", repr(result.example_before), repr(result.example_after))
    stages = [(name, stage) for name, stage in (("DPO", result.dpo), ("GRPO", result.grpo)) if stage]
    for name, stage in stages:
        table.add_row(f"{name}, {stage.steps} steps: {stage.measure}", f"{stage.before:.2f}", f"{stage.after:.2f}")
    console = Console()
    console.print(table)
    seconds = result.seconds
    trained = sum(taken for name, taken in seconds.items() if name.startswith("train "))
    jobs = ", ".join([result.job_id, *(stage.job_id for _, stage in stages)])
    console.print(f"Trained in {trained:.0f} s, {seconds['total']:.0f} s in all. Jobs {jobs}.", soft_wrap=True)
    console.print(f"Everything of this run: {result.run_folder}", highlight=False, soft_wrap=True)
    following = f"Next: `ml-researcher analyze {result.job_id}`; `ml-researcher engine stop` gives its memory back now"
    console.print(following, highlight=False, soft_wrap=True)
