"""A blind check: runs written without a look at the thresholds, in every dialect, on seeds that set no threshold."""

from pathlib import Path

import pytest
from analysis_blind_runs import FAULTY, HEALTHY, Scenario, write_run

from sota_ml_researcher.analysis.diagnosis import diagnose
from sota_ml_researcher.analysis.runs import load_run

SEEDS = (9001, 9002)


def kinds(folder: Path, scenario: Scenario, dialect: str, seed: int) -> set[str]:
    place = folder / f"{scenario.family}-{scenario.name}-{dialect}-{seed}"
    return {
        f.kind for f in diagnose(load_run(str(write_run(place, scenario, dialect, seed)))).findings if f.level != "note"
    }


def test_faults_are_named_in_nine_of_ten_runs(tmp_path: Path) -> None:
    cases = [(s, d, seed) for s in FAULTY for d in s.dialects for seed in SEEDS]
    missed = [(s.name, d, seed) for s, d, seed in cases if not kinds(tmp_path, s, d, seed) & s.faults]
    assert len(cases) >= 40
    assert len(missed) <= 0.1 * len(cases), missed


def test_healthy_runs_raise_at_most_one_alarm_in_twenty(tmp_path: Path) -> None:
    cases = [(s, d, seed) for s in HEALTHY for d in s.dialects for seed in (*SEEDS, 9003)]
    alarms = [(s.name, d, seed, found) for s, d, seed in cases if (found := kinds(tmp_path, s, d, seed))]
    assert len(cases) >= 40
    assert len(alarms) <= 0.05 * len(cases), alarms


@pytest.mark.parametrize("dialect", ["ours", "trl", "csv"])
def test_the_same_run_reads_the_same_in_every_dialect(tmp_path: Path, dialect: str) -> None:
    scenario = next(s for s in FAULTY if s.name == "overfitting")
    assert kinds(tmp_path, scenario, dialect, 9010) == {"overfitting"}
