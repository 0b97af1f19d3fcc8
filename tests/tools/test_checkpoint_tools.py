"""Listing what is stored, as a client sees it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from job_helpers import ended, settings, start, wait_until
from tool_calls import call

from sota_ml_researcher.backends.stored_checkpoints import StoredCheckpoint
from sota_ml_researcher.jobs.job_results import checkpoint_path

CREATED, EXPIRES = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 2, 3, tzinfo=UTC)
STORED = [
    StoredCheckpoint("tinker://a/weights/1", 3_000_000, CREATED, EXPIRES, 0.25),
    StoredCheckpoint("tinker://a/weights/final", None, CREATED, None, 0.5),
]


def test_stored_checkpoints_have_sizes_expiry_and_price(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "sota_ml_researcher.backends.stored_checkpoints"
    monkeypatch.setattr(f"{where}.stored_checkpoints", lambda *_: STORED)
    failed, text, content = call("manage_checkpoints", backend="cluster", base_url="http://x")
    assert not failed, text
    assert "2 checkpoints, 0.003 GB and 1 of unknown size, $0.75 per month." in text
    assert "tinker://a/weights/1  3.0 MB, expires 2026-02-03" in text
    assert "tinker://a/weights/final  size unknown, never expires" in text
    first, last = content["checkpoints"]
    assert (first["bytes"], first["usd_month"], last["bytes"], last["expires"]) == (3_000_000, 0.25, None, None)
    assert first["expires"].startswith("2026-02-03T00:00:00")
    assert (content["total_bytes"], content["usd_month"]) == (3_000_000, 0.75)


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("tool", ["sample_model", "export_checkpoint"])
def test_a_jobs_checkpoint_is_looked_for_nowhere_but_where_it_is(tool: str, tmp_path: Path, tiny_weights: Path) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=1, val_file=None)
    job = wait_until(start(**config).id, ended)
    more = {"prompts": ["hi"]} if tool == "sample_model" else {}
    failed, text, _ = call(tool, model=job.id, backend="tinker", **more)
    assert failed
    assert f"the checkpoints of job {job.id} are on backend embedded. Leave backend and base_url out" in text


@pytest.mark.usefixtures("shared_engine")
def test_a_checkpoint_named_by_its_path_is_sampled_in_the_format_it_was_trained_with(
    tmp_path: Path, tiny_weights: Path
) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=1, val_file=None, renderer="role_colon")
    job = wait_until(start(**config).id, ended)
    path = checkpoint_path(job, "sampler_path")
    asked = {"prompts": ["1 plus 2?"], "temperature": 0, "max_tokens": 16}
    answers = {model: call("sample_model", model=model, **asked)[2]["samples"] for model in (job.id, path)}
    assert answers[path] == answers[job.id]
    base = call("sample_model", model=str(tiny_weights), **asked)[2]["samples"]
    assert base[0]["completions"][0]["logprob"] != answers[path][0]["completions"][0]["logprob"]
