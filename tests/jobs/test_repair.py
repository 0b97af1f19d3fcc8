"""Making a damaged registry again from its rows and from the run folders."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import StorageError
from sota_ml_researcher.core.paths import jobs_database
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.repair import repair_registry
from sota_ml_researcher.jobs.states import JobState, Link

pytestmark = pytest.mark.usefixtures("own_home")


def made_run(kind: str = "sft", *, finished: bool | None = None, parent: str | None = None, steps: int = 3) -> str:
    """A job with the files its worker would have left."""
    runs = jobs_database().parent / "runs"
    parents = [Link(parent, "weights")] if parent else []
    job = Registry().create(kind=kind, name="tails", backend="embedded", base_model="demo", runs=runs, parents=parents)
    (job.folder / "config.yaml").write_text("base_model: demo\nbackend: embedded\n")
    links = [{"job_id": parent, "role": "weights"}] if parent else []
    facts = {"job": {"name": "tails", "total_steps": 9, "parents": links}}
    (job.folder / "environment.json").write_text(json.dumps(facts))
    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1))
    (job.folder / "metrics.jsonl").write_text(lines)
    if finished is not None:
        (job.folder / "result.json").write_text(json.dumps({"finished": finished}))
    return job.id


def checkpointed() -> Path:
    """The database as one file."""
    path = jobs_database()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("damage", ["not a database", "", "cut"])
def test_jobs_come_back_from_their_run_folders(damage: str) -> None:
    first = made_run(finished=True, steps=9)
    second = made_run("dpo", parent=first)
    stopped = made_run(finished=False)
    path = checkpointed()
    path.write_bytes(path.read_bytes()[:5000] if damage == "cut" else damage.encode())
    if damage:
        with pytest.raises(StorageError, match=r"registry is damaged .*doctor --repair"):
            Registry().find()
    done = repair_registry()
    assert (done.kept_as is not None) == bool(damage)
    assert sorted(done.restored) == sorted([first, second, stopped])
    registry = Registry()
    assert registry.get(first).state is JobState.SUCCEEDED
    job = registry.get(second)
    assert (job.state, job.step, job.total_steps, job.name) == (JobState.INTERRUPTED, 3, 9, "tails")
    assert "made again from its run folder" in job.error
    assert registry.parents(second) == [Link(first, "weights")]
    assert registry.get(stopped).state is JobState.INTERRUPTED
    assert repair_registry().restored == []


def test_rows_around_an_unreadable_page_are_kept_as_they_are() -> None:
    ids = [made_run() for _ in range(24)]
    registry = Registry()
    for job_id in ids:
        registry.move(job_id, [JobState.QUEUED], JobState.FAILED, error="of old " + "x" * 1500)
    path = checkpointed()
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    middle = content.rindex(b"of old", 0, len(content) // 2) // page * page
    content[middle : middle + page] = os.urandom(page)
    path.write_bytes(content)
    done = repair_registry()
    assert done.kept_as is not None and done.kept_as.read_bytes() == bytes(content)
    assert 10 < done.read < 24
    assert sorted(job.id for job in Registry().find(limit=100)) == sorted(ids)
    untouched = set(ids) - set(done.restored)
    assert {Registry().get(job_id).state for job_id in untouched} == {JobState.FAILED}


def test_a_sound_registry_is_left_alone_but_for_what_it_misses() -> None:
    kept = made_run()
    lost = made_run()
    with closing(sqlite3.connect(jobs_database(), isolation_level=None)) as db:
        db.execute("DELETE FROM jobs WHERE id = ?", (lost,))
    (jobs_database().parent / "runs" / "no-run").mkdir()
    done = repair_registry()
    assert (done.kept_as, done.read, done.restored) == (None, 1, [lost])
    assert Registry().get(kept).state is JobState.QUEUED


def test_a_registry_of_a_newer_version_is_refused_and_not_repaired() -> None:
    made_run()
    with closing(sqlite3.connect(jobs_database(), isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    for use in (Registry, repair_registry):
        with pytest.raises(StorageError, match=r"newer version .* \(schema 99; this one knows 3\)"):
            use()


def test_a_held_registry_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.jobs.registry._BUSY_TIMEOUT_S", 0.1)
    job_id = made_run()
    with closing(sqlite3.connect(jobs_database(), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"held by another process for 0.1 s .* Nothing is lost"):
            Registry().set_total_steps(job_id, 5)
        db.execute("ROLLBACK")
    Registry().set_total_steps(job_id, 5)


def test_a_folder_in_the_registry_s_place_is_named() -> None:
    jobs_database().mkdir()
    for use in (Registry, repair_registry):
        with pytest.raises(StorageError, match=r"cannot be opened .* Check that it is a file"):
            use()


def test_a_row_of_nonsense_is_one_sentence() -> None:
    job_id = made_run()
    with closing(sqlite3.connect(jobs_database(), isolation_level=None)) as db:
        db.execute("UPDATE jobs SET state = 'x\x01'")
    with pytest.raises(StorageError, match=rf"the row of job {job_id} is damaged .*doctor --repair"):
        Registry().get(job_id)
    assert repair_registry().restored == [job_id]
    assert Registry().get(job_id).state is JobState.INTERRUPTED
