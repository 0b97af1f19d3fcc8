"""Typing commands of a terminal, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job, JobState
from sota_ml_researcher.server.cli import PROGRAM, cli


def typed(*words: str) -> Result:
    """What a command prints and its exit code; there is no terminal to ask at."""
    result = CliRunner().invoke(cli, list(words), prog_name=PROGRAM)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert not any(word in result.output.split() for word in ("None", "None.", "None,"))
    return result


def json_of(*words: str) -> Any:
    """The JSON that a command prints; it must succeed."""
    result = typed(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*words: str, code: int = 1) -> str:
    """The one line that a refusal is."""
    result = typed(*words)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def recorded(home: Path, state: JobState, *, kind: str = "sft", log: str = "", **config: Any) -> Job:
    """A job in the registry with a run folder, as if it had come to this state."""
    registry = Registry()
    job = registry.create(kind=kind, name="recorded", backend="embedded", base_model="demo", runs=home / "runs")
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())
    (job.folder / run_files.CONFIG).write_text(lines)
    (job.folder / run_files.LOG).write_text(log)
    before = JobState.QUEUED
    for step in (JobState.STARTING, JobState.RUNNING, state):
        if state is before or state is JobState.QUEUED:
            break
        registry.move(job.id, [before], step)
        before = step
    return registry.get(job.id)
