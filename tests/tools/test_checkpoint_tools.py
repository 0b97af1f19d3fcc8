"""Listing what is stored, as a client sees it."""

from datetime import UTC, datetime

import pytest
from tool_calls import call

from sota_ml_researcher.backends.stored_checkpoints import StoredCheckpoint

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
    assert "2 checkpoints, 0.003 GB, $0.75 per month." in text
    assert "tinker://a/weights/1  3.0 MB, expires 2026-02-03" in text
    assert "tinker://a/weights/final  0.0 MB, never expires" in text
    first, last = content["checkpoints"]
    assert (first["bytes"], first["usd_month"], last["bytes"], last["expires"]) == (3_000_000, 0.25, None, None)
    assert first["expires"].startswith("2026-02-03T00:00:00")
    assert (content["total_bytes"], content["usd_month"]) == (3_000_000, 0.75)
