"""RL jobs of several turns on the embedded engine: their record, their resume, what is learnt in the second turn."""

import json
import random
from pathlib import Path
from typing import Any

import demo_tasks as tasks
import pytest
from job_helpers import cancelled, ended, logged, resumed, start, start_rl, tiny_rl, wait_until

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.job_results import checkpoint_path
from sota_ml_researcher.jobs.states import Job, JobState
from sota_ml_researcher.rewards.sandbox.modes import isolation
from sota_ml_researcher.templates.catalog import template_path

needs_sandbox = pytest.mark.skipif(isolation().mode is None, reason="no isolation here")

# Rewards letters that the demo model says by chance; the environment draws lots.
LOTS = """
import random

def step(messages, reply, row, state):
    turn = (state or 0) + 1
    said = f"go on {random.randint(0, 9)}"
    reward = sum(c in "aeiou" for c in reply) / 10
    return {"messages": said, "reward": reward, "done": "z" in reply, "state": turn, "parts": {"turn": turn}}
"""
BOTH = '''
"""The word is asked for twice: one answer must be in small letters and the other in capitals."""

def step(messages, reply, row):
    word = row["answer"]
    first = [m["content"] for m in messages if m["role"] == "assistant"]
    if not first:
        return {"messages": row["prompt"], "reward": 0.2 * (reply.lower() == word)}
    return {"reward": 0.8 * ({first[0], reply} == {word, word.upper()}), "done": True}
'''


def curve(job: Job) -> dict[int, dict[str, float]]:
    return logged(job, "reward/mean", "test/reward", "episode/turns", "episode/reward_turn_2", "optim/entropy")


