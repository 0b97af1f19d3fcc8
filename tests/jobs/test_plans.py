from pathlib import Path
from typing import Any

import pytest

from sota_ml_researcher.core.errors import JobError
from sota_ml_researcher.core.paths import home
from sota_ml_researcher.jobs import plan_store


def mark(tmp_path: Path, *, steps: int = 1, data: str = "a", prices: str = "p") -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text(data)
    return plan_store.fingerprint("sft", {"steps": steps}, [path], prices=prices)


def test_a_plan_starts_its_job_once(tmp_path: Path) -> None:
    plan_id = plan_store.offer("sft", mark(tmp_path))
    plan_store.redeem(plan_id, "sft", mark(tmp_path))
    with pytest.raises(JobError, match=r"no open plan .*used.*new plan"):
        plan_store.redeem(plan_id, "sft", mark(tmp_path))


@pytest.mark.parametrize("change", [{"steps": 2}, {"data": "b"}, {"prices": "q"}])
def test_a_change_of_settings_data_or_prices_needs_a_new_plan(change: dict[str, Any], tmp_path: Path) -> None:
    plan_id = plan_store.offer("sft", mark(tmp_path))
    with pytest.raises(JobError, match="are not those of plan"):
        plan_store.redeem(plan_id, "sft", mark(tmp_path, **change))
    plan_store.redeem(plan_id, "sft", mark(tmp_path))


@pytest.mark.parametrize("later", [3601.0, -120.0])
def test_a_plan_is_refused_after_an_hour_and_when_the_clock_was_set_back(later: float, tmp_path: Path) -> None:
    plan_id = plan_store.offer("sft", mark(tmp_path), clock=lambda: 1000.0)
    with pytest.raises(JobError, match="has expired"):
        plan_store.redeem(plan_id, "sft", mark(tmp_path), clock=lambda: 1000.0 + later)


def test_a_plan_of_another_kind_is_refused(tmp_path: Path) -> None:
    plan_id = plan_store.offer("dpo", mark(tmp_path))
    with pytest.raises(JobError, match="of kind dpo"):
        plan_store.redeem(plan_id, "sft", mark(tmp_path))


@pytest.mark.parametrize("foreign", ["plan-000000000000", "../jobs", "plan-../../etc/passwd", ""])
def test_a_foreign_id_is_refused_and_reads_no_other_file(foreign: str, tmp_path: Path) -> None:
    (home() / "jobs.json").write_text("{}")
    with pytest.raises(JobError, match="no open plan"):
        plan_store.redeem(foreign, "sft", mark(tmp_path))
