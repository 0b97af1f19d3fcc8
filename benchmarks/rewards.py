"""How fast rewards are: math answers on one core, sandboxed programs, and whether a busy reward delays heartbeats.

    python -m benchmarks.rewards [--works numbers,symbols,functions,mixed,programs,heartbeats] [--seconds 5]

Everything goes through `Scorers`, as in a job: child processes, JSON lines, time limits. Prints one JSON object per
work. The math works pin this process and its children to one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.reward_config import RewardPart
from sota_ml_researcher.rewards.sandbox.modes import isolation
from sota_ml_researcher.rewards.scorers import Response, Scorers

GROUP = 16
# Groups scored side by side, as the prompts of a step are.
ABREAST = 16
# What a model that is right now and then answers: this many different answers per group.
DIFFERENT = 4
TARGETS = {"numbers": 1000, "symbols": 1000, "mixed": 1000, "programs": 20}

PROGRAM = """```python
def clean(words):
    seen, kept = set(), []
    for word in words:
        if word not in seen:
            seen.add(word)
            kept.append(word)
    return kept{fault}
```"""
TESTS = [
    "assert clean(['a', 'b', 'a']) == ['a', 'b']",
    "assert clean([]) == []",
    "assert clean(['x'] * 100) == ['x']",
]


def _number_problem(rng: random.Random) -> tuple[str, list[str]]:
    """The right answer and some sampled answers as text: whole numbers, decimals, fractions, percentages, units."""
    value = rng.randint(2, 9999)
    forms = (
        (str(value), "\\boxed{{{0}}}"),
        (f"{value}.5", "the answer is {0}"),
        (f"{value}/7", "\\boxed{{\\frac{{{1}}}{{7}}}}"),
        (f"{value}%", "<answer>{0}</answer>"),
        (f"{value} cm", "#### {0}"),
    )
    gold, form = rng.choice(forms)
    wrong = [str(value + i) for i in range(1, DIFFERENT)]
    return gold, [form.format(gold, value), *(form.format(gold.replace(str(value), w), w) for w in wrong)]


def _symbol_problem(rng: random.Random) -> tuple[str, list[str]]:
    """Answers that take algebra: roots in another order, products multiplied out, intervals and sets."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 99)
    kind = rng.randrange(4)
    if kind == 0:
        return f"{a}\\sqrt{{{b}}}+{c}", [f"\\boxed{{{c}+{a + i}\\sqrt{{{b}}}}}" for i in range(DIFFERENT)]
    if kind == 1:
        return f"(x+{a})(x-{b})", [f"\\boxed{{x^2+{a - b + i}x-{a * b}}}" for i in range(DIFFERENT)]
    if kind == 2:
        return f"[{a},{a + b})", [f"\\boxed{{[{a}, {a + b + i})}}" for i in range(DIFFERENT)]
    return f"\\{{{a},{a + c}\\}}", [f"\\boxed{{\\{{{a + c + i},{a}\\}}}}" for i in range(DIFFERENT)]


def _function_problem(rng: random.Random) -> tuple[str, list[str]]:
    """Logarithms, sines, and roots in roots, with their terms in another order."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 99)
    kind = rng.randrange(3)
    if kind == 0:
        return f"\\ln({a})+{c}", [f"\\boxed{{{c}+\\ln({a + i})}}" for i in range(DIFFERENT)]
    if kind == 1:
        return f"{a}\\sin(x)+{b}", [f"\\boxed{{{b}+{a + i}\\sin(x)}}" for i in range(DIFFERENT)]
    gold = f"\\sqrt{{{a}+\\sqrt{{{b}}}}}"
    return gold, [f"\\boxed{{\\sqrt{{\\sqrt{{{b + i}}}+{a}}}}}" for i in range(DIFFERENT)]


def _groups(work: str, rng: random.Random) -> Iterator[tuple[Problem, list[Response]]]:
    """Problems without end. ``mixed``: one in four takes algebra."""
    thought = "We write down what is known and work it out step by step. " * 4
    while True:
        make = _PROBLEMS[work] if work != "mixed" else rng.choice(_MIXED)
        gold, answers = make(rng)
        texts = [thought + answers[i % len(answers)] for i in range(GROUP)]
        yield _problem(answer=gold), [Response(text, 60) for text in texts]


_PROBLEMS = {"numbers": _number_problem, "symbols": _symbol_problem, "functions": _function_problem}
_MIXED = (_number_problem, _number_problem, _number_problem, _symbol_problem)


def _problem(**row: Any) -> Problem:
    return Problem(1, ({"role": "user", "content": "?"},), row)


async def _rate(part: RewardPart, groups: Iterator[tuple[Problem, list[Response]]], seconds: float) -> dict[str, Any]:
    """Scores per second, the share above zero, and the longest time the event loop was blocked."""
    scorers = Scorers([part], max_tokens=100)
    late: list[float] = []
    ticking = asyncio.create_task(_tick(late))
    try:
        await scorers.score_group(*next(groups))  # starts the children
        late.clear()
        rewards: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            scored = await asyncio.gather(*[scorers.score_group(*next(groups)) for _ in range(ABREAST)])
            rewards += [score.reward for group in scored for score in group]
        took = time.perf_counter() - began
    finally:
        ticking.cancel()
        await scorers.close()
    return {
        "a_second": round(len(rewards) / took, 1),
        "scored": len(rewards),
        "earned": round(statistics.fmean(rewards), 3),
        "loop_late_ms": round(1000 * max(late, default=0.0), 1),
    }


async def _tick(late: list[float], every: float = 0.01) -> None:
    """How much later than asked the event loop returns."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(every)
        late.append(time.perf_counter() - began - every)


