"""What `check_dataset` reports: small enough to read whole, however large the file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Severity = Literal["error", "warn", "info"]
# Enough to find the pattern; the count says how many there are in all.
SHOWN_LINES = 10


class Finding(BaseModel):
    """One kind of problem: how many rows have it, which lines, and what to do."""

    kind: str
    severity: Severity
    count: int
    lines: list[int]
    message: str
    fix: str
    rule: str | None = None


class TokenStatistics(BaseModel):
    """Tokens as the model will see them, chat template included.

    Attributes:
        total: All tokens.
        loss: Those that are trained (the assistant's words).
        histogram: Rows by length: the key is the bucket's upper bound in tokens (a power of two).
        truncated: Rows longer than ``max_seq_len``.
        loss_cut: Trained tokens that truncation removes.
    """

    total: int
    loss: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float
    histogram: dict[str, int]
    max_seq_len: int | None
    truncated: int
    loss_cut: int


class RenderedExample(BaseModel):
    """The first usable row as the model sees it; what is trained stands between ⟦ and ⟧."""

    line: int
    text: str
    tokens: int
    loss_tokens: int


class DatasetReport(BaseModel):
    """Everything found in a training file. ``ok`` means that training on it can start."""

    file: str
    sha256: str
    bytes: int
    format: str | None
    renderer: str | None
    ok: bool
    rows: int
    usable_rows: int
    exact_duplicates: int
    near_duplicates: int
    overlap_with_val: int | None
    tokens: TokenStatistics | None
    findings: list[Finding]
    example: RenderedExample | None
    seconds: float
