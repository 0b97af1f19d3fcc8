"""What the docs and the doctrine say of the statistics is what the program measures."""

import re
from pathlib import Path

import make_judge_tables as tables
import pytest

ROOT = Path(__file__).parents[2]


def test_the_doctrine_says_what_is_computed() -> None:
    for name, rewrite in (("rules.yaml", tables.with_notes), ("judge_evaluation.md", tables.with_prompts_needed)):
        text = (ROOT / "doctrine" / name).read_text(encoding="utf-8")
        assert rewrite(text) == text


def test_a_note_is_written_into_its_own_rule() -> None:
    text = "a.b:\n  note: one\n" + "".join(
        f"{rule}:\n  claim: c\n  value: 1\n  note: old\nother.{rule}:\n  note: kept\n"
        for rule in ("judge.samples", "judge.control.size", "stats.wilson")
    )
    found = tables.with_notes(text)
    assert "note: old" not in found
    assert found.count("note: kept") == 3
    assert found.startswith("a.b:\n  note: one\n")


def test_no_verdict_at_one_half_is_likelier_than_one_in_twenty() -> None:
    assert tables.false_verdicts() <= 0.05


@pytest.mark.parametrize("kind", tables.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_the_shown_coverage_is_measured_again_within_the_noise(kind: tables.Kind, rate: float) -> None:
    page = (ROOT / "docs" / "judge-eval.md").read_text(encoding="utf-8")
    row = re.search(rf"(?m)^\| 50 \| {kind.name} \| (.*) \|$", page)
    assert row is not None
    shown = float(re.sub(r"[^\d.]", "", row[1].split(" | ")[tables.RATES.index(rate)])) / 100
    # 4,000 repeats against 20,000: 1.6 points are more than four standard errors
    assert tables.coverage(kind, 50, rate, 4000, seed=3) == pytest.approx(shown, abs=0.016)