def math_rate(work: str, seconds: float) -> dict[str, Any]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        figures = asyncio.run(_rate(RewardPart(type="math"), _groups(work, random.Random(1)), seconds))
    finally:
        os.sched_setaffinity(0, cores)
    return {"cores": 1, **figures}


def program_rate(seconds: float) -> dict[str, Any]:
    """One program in four is wrong; each runs in a sandbox of its own, with three tests."""

    def groups() -> Iterator[tuple[Problem, list[Response]]]:
        texts = [PROGRAM.format(fault=fault) for fault in ("", "", "", "[1:]")]
        while True:
            yield _problem(tests=TESTS), [Response(texts[i % 4], 60) for i in range(4)]

    figures = asyncio.run(_rate(RewardPart(type="code", timeout_s=10), groups(), seconds))
    return {"cores": os.cpu_count(), "isolation": isolation().mode, **figures}


def heartbeat_gaps(seconds: float) -> dict[str, Any]:
    """Seconds between heartbeats of an RL job whose reward keeps every core busy for half a second per sample."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ML_RESEARCHER_HOME"] = folder
        script = Path(folder) / "slow.py"
        script.write_text(
            "import time\n\ndef reward(prompt, response, row):\n"
            "    end = time.process_time() + 0.5\n    while time.process_time() < end:\n        sum(range(1000))\n"
            "    return len(response) % 3\n"
        )
        beats = _watch_beats(Path(folder), script, seconds)
    gaps = sorted(later - earlier for earlier, later in pairwise(beats))
    if not gaps:
        raise SystemExit("the job ended before it could be watched")
    return {"beats": len(beats), "every_s": 0.5, "median_s": round(statistics.median(gaps), 3), "most_s": gaps[-1]}


def _watch_beats(folder: Path, script: Path, seconds: float) -> list[float]:
    from benchmarks.job_overhead import stop_engine
    from sota_ml_researcher.jobs import control
    from sota_ml_researcher.jobs.create import start_job
    from sota_ml_researcher.jobs.registry import Registry
    from sota_ml_researcher.jobs.states import ACTIVE, JobState
    from sota_ml_researcher.templates.catalog import template_path
    from sota_ml_researcher.training.rl.config import load_rl_settings
    from sota_ml_researcher.training.rl.plan import plan_rl

    changes = {"reward_type": "custom", "reward_script": str(script), "val_file": None, "batch_size": 4}
    plan = plan_rl(load_rl_settings(template_path("grpo"), {**changes, "force": True}))
    registry = Registry()
    job = start_job(registry, "grpo", plan.settings.config, plan.settings.origins, files=[], total_steps=60)
    beats: list[float] = []
    try:
        while (job := registry.get(job.id)).state in ACTIVE and len(beats) < 2 * seconds:
            if job.state is JobState.RUNNING and job.heartbeat and job.heartbeat not in beats[-1:]:
                beats.append(job.heartbeat)
            time.sleep(0.02)
        if job.state in ACTIVE:
            control.cancel(registry, job.id, hard=True)
    finally:
        stop_engine()
    return beats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", default="numbers,symbols,functions,mixed,programs,heartbeats")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    for work in options.works.split(","):
        if work == "programs":
            figures = program_rate(options.seconds)
        elif work == "heartbeats":
            figures = heartbeat_gaps(options.seconds)
        else:
            figures = math_rate(work, options.seconds)
        print(json.dumps({"work": work, **figures, "target": TARGETS.get(work)}), flush=True)


if __name__ == "__main__":
    main()
