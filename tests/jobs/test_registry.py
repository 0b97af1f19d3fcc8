import sqlite3
import threading
from pathlib import Path

import pytest

from sota_ml_researcher.core.errors import JobError, StorageError
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import TRANSITIONS, CancelRequest, Job, JobState, Link


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "jobs.db")


def new_job(registry: Registry, *, backend: str = "embedded", pid: int | None = None) -> Job:
    job = registry.create(
        kind="sft", name="a run", backend=backend, base_model="demo", runs=registry.path.parent / "runs"
    )
    if pid is not None:
        registry.set_process(job.id, pid, 0.0)
    return registry.get(job.id)


def alive(pid: int | None, started: float | None) -> bool:
    return pid is not None and pid < 1000


def test_a_new_job_is_queued_and_has_its_folder(registry: Registry) -> None:
    job = new_job(registry)
    assert job.state is JobState.QUEUED
    assert job.folder.is_dir()
    assert job.id.startswith("sft-")


@pytest.mark.parametrize("state", JobState)
def test_only_the_transitions_of_the_table_are_possible(registry: Registry, state: JobState) -> None:
    for target in JobState:
        job = new_job(registry)
        with sqlite3.connect(registry.path) as db:
            db.execute("UPDATE jobs SET state = ? WHERE id = ?", (state, job.id))
        if target in TRANSITIONS[state]:
            assert registry.move(job.id, [state], target).state is target
        else:
            with pytest.raises(JobError, match="cannot become"):
                registry.move(job.id, [state], target)
            assert registry.get(job.id).state is state


def test_a_move_that_expects_another_state_changes_nothing(registry: Registry) -> None:
    job = new_job(registry)
    with pytest.raises(JobError, match="is queued"):
        registry.move(job.id, [JobState.RUNNING], JobState.SUCCEEDED)
    assert registry.get(job.id) == job


def test_of_two_processes_that_move_a_job_one_wins(registry: Registry) -> None:
    job = new_job(registry)
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            Registry(registry.path).move(job.id, [JobState.QUEUED], JobState.CANCELLED)
            outcomes.append("won")
        except JobError:
            outcomes.append("lost")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]


def test_places_are_given_in_order_of_arrival_and_up_to_the_limit(registry: Registry) -> None:
    first, second, third = (new_job(registry, pid=pid) for pid in (1, 2, 3))
    assert not registry.claim(third.id, 3, limit=2, alive=alive)
    assert registry.claim(first.id, 1, limit=2, alive=alive)
    assert registry.claim(second.id, 2, limit=2, alive=alive)
    assert not registry.claim(third.id, 3, limit=2, alive=alive)
    registry.move(first.id, [JobState.STARTING], JobState.FAILED, error="x")
    assert registry.claim(third.id, 3, limit=2, alive=alive)


def test_a_dead_holder_of_a_place_does_not_block_the_queue(registry: Registry) -> None:
    dead, waiting = new_job(registry, pid=5000), new_job(registry, pid=2)
    with sqlite3.connect(registry.path) as db:
        db.execute("UPDATE jobs SET state = 'running' WHERE id = ?", (dead.id,))
    assert registry.claim(waiting.id, 2, limit=1, alive=alive)


def test_a_job_in_a_long_queue_looks_no_further_than_the_limit(registry: Registry) -> None:
    jobs = [new_job(registry, pid=pid) for pid in range(1, 41)]
    asked: list[int | None] = []

    def counted(pid: int | None, started: float | None) -> bool:
        asked.append(pid)
        return alive(pid, started)

    assert not registry.claim(jobs[-1].id, 40, limit=2, alive=counted)
    assert len(asked) == 2


def test_backends_have_places_of_their_own(registry: Registry) -> None:
    here, there = new_job(registry, pid=1), new_job(registry, backend="tinker", pid=2)
    assert registry.claim(here.id, 1, limit=1, alive=alive)
    assert registry.claim(there.id, 2, limit=1, alive=alive)