def taught(data: Path, rows: list[Any], steps: int = 60) -> Job:
    """The demo model after some steps on conversations."""
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"num_epochs": None, "num_steps": steps, "batch_size": 32, "learning_rate": 2e-3, "lora_rank": 16}
    job = wait_until(start(template_path("sft"), train_file=str(data), val_file=None, **changes).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    return job


@needs_sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_episodes_are_kept_turn_by_turn_and_a_resumed_job_plays_the_same(tmp_path: Path) -> None:
    script, data = tmp_path / "lots.py", tmp_path / "words.jsonl"
    script.write_text(LOTS)
    data.write_text("".join(json.dumps({"prompt": f"say {a}{b}e"}) + "\n" for a in "klm" for b in "aou"))
    environment = {"type": "custom", "script": str(script), "max_turns": 3}
    changes = {"base_model": "demo", "train_file": str(data), "val_file": str(data), "max_response_tokens": 8}
    changes |= {"rewards": None, "environment": environment, "num_steps": 10, "checkpoint_every": 3}
    config = tiny_rl(tmp_path, tmp_path, **changes)
    whole = wait_until(start_rl(None, **config).id, ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    steps = curve(whole)
    assert {"reward/mean", "test/reward", "episode/turns", "episode/reward_turn_2"} <= set(steps[0])
    assert steps[0]["episode/turns"] > 1
    rollouts = [json.loads(line) for line in (whole.folder / "rollouts.jsonl").read_text().splitlines()]
    long = max(rollouts, key=lambda r: len(r["turns"]))
    assert len(long["turns"]) > 1
    assert long["turns"][0]["environment"][0]["content"].startswith("go on ")
    assert [turn["parts"]["turn"] for turn in long["turns"]] == list(range(1, len(long["turns"]) + 1))
    assert long["reward"] == pytest.approx(sum(turn["reward"] for turn in long["turns"]))
    assert {r["ended"] for r in rollouts} <= {"completed", "max_turns", "max_tokens"}
    report = json.loads((whole.folder / "reward_check.json").read_text())
    assert report["turns"] > 1

    cut = cancelled(start_rl(None, **config), after=2, of=10)
    assert curve(resumed(cut)) == steps


@needs_sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_what_the_second_turn_must_answer_to_the_first_is_learnt(tmp_path: Path) -> None:
    rng = random.Random(7)

    def coin(word: str) -> dict[str, str]:
        return {"role": "assistant", "content": word if rng.random() < 0.5 else word.upper()}

    rows: list[Any] = []
    for _, (prompt, _) in zip(range(800), tasks.distinct(tasks.say, 11), strict=False):
        asked, word = {"role": "user", "content": prompt}, prompt.removeprefix("say ")
        rows.append({"messages": [asked, coin(word), asked, coin(word)]})
    script = tmp_path / "both.py"
    script.write_text(BOTH)
    sft = taught(tmp_path / "two_turns.jsonl", rows)
    job = start_rl(
        template_path("grpo"),
        reward_type=None,
        environment=str(script),
        load_checkpoint=checkpoint_path(sft, "state_path"),
        val_file=None,
        num_steps=30,
        learning_rate=6e-4,
        num_substeps=1,
    )
    job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = [r for r in run_files.recent_metrics(job.folder, limit=1000) if "reward/mean" in r]
    assert records[0]["reward/mean"] <= 0.4
    assert sum(r["reward/mean"] for r in records[-4:]) / 4 >= 0.6
    assert sum(r["episode/reward_turn_2"] for r in records[-4:]) / 4 >= 0.45


@needs_sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_a_model_learns_to_run_a_program_where_its_own_guess_is_wrong(tmp_path: Path) -> None:
    """Sorting a word's letters is beyond the demo model, which is shown both guesses and programs."""
    rng = random.Random(5)
    shown: list[Any] = []
    asked: list[Any] = []
    for number in range(1400):
        word = "".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 3))
        answer = " ".join(sorted(word))
        user, guess = {"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}
        program = {"role": "assistant", "content": f"```python\nprint(*sorted('{word}'))\n```"}
        output = {"role": "user", "content": f"Output:\n{answer}"}
        # A row's loss is the mean of its tokens, so that one guess weighs as much as ten of the longer programs do.
        said = [program, output, {"role": "assistant", "content": answer}] if number % 10 else [guess]
        if number < 1000:
            shown.append({"messages": [user, *said]})
        else:
            asked.append({"prompt": user["content"], "answer": answer})
    sft = taught(tmp_path / "shown.jsonl", shown, steps=300)
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    job = start_rl(
        template_path("grpo"),
        train_file=str(prompts),
        val_file=None,
        environment="interpreter",
        load_checkpoint=checkpoint_path(sft, "state_path"),
        max_response_tokens=48,
        batch_size=8,
        group_size=8,
        num_steps=24,
        learning_rate=2e-4,
        num_substeps=1,
    )
    job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = [r for r in run_files.recent_metrics(job.folder, limit=1000) if "reward/mean" in r]
    first, last = records[0], records[-6:]
    assert first["reward/mean"] <= 0.65
    assert sum(r["reward/mean"] for r in last) / 6 >= 0.75
    programs = "reward/interpreter.programs"
    assert sum(r[programs] for r in last) / 6 >= first[programs] + 0.2
    rollouts = [json.loads(line) for line in (job.folder / "rollouts.jsonl").read_text().splitlines()]
    ran = next(r for r in rollouts if len(r["turns"]) == 2 and r["reward"] == 1.0)
    assert ran["turns"][0]["environment"][0]["content"].startswith("Output:\n")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_retry_teaches_to_be_right_at_once() -> None:
    job = wait_until(start_rl(template_path("grpo"), environment="retry", num_steps=60, eval_every=0).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = [r for r in run_files.recent_metrics(job.folder, limit=1000) if "reward/mean" in r]
    assert records[0]["reward/mean"] <= 0.4
    assert sum(r["reward/mean"] for r in records[-4:]) / 4 >= 0.7
    assert records[-1]["episode/turns"] < records[0]["episode/turns"] - 0.5
