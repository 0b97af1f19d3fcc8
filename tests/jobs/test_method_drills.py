"""Training jobs killed on purpose and resumed, all through the MCP tools: `make drill`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from job_helpers import dpo_settings, tiny_rl, wait_until
from job_helpers import settings as sft_settings
from mcp import Client, StdioServerParameters

from sota_ml_researcher.core.paths import engine_folder
from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, Job
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.templates.catalog import template_path

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("stop_engine")]

# Of workers, engines and servers together, per method, with and without compiled loops.
KILLS = 18
# What depends on the clock or on the name of a run; everything else must repeat.
_OF_THE_MOMENT = ("time/",)


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    async def run() -> Any:
        async with Client(build_server()) as client:
            return await client.call_tool(tool, arguments)

    result = anyio.run(run)
    assert not result.is_error, result.content
    return dict(result.structured_content or {})


def finished(job_id: str) -> dict[str, Any]:
    for _ in range(20):
        shown = call("wait_for_job", job_id=job_id, timeout_s=55)
        if shown["state"] not in {state.value for state in ACTIVE}:
            return shown
    raise AssertionError(f"{job_id} does not end: {shown}")


def kill_worker(job: Job) -> None:
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)


def kill_engine() -> None:
    os.kill(json.loads((engine_folder() / "engine.json").read_bytes())["pid"], signal.SIGKILL)


def records(job: Job) -> list[dict[str, Any]]:
    found = run_files.recent_metrics(job.folder, limit=10_000)
    return [{k: v for k, v in r.items() if not k.startswith(_OF_THE_MOMENT)} for r in found]


def rollouts(job: Job) -> list[str]:
    path = job.folder / "rollouts.jsonl"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def final_weights(job: Job) -> bytes:
    result = run_files.result(job.folder)
    assert result is not None and result.final_checkpoint is not None
    run, kind, name = str(result.final_checkpoint.sampler_path).removeprefix("tinker://").split("/")
    (found,) = (engine_folder() / "checkpoints").glob(f"{run.replace(':', '%3A')}/{kind}/{name}/*.safetensors")
    return found.read_bytes()


def same_end(job_id: str, whole_id: str, steps: int) -> None:
    """A resumed run is the undisturbed one: each step once, the same numbers, rollouts, weights and token count."""
    job, whole = Registry().get(job_id), Registry().get(whole_id)
    found = records(job)
    assert [r["step"] for r in found] == list(range(steps + 1))
    assert found == records(whole)
    assert rollouts(job) == rollouts(whole)
    assert final_weights(job) == final_weights(whole)
    ours, theirs = run_files.result(job.folder), run_files.result(whole.folder)
    assert ours is not None and theirs is not None
    assert ours.tokens_trained == theirs.tokens_trained
    assert ours.best_checkpoint is not None and theirs.best_checkpoint is not None
    assert ours.best_checkpoint.step == theirs.best_checkpoint.step


def dpo_config(folder: Path, model: Path) -> dict[str, Any]:
    return dpo_settings(folder, model, rows=200, num_steps=60, checkpoint_every=7, eval_every=11)


def rl_config(folder: Path, model: Path) -> dict[str, Any]:
    steps = {"num_steps": 20, "num_substeps": 2, "checkpoint_every": 3, "eval_every": 5}
    return tiny_rl(folder, model, rows=13, kl_coef=0.05, **steps)


def overlapping_config(folder: Path, model: Path) -> dict[str, Any]:
    return {**rl_config(folder, model), "max_steps_off_policy": 2}


def sft_config(folder: Path, model: Path) -> dict[str, Any]:
    changes = {"num_steps": 60, "checkpoint_every": 7, "eval_every": 11, "learning_rate": 1e-3}
    return sft_settings(folder, model, **changes)


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """A busy loop on each of so many cores."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.fixture(params=[False, True], ids=["quiet", "busy"])
def load(request: pytest.FixtureRequest) -> Iterator[None]:
    """With or without a busy loop on each core."""
    with busy(os.cpu_count() or 1 if request.param else 0):
        yield


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize(
    ("tool", "config", "kills"),
    [
        ("start_sft", sft_config, (0, 10, 43)),
        ("start_dpo", dpo_config, (0, 10, 43)),
        ("start_grpo", rl_config, (0, 4, 13)),
        ("start_grpo", overlapping_config, (0, 4, 13)),
    ],
    ids=["sft", "dpo", "rl", "rl off-policy"],
)
def test_a_killed_worker_s_resume_repeats_the_undisturbed_run(
    tool: str,
    config: Callable[[Path, Path], dict[str, Any]],
    kills: tuple[int, ...],
    tmp_path: Path,
    tiny_weights: Path,
) -> None:
    settings = config(tmp_path, tiny_weights)
    whole = call(tool, overrides=settings)["job_id"]
    assert finished(whole)["state"] == "succeeded"
    job_id = call(tool, overrides=settings)["job_id"]
    for kill_at in kills:  # the same job, killed again and again
        job = wait_until(job_id, lambda j, at=kill_at: j.state.value == "running" and j.step >= at)
        kill_worker(job)
        shown = finished(job_id)
        assert shown["state"] == "interrupted"
        assert shown["step"] < settings["num_steps"], "it was killed too late to show anything"
        call("resume_job", job_id=job_id)
    shown = finished(job_id)
    assert (shown["state"], shown["attempt"]) == ("succeeded", len(kills) + 1), shown
    same_end(job_id, whole, settings["num_steps"])


