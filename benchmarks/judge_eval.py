"""Figures of the judge evaluation, measured against judges on loopback that answer as the real service does.

    python -m benchmarks.judge_eval [--pairs 1000] [--concurrency 50] [--delay 0.2] [--only undisturbed]

Each case is a job of its own, in its own process, as users start it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sota_ml_researcher.evals.judge_config import load_judge_settings
from sota_ml_researcher.evals.judge_plan import plan_judge_eval
from sota_ml_researcher.evals.statistics.comparison_models import length_adjusted
from sota_ml_researcher.evals.statistics.hypothesis_tests import sign_test
from sota_ml_researcher.evals.statistics.intervals import mean_interval
from sota_ml_researcher.jobs import control
from sota_ml_researcher.jobs.create import start_job
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, Job

PARTS = ("undisturbed", "with_20_percent_faults", "killed_and_resumed", "statistics")
SUPPORT = Path(__file__).parents[1] / "tests" / "support"
LOOPBACK = SUPPORT / "loopback_judges.py"


@contextmanager
def loopback(**options: float) -> Generator[str]:
    """Judges in a process of their own; yields the address."""
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen([sys.executable, str(LOOPBACK), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = str(json.loads(process.stdout.readline())["url"])
        os.environ |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-ant-test"}
        yield url
    finally:
        process.terminate()
        process.wait()


def write_sums(folder: Path, pairs: int) -> dict[str, Any]:
    """A test set and two arms: the tuned one is right in 70% of the prompts, the baseline in 50%."""
    rng = random.Random(0)
    rows = [{"prompt": f"{n}+{n}=", "reference": str(2 * n)} for n in range(pairs)]
    paths: dict[str, Any] = {"test_set": folder / "test.jsonl"}
    paths["test_set"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arm, share, end in (("finetuned_model", 0.7, ""), ("baseline_model", 0.5, "\n")):
        # They differ by a line's end, so that no two questions are equal: the server counts questions by their content.
        rights = [rng.random() < share for _ in rows]
        answers = [r | {"response": (r["reference"] if ok else "no") + end} for r, ok in zip(rows, rights, strict=True)]
        paths[arm] = folder / f"{arm}.jsonl"
        paths[arm].write_text("".join(json.dumps(a) + "\n" for a in answers))
    return {key: str(path) for key, path in paths.items()}


class PeakMemory(threading.Thread):
    """Resident memory of a worker, and of its largest child, sampled every 50 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.worker_mb = self.child_mb = 0.0
        self._process = psutil.Process(pid)

    def run(self) -> None:
        """Sample until the worker is gone."""
        while True:
            try:
                own = self._process.memory_info().rss
                child = max([0, *(c.memory_info().rss for c in self._process.children(recursive=True))])
            except psutil.Error:
                return
            self.worker_mb = max(self.worker_mb, own / 2**20)
            self.child_mb = max(self.child_mb, child / 2**20)
            time.sleep(0.05)


def start(config: dict[str, Any]) -> Job:
    plan = plan_judge_eval(load_judge_settings(None, config))
    chosen = plan.settings
    return start_job(
        Registry(), "judge_eval", chosen.config, chosen.origins, files=plan.files, total_steps=plan.total_steps
    )


def finish(job: Job) -> Job:
    while job.state in ACTIVE:
        time.sleep(0.05)
        job = control.look(Registry(), job.id)
    if job.state != "succeeded":
        raise SystemExit(f"{job.id} {job.state}: {job.error}")
    return job


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return json.load(answer)


def undisturbed(config: dict[str, Any], delay: float, concurrency: int) -> dict[str, Any]:
    with loopback(delay=delay) as url:
        job = start(config)
        memory = PeakMemory(job.pid or 0)
        memory.start()
        began = time.monotonic()
        job = finish(job)
        total_s = time.monotonic() - began
        seen = stats(url)
    judges = json.loads((job.folder / "judges.json").read_text())
    calls = seen["answered"]
    ideal = calls / concurrency * delay
    return {
        "calls": calls,
        "asked_twice": seen["most"] > 1,
        "ideal_s": round(ideal, 2),
        "judging_s": judges["judging_s"],
        "ratio": round(judges["judging_s"] / ideal, 3),
        "whole_job_s": round(total_s, 1),
        "worker_peak_mb": round(memory.worker_mb),
        "analysis_peak_mb": round(memory.child_mb),
        "verdict": json.loads((job.folder / "metrics.json").read_text())["comparisons"][0]["mean"],
    }


def with_faults(config: dict[str, Any], delay: float) -> dict[str, Any]:
    """A fifth of the requests gets 429 or 529, or no answer before the client times out."""
    patience_s, retry_after_s = 5 * delay, 0.5
    with loopback(delay=delay, faults=0.2, hang=3 * patience_s, retry_after=retry_after_s) as url:
        job = finish(start(config | {"judge_timeout_s": patience_s}))
        seen = stats(url)
    metrics = json.loads((job.folder / "metrics.json").read_text())
    lines = (job.folder / "judgments.jsonl").read_text().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    return {
        "calls_answered": seen["answered"],
        "most_answers_to_one": seen["most"],
        "faults_by_status_0_is_silence": seen["faults"],
        "asked_again_before_retry_after": seen["early"],
        "judgments": len(lines),
        "distinct": len(keys),
        "unscored": sum(c["missing"] for c in metrics["unscored"]["by_arm"].values()),
        "judging_s": json.loads((job.folder / "judges.json").read_text())["judging_s"],
    }


def killed(config: dict[str, Any], delay: float, concurrency: int) -> dict[str, Any]:
    with loopback(delay=delay) as url:
        job = start(config)
        while len(_lines(job)) < 400:
            time.sleep(0.02)
        os.kill(job.pid or 0, signal.SIGKILL)
        before = len(_lines(job))
        while job.state in ACTIVE:
            time.sleep(0.05)
            job = control.look(Registry(), job.id)
        control.resume(Registry(), job.id)
        job = finish(control.look(Registry(), job.id))
        seen = stats(url)
    keys = [json.loads(line)["key"] for line in _lines(job)]
    return {
        "judged_before_the_kill": before,
        "judgments": len(keys),
        "judged_twice": len(keys) - len(set(keys)),
        "answers_lost_under_way": seen["most"] - 1,
        "under_way_at_most": concurrency,
        "verdict": json.loads((job.folder / "metrics.json").read_text())["comparisons"][0]["mean"],
    }


def _lines(job: Job) -> list[str]:
    path = job.folder / "judgments.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def statistics() -> dict[str, float]:
    rng = np.random.default_rng(0)
    scores = rng.choice([0, 0.5, 1], size=10_000)
    clusters = rng.integers(0, 4000, 10_000).tolist()
    began = time.perf_counter()
    mean_interval(scores, clusters=clusters, bounds=(0, 1))
    length_adjusted(scores.tolist(), rng.normal(size=10_000).tolist(), clusters=clusters)
    sign_test((scores - 0.5).tolist(), clusters=clusters)
    return {"items": 10_000, "seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["ML_RESEARCHER_HOME"] = str(Path(name) / "home")
        config = write_sums(Path(name), options.pairs)
        config |= {"judge_model": "claude-haiku-5-5", "parallel_judges": options.concurrency}
        parts: dict[str, Callable[[], Any]] = {
            "undisturbed": lambda: undisturbed(config, options.delay, options.concurrency),
            "with_20_percent_faults": lambda: with_faults(config, options.delay),
            "killed_and_resumed": lambda: killed(config, options.delay, options.concurrency),
            "statistics": statistics,
        }
        figures = {name: part() for name, part in parts.items() if options.only in (None, name)}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