def test_a_heartbeat_carries_progress_out_and_a_cancel_request_in(registry: Registry) -> None:
    job = new_job(registry, pid=1)
    registry.claim(job.id, 1, limit=1, alive=alive)
    assert registry.beat(job.id, 1, step=3, total_steps=10) is CancelRequest.NONE
    registry.request_cancel(job.id, CancelRequest.GRACEFUL)
    assert registry.beat(job.id, 1, step=4, total_steps=10) is CancelRequest.GRACEFUL
    assert registry.beat(job.id, 99, step=5, total_steps=10) is None
    assert registry.get(job.id).step == 4


def test_a_finished_job_cannot_be_cancelled_and_a_succeeded_one_not_resumed(registry: Registry) -> None:
    job = new_job(registry, pid=1)
    registry.claim(job.id, 1, limit=1, alive=alive)
    registry.move(job.id, [JobState.STARTING], JobState.RUNNING)
    with pytest.raises(JobError, match="running, so there is nothing to resume"):
        registry.requeue(job.id)
    registry.move(job.id, [JobState.RUNNING], JobState.SUCCEEDED)
    with pytest.raises(JobError, match="succeeded already"):
        registry.request_cancel(job.id, CancelRequest.GRACEFUL)
    with pytest.raises(JobError, match="nothing left to resume"):
        registry.requeue(job.id)


def test_a_requeued_job_keeps_its_id_and_counts_attempts(registry: Registry) -> None:
    job = new_job(registry, pid=1)
    registry.move(job.id, [JobState.QUEUED], JobState.INTERRUPTED, error="died")
    again = registry.requeue(job.id)
    assert (again.id, again.state, again.attempt, again.pid, again.error) == (job.id, JobState.QUEUED, 2, None, "")


def test_an_unknown_id_names_the_closest_one(registry: Registry) -> None:
    job = new_job(registry)
    with pytest.raises(JobError, match=job.id):
        registry.get(job.id[:-1] + ("0" if job.id[-1] != "0" else "1"))
    with pytest.raises(JobError, match="list_jobs"):
        registry.get("nonsense")


def test_pages_of_the_list_meet_without_gap_or_overlap(registry: Registry) -> None:
    ids = [new_job(registry).id for _ in range(7)]
    seen: list[str] = []
    before = None
    while page := registry.find(limit=3, before=before):
        seen += [job.id for job in page]
        before = page[-1].created
    assert seen == ids[::-1]


def test_a_database_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_text("not a database, but long enough to be looked at " * 20)
    with pytest.raises(StorageError, match=r"jobs\.db.*is damaged.*doctor --repair"):
        Registry(tmp_path / "jobs.db")


def test_a_job_knows_what_it_was_made_from_and_what_was_made_from_it(registry: Registry) -> None:
    runs = registry.path.parent / "runs"
    common = {"backend": "embedded", "base_model": "demo", "runs": runs}
    start = registry.create(kind="sft", name="start", **common)
    reward = registry.create(kind="reward_model", name="reward", parents=[Link(start.id, "weights")], **common)
    links = [Link(reward.id, "reward"), Link(start.id, "weights"), Link(start.id, "reference")]
    policy = registry.create(kind="grpo", name="policy", parents=[*links, links[0]], **common)
    assert policy.parent == start.id
    expected = [Link(start.id, "reference"), Link(start.id, "weights"), Link(reward.id, "reward")]
    assert registry.parents(policy.id) == expected
    assert {link.job_id for link in registry.family(start.id)[1]} == {reward.id, policy.id}
    assert registry.parents(start.id) == []


def test_parents_of_an_older_registry_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    registry = Registry(path)
    start, policy = new_job(registry), new_job(registry)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE lineage")
        db.execute("UPDATE jobs SET parent = ? WHERE id = ?", (start.id, policy.id))
        db.execute("PRAGMA user_version = 2")
    assert Registry(path).parents(policy.id) == [Link(start.id, "weights")]
