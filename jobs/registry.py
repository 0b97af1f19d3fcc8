"""The one table every server and worker shares: SQLite in WAL mode, each change one transaction.

Only this module writes a state, and every write names the state it expects to find: two processes can never
both move a job.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..core.errors import JobError, StorageError, did_you_mean
from ..core.files import appending
from ..core.paths import jobs_database
from .run_files import is_parked
from .schema import migrate
from .states import ACTIVE, OCCUPYING, RESUMABLE, TRANSITIONS, CancelRequest, Job, JobState, Link

COLUMNS = tuple(Job.__dataclass_fields__)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM jobs"
_BUSY_TIMEOUT_S = 30.0
# Among them a table that is missing: no statement of ours is malformed.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
REPAIR = "'ml-researcher doctor --repair' makes it again from what can be read of it and from the run folders"


class Registry:
    """Jobs by id. A handle holds no state of its own; open one wherever it is needed.

    Args:
        path: The database file; by default the one under ``ML_RESEARCHER_HOME``.
        clock: Seconds since the epoch; tests inject their own.
    """

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path or jobs_database()
        self._clock = clock
        if not self.path.exists():
            with appending(self.path):  # private from the start; SQLite gives its other files the same mode
                pass
        with self._open() as db:
            db.execute("PRAGMA journal_mode = WAL")  # kept in the file
            migrate(db, where=str(self.path))

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            try:
                yield db
            finally:
                db.close()
        except sqlite3.DatabaseError as error:
            raise _explained(error, self.path) from error

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Generator[sqlite3.Connection]:
        with self._open() as db:
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def create(
        self, *, kind: str, name: str, backend: str, base_model: str, runs: Path, parents: Iterable[Link] = ()
    ) -> Job:
        """Add a queued job with a fresh id and its folder ``runs/<id>``, which is created here."""
        now = self._clock()
        links = list(dict.fromkeys(parents))
        parent = next((link.job_id for link in links if link.role == "weights"), None)
        with self._transaction() as db:
            job_id = _fresh_id(db, kind)
            folder = runs / job_id
            db.execute(
                "INSERT INTO jobs (id, kind, name, state, backend, base_model, folder, created, queued, parent)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (job_id, kind, name, JobState.QUEUED, backend, base_model, str(folder), now, now, parent),
            )
            db.executemany(
                "INSERT INTO lineage (job_id, parent_id, role) VALUES (?, ?, ?)",
                [(job_id, link.job_id, link.role) for link in links],
            )
            runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        return self.get(job_id)

    def parents(self, job_id: str) -> list[Link]:
        """The jobs that a job was made from, in the order they were started."""
        return self.family(job_id)[0]

    def family(self, job_id: str) -> tuple[list[Link], list[Link]]:
        """The jobs that a job was made from, and those made from it, each in the order they were started."""
        with self._open() as db:
            return _links(db, "parent_id", "job_id", job_id), _links(db, "job_id", "parent_id", job_id)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            JobError: If there is none; the message names the closest id.
        """
        with self._open() as db:
            return _row(db, job_id)

    def find(
        self, *, states: Iterable[JobState] = (), kind: str | None = None, limit: int = 20, before: float | None = None
    ) -> list[Job]:
        """Jobs, newest first; ``before`` is the ``created`` of the last one seen, for the next page."""
        clauses: list[str] = []
        values: list[Any] = []
        wanted = tuple(states)
        if wanted:
            clauses.append(f"state IN ({', '.join('?' * len(wanted))})")
            values += wanted
        if kind is not None:
            clauses.append("kind = ?")
            values.append(kind)
        if before is not None:
            clauses.append("created < ?")
            values.append(before)
        where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
        with self._open() as db:
            rows = db.execute(f"{_SELECT}{where} ORDER BY created DESC LIMIT ?", (*values, limit)).fetchall()
        return [_job(row) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self._open() as db:
            rows = db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall()
        return {JobState(state): count for state, count in rows if state in set(JobState)}

    def move(
        self,
        job_id: str,
        expected: Iterable[JobState],
        new: JobState,
        *,
        pid: int | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        error: str | None = None,
    ) -> Job:
        """Change a job's state in one transaction that checks the old one.

        Args:
            job_id: The job.
            expected: States it may be in now.
            new: The state to enter.
            pid: If given, the job must still belong to this process.
            step: Steps done, if they are to be set with it.
            total_steps: Length of the run, if it is to be set with it.
            error: Why it stopped, if it is to be set with it.

        Raises:
            JobError: If the job is missing, in another state, or taken over by another process.
        """
        with self._transaction() as db:
            job = _row(db, job_id)
            if job.state not in set(expected) or new not in TRANSITIONS[job.state]:
                raise JobError(f"job {job_id} is {job.state}, so it cannot become {new}")
            if pid is not None and job.pid != pid:
                raise JobError(f"job {job_id} now belongs to process {job.pid}, not {pid}")
            ended = None if new in ACTIVE else self._clock()
            changes = {"ended": ended, "step": step, "total_steps": total_steps, "error": error}
            _update(db, job_id, {"state": new} | {name: v for name, v in changes.items() if v is not None})
        return self.get(job_id)

    def set_process(self, job_id: str, pid: int, pid_started: float | None) -> None:
        """Note the process a job belongs to, and when it started: that tells it from a later one with the same pid."""
        with self._transaction() as db:
            _update(db, job_id, {"pid": pid, "pid_started": pid_started, "heartbeat": self._clock()})

    def set_total_steps(self, job_id: str, total_steps: int) -> None:
        """Note the length of a job's whole run."""
        with self._transaction() as db:
            _update(db, job_id, {"total_steps": total_steps})

    def beat(self, job_id: str, pid: int, *, step: int, total_steps: int | None) -> CancelRequest | None:
        """A worker's sign of life. Returns how it was asked to stop; None when the job is no longer its own.

        Not synced to disk: a beat lost in a power cut is of no use afterwards, and a sync each half second is felt.
        """
        with self._transaction(durable=False) as db:
            changed = db.execute(
                "UPDATE jobs SET heartbeat = ?, step = ?, total_steps = COALESCE(?, total_steps)"
                " WHERE id = ? AND pid = ? AND state IN (?, ?, ?)",
                (self._clock(), step, total_steps, job_id, pid, *sorted(ACTIVE)),
            ).rowcount
            row = db.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return CancelRequest(row[0]) if changed and row else None

    def note_cost(self, job_id: str, cost_usd: float, *, is_whole: bool = True) -> None:
        """Set what a job has cost so far; what is new belongs to this month (UTC).

        Without ``is_whole`` a price is unknown: the known part counts in the month, and the job's cost stays unknown.
        """
        month = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m")
        with self._transaction(durable=False) as db:
            counted = db.execute("SELECT COALESCE(SUM(usd), 0) FROM spend WHERE job_id = ?", (job_id,)).fetchone()[0]
            _update(db, job_id, {"cost_usd": cost_usd if is_whole else None})
            db.execute(
                "INSERT INTO spend (job_id, month, usd) VALUES (?, ?, ?)"
                " ON CONFLICT (job_id, month) DO UPDATE SET usd = usd + excluded.usd",
                (job_id, month, cost_usd - counted),
            )

    def spent_this_month(self) -> float:
        """USD all jobs together have cost since the month began (UTC)."""
        month = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m")
        with self._open() as db:
            return float(db.execute("SELECT COALESCE(SUM(usd), 0) FROM spend WHERE month = ?", (month,)).fetchone()[0])

    def claim(self, job_id: str, pid: int, *, limit: int, alive: Callable[[int | None, float | None], bool]) -> bool:
        """Take a place on the backend if fewer than ``limit`` live jobs hold one and no older live job waits.

        Returns:
            True when the job is now ``starting``; False when it has to wait on.

        Raises:
            JobError: If the job is no longer queued (cancelled meanwhile).
        """
        with self._transaction() as db:
            job = _row(db, job_id)
            if job.state is not JobState.QUEUED or job.pid != pid:
                raise JobError(f"job {job_id} is {job.state}; it no longer waits for a place")
            places = db.execute(
                "SELECT pid, pid_started, folder FROM jobs"
                f" WHERE backend = ? AND state IN ({', '.join('?' * len(OCCUPYING))})",
                (job.backend, *sorted(OCCUPYING)),
            ).fetchall()
            held = ((pid, started) for pid, started, folder in places if not is_parked(Path(folder)))
            ahead = db.execute(
                "SELECT pid, pid_started FROM jobs WHERE backend = ? AND state = ? AND queued <"
                " (SELECT queued FROM jobs WHERE id = ?)",
                (job.backend, JobState.QUEUED, job_id),
            )
            # No further than the limit: each of a thousand waiting jobs asks, twice a second, and those ahead live.
            before = (process for process in chain(held, ahead) if alive(*process))
            if sum(1 for _ in islice(before, limit)) >= limit:
                return False
            _update(db, job_id, {"state": JobState.STARTING, "started": self._clock(), "heartbeat": self._clock()})
        return True

    def request_cancel(self, job_id: str, request: CancelRequest) -> Job:
        """Ask the worker to stop; it obeys at its next heartbeat.

        Raises:
            JobError: If the job has ended already.
        """
        with self._transaction() as db:
            job = _row(db, job_id)
            if job.state not in ACTIVE:
                raise JobError(
                    f"job {job_id} is {job.state} already", fix="There is nothing to cancel; get_job shows its result"
                )
            _update(db, job_id, {"cancel": request})
        return self.get(job_id)

    def is_sound(self) -> bool:
        """Whether SQLite finds its file in order."""
        with self._open() as db:
            return db.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",)

    def put_back(self, tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """Add rows of each table (see `jobs.repair`); those whose key is there already are left as they are."""
        with self._transaction() as db:
            for table, rows in tables.items():
                columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
                marks = ", ".join(f":{name}" for name in columns)
                db.executemany(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def requeue(self, job_id: str) -> Job:
        """Put a stopped job back into the queue for another attempt.

        Raises:
            JobError: If it still runs, or has succeeded.
        """
        with self._transaction() as db:
            job = _row(db, job_id)
            if job.state in ACTIVE:
                raise JobError(f"job {job_id} is {job.state}, so there is nothing to resume", fix="Use wait_for_job")
            if job.state not in RESUMABLE:
                raise JobError(f"job {job_id} has {job.state}; there is nothing left to resume", fix="Start a new job")
            fields: dict[str, Any] = {"state": JobState.QUEUED, "queued": self._clock(), "attempt": job.attempt + 1}
            fields |= dict.fromkeys(("pid", "pid_started", "heartbeat", "ended"), None) | {"error": "", "cancel": ""}
            _update(db, job_id, fields)
        return self.get(job_id)

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended, and that others were made from it; what it cost still counts for its months.

        Raises:
            JobError: If there is no such job, or it is active.
        """
        with self._transaction() as db:
            if (job := _row(db, job_id)).state in ACTIVE:
                raise JobError(f"job {job_id} is {job.state}, so it cannot be removed", fix="cancel_job stops it")
            db.execute("DELETE FROM lineage WHERE ? IN (job_id, parent_id)", (job_id,))
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))


class DamagedRegistryError(StorageError):
    """The file is not a registry any more, or not all of it."""


def _explained(error: sqlite3.DatabaseError, path: Path) -> StorageError:
    """What is wrong with the file, and the way out. Codes: sqlite.org/rescode.html; the low byte is the kind."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if kind in _DAMAGE:
        return DamagedRegistryError(f"the job registry is damaged ({error})", where=str(path), fix=REPAIR)
    if kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        problem = f"has been held by another process for {_BUSY_TIMEOUT_S:g} s"
        fix = "Nothing is lost: try again, and end the program that holds the file if it goes on"
    elif kind in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        problem, fix = "could not be read or written", "Check that the disk is not full"
    else:
        problem, fix = "cannot be opened", "Check that it is a file and that its folder is writable"
    return StorageError(f"the job registry {problem} ({error})", where=str(path), fix=fix)


def _row(db: sqlite3.Connection, job_id: str) -> Job:
    row = db.execute(f"{_SELECT} WHERE id = ?", (job_id,)).fetchone()
    if row is not None:
        return _job(row)
    recent = [r[0] for r in db.execute("SELECT id FROM jobs ORDER BY created DESC LIMIT 200")]
    fix = did_you_mean(job_id, recent) or "list_jobs shows the ids there are"
    raise JobError(f"there is no job '{job_id}'", fix=fix)


def _links(db: sqlite3.Connection, wanted: str, key: str, job_id: str) -> list[Link]:
    query = (
        f"SELECT {wanted}, role FROM lineage LEFT JOIN jobs ON jobs.id = {wanted}"
        f" WHERE {key} = ? ORDER BY jobs.created, role"
    )
    return [Link(*row) for row in db.execute(query, (job_id,))]


def _update(db: sqlite3.Connection, job_id: str, fields: Mapping[str, Any]) -> None:
    assignments = ", ".join(f"{column} = ?" for column in fields)
    db.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*fields.values(), job_id))


def _fresh_id(db: sqlite3.Connection, kind: str) -> str:
    """``sft-7f3a9c``: the kind tells a reader what it is, six hex digits are enough to type."""
    while True:
        job_id = f"{kind}-{secrets.token_hex(3)}"
        if db.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is None:
            return job_id


def _job(row: tuple[Any, ...]) -> Job:
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        values["state"] = JobState(values["state"])
        values["cancel"] = CancelRequest(values["cancel"])
    except ValueError as error:
        raise DamagedRegistryError(f"the row of job {values['id']} is damaged ({error})", fix=REPAIR) from error
    values["folder"] = Path(values["folder"])
    return Job(**values)
