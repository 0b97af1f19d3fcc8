"""The registry's schema, as numbered steps: each runs once on a database, in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ..core.errors import StorageError


def m001_jobs(db: sqlite3.Connection) -> None:
    """One row per job."""
    db.execute(
        """
        CREATE TABLE jobs (
            id TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            state TEXT NOT NULL,
            backend TEXT NOT NULL,
            base_model TEXT NOT NULL,
            folder TEXT NOT NULL,
            created REAL NOT NULL,
            started REAL,
            ended REAL,
            pid INTEGER,
            pid_started REAL,
            heartbeat REAL,
            step INTEGER NOT NULL DEFAULT 0,
            total_steps INTEGER,
            error TEXT NOT NULL DEFAULT '',
            cancel TEXT NOT NULL DEFAULT '',
            attempt INTEGER NOT NULL DEFAULT 1,
            parent TEXT,
            cost_usd REAL,
            queued REAL NOT NULL
        )
        """
    )
    db.execute("CREATE INDEX jobs_by_age ON jobs (created DESC)")
    db.execute("CREATE INDEX jobs_by_state ON jobs (state, backend)")


def m002_spend(db: sqlite3.Connection) -> None:
    """What each job cost in each calendar month (UTC), for the monthly cap."""
    db.execute(
        "CREATE TABLE spend (job_id TEXT NOT NULL, month TEXT NOT NULL, usd REAL NOT NULL, PRIMARY KEY (job_id, month))"
    )


def m003_lineage(db: sqlite3.Connection) -> None:
    """Which jobs a job was made from, and as what: the start of its weights, its reward, its reference."""
    db.execute(
        "CREATE TABLE lineage (job_id TEXT NOT NULL, parent_id TEXT NOT NULL, role TEXT NOT NULL,"
        " PRIMARY KEY (job_id, parent_id, role))"
    )
    db.execute("INSERT INTO lineage SELECT id, parent, 'weights' FROM jobs WHERE parent IS NOT NULL")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (m001_jobs, m002_spend, m003_lineage)


def migrate(db: sqlite3.Connection, *, where: str) -> None:
    """Bring the database up to date; safe when several processes open it at once.

    Raises:
        StorageError: If a later version of this program made it. ``where``: the file, for the message.
    """
    if _version(db) > len(MIGRATIONS):
        raise StorageError(
            f"a newer version of ml-researcher made this registry (schema {_version(db)}; this one knows"
            f" {len(MIGRATIONS)})",
            where=where,
            fix="Use that version, or set ML_RESEARCHER_HOME to another folder",
        )
    if _version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for number, step in enumerate(MIGRATIONS[_version(db) :], start=_version(db) + 1):
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