@pytest.mark.parametrize("loops", ["on", "off"])
def test_a_cancelled_and_resumed_demo_run_repeats_with_and_without_compiled_loops(
    loops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which requests meet in a batch is a matter of the clock, and under load another one in every run."""
    monkeypatch.setenv("ML_RESEARCHER_KERNELS", loops)
    sizes = {"num_steps": 10, "batch_size": 8, "group_size": 8, "checkpoint_every": 3, "eval_every": 4}
    changes = {**sizes, "kl_coef": 0.02, "output_dir": str(tmp_path)}
    with busy(os.cpu_count() or 1):
        whole = call("start_grpo", config=str(template_path("grpo")), overrides=changes)["job_id"]
        assert finished(whole)["state"] == "succeeded"
        job_id = call("start_grpo", config=str(template_path("grpo")), overrides=changes)["job_id"]
        wait_until(job_id, lambda j: j.state.value == "running" and j.step >= 4)
        call("cancel_job", job_id=job_id)
        shown = finished(job_id)
        assert (shown["state"], shown["step"] < 10) == ("cancelled", True)
        call("resume_job", job_id=job_id)
        shown = finished(job_id)
    assert (shown["state"], shown["attempt"]) == ("succeeded", 2), shown
    same_end(job_id, whole, 10)


@pytest.mark.parametrize(
    ("tool", "config", "kill_at"), [("start_dpo", dpo_config, 25), ("start_grpo", rl_config, 8)], ids=["dpo", "rl"]
)
@pytest.mark.parametrize("both", [True, False], ids=["worker and engine", "engine"])
def test_a_run_outlives_its_engine(
    tool: str,
    config: Callable[[Path, Path], dict[str, Any]],
    kill_at: int,
    both: bool,
    tmp_path: Path,
    tiny_weights: Path,
) -> None:
    settings = config(tmp_path, tiny_weights)
    whole = call(tool, overrides=settings)["job_id"]
    assert finished(whole)["state"] == "succeeded"
    job_id = call(tool, overrides=settings)["job_id"]
    job = wait_until(job_id, lambda j: j.step >= kill_at)
    kill_engine()
    if both:
        kill_worker(job)
    shown = finished(job_id)
    assert shown["state"] == ("interrupted" if both else "failed")
    assert "Traceback" not in str(shown)
    call("resume_job", job_id=job_id)
    shown = finished(job_id)
    assert (shown["state"], shown["attempt"]) == ("succeeded", 2), shown
    same_end(job_id, whole, settings["num_steps"])


@pytest.mark.parametrize(("tool", "config"), [("start_dpo", dpo_config), ("start_grpo", rl_config)], ids=["dpo", "rl"])
def test_an_engine_that_dies_before_the_first_step_is_noticed(
    tool: str, config: Callable[[Path, Path], dict[str, Any]], tmp_path: Path, tiny_weights: Path
) -> None:
    """While the reference is measured, or the reward tried: the loop, which has its own watch, does not run yet."""
    settings = config(tmp_path, tiny_weights)
    job_id = call(tool, overrides=settings)["job_id"]
    wait_until(job_id, lambda j: j.state.value == "running")
    kill_engine()
    shown = finished(job_id)
    assert shown["state"] == "failed"
    assert "the embedded engine ended at step 0" in str(shown)
    call("resume_job", job_id=job_id)
    assert finished(job_id)["state"] == "succeeded"
    assert [r["step"] for r in records(Registry().get(job_id))] == list(range(settings["num_steps"] + 1))


def through_a_server_that_is_killed(tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool of a server of its own, which does not outlive its answer."""
    command = [sys.executable, "-m", "sota_ml_researcher.server"]
    parameters = StdioServerParameters(command=command[0], args=[*command[1:], "serve"], env=dict(os.environ))
    answers: list[dict[str, Any]] = []

    async def run() -> None:
        async with Client(parameters) as client:
            result = await client.call_tool(tool, arguments)
            answers.append(dict(result.structured_content or {"error": result.content}))
            for child in psutil.Process().children():
                if child.cmdline()[1:4] == [*command[1:], "serve"]:
                    child.kill()

    with suppress(BaseExceptionGroup):  # the client notices that its server is gone
        anyio.run(run)
    assert answers and "error" not in answers[0], answers
    return answers[0]


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(
    ("tool", "config"),
    [("start_sft", sft_config), ("start_dpo", dpo_config), ("start_grpo", rl_config)],
    ids=["sft", "dpo", "rl"],
)
def test_kills_at_any_moment_lose_and_double_nothing(
    tool: str,
    config: Callable[[Path, Path], dict[str, Any]],
    kernels: str,
    tmp_path: Path,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ML_RESEARCHER_KERNELS", kernels)
    settings = config(tmp_path, tiny_weights)
    whole = call(tool, overrides=settings)["job_id"]
    assert finished(whole)["state"] == "succeeded"
    rng = random.Random(f"{tool} {kernels}")
    kills = 0
    while kills < KILLS:
        job_id = through_a_server_that_is_killed(tool, overrides=settings)["job_id"]
        kills += 1
        while kills < KILLS and Registry().get(job_id).state in ACTIVE:
            time.sleep(rng.uniform(0.0, 8.0))  # while it starts, trains, saves or validates
            job = control.look(Registry(), job_id)
            if job.state in ACTIVE:
                with suppress(ProcessLookupError, FileNotFoundError):
                    kill_engine() if rng.random() < 0.4 else kill_worker(job)
                    kills += 1
            if finished(job_id)["state"] != "succeeded":
                through_a_server_that_is_killed("resume_job", job_id=job_id)
                kills += 1
        while finished(job_id)["state"] != "succeeded":  # the last kill
            call("resume_job", job_id=job_id)
        same_end(job_id, whole, settings["num_steps"])
