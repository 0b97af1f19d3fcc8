from pathlib import Path

import numpy as np
import pytest
from analysis_scoring import score_faults, score_healthy, table
from analysis_synthetic import FAULTS, faulty, healthy

import sota_ml_researcher.core.paths as anchor
from sota_ml_researcher.analysis.diagnosis import diagnose, measure_change
from sota_ml_researcher.analysis.findings import RunFinding
from sota_ml_researcher.analysis.runs import Run, load_run
from sota_ml_researcher.analysis.series import Series, change_points, noise_of, rolling_median, spikes
from sota_ml_researcher.doctrine.rules import load_rules
from sota_ml_researcher.jobs.registry import Registry

DOCS = Path(anchor.__file__).parents[1] / "docs" / "analysis.md"


def test_known_faults_are_found_and_healthy_runs_left_alone_as_the_docs_say() -> None:
    faults, sound = score_faults(), score_healthy()
    assert sum(s.runs for s in faults) >= 40
    assert sum(s.right for s in faults) / sum(s.runs for s in faults) >= 0.9
    assert sum(s.runs - s.right for s in sound) / sum(s.runs for s in sound) <= 0.05
    assert table(faults, sound) in DOCS.read_text(encoding="utf-8"), "run: python scripts/make_analysis_table.py"


@pytest.mark.parametrize("name", FAULTS)
def test_a_finding_has_evidence_a_rule_and_one_next_experiment(name: str, tmp_path: Path) -> None:
    for finding in diagnose(load_run(str(faulty(name, 3).write(tmp_path / "run")))).findings:
        assert finding.rule in load_rules()
        assert finding.evidence and len(finding.next_experiment) > 20
        assert finding.confidence in ("high", "medium", "low")


def only(kind: str, findings: list[RunFinding]) -> RunFinding:
    return next(f for f in findings if f.kind == kind)


def test_the_evidence_points_at_the_line_of_the_file(tmp_path: Path) -> None:
    rows = [f'{{"step": {i}, "train_mean_nll": {2 + 0.01 * (i % 3)}}}\n' for i in range(100)]
    rows[70] = '{"step": 70, "train_mean_nll": 9.5}\n'
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    finding = only("spikes", diagnose(load_run(str(tmp_path))).findings)
    assert str(finding.evidence[0]) == "train_mean_nll at step 70, line 71: value 9.5, usual 2.01"


def test_overfitting_names_the_best_step(tmp_path: Path) -> None:
    run = faulty("overfitting", 2)
    steps, values = run.sparse["test/nll"]
    best = int(steps[np.argmin(values)])
    finding = only("overfitting", diagnose(load_run(str(run.write(tmp_path / "run")))).findings)
    logged = best + 1 if run.style == "trl" else best  # TRL counts steps from 1
    assert f"lowest at step {logged} " in finding.summary


def test_the_next_experiment_names_the_rate_where_it_is_known(tmp_path: Path) -> None:
    run = faulty("divergence", 1)
    run.config["learning_rate"] = 3e-4
    finding = only("divergence", diagnose(load_run(str(run.write(tmp_path / "run")))).findings)
    assert "learning_rate: 0.0001 " in finding.next_experiment


def test_improved_is_said_only_beyond_the_noise() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(200)

    def change(fall: float) -> str:
        values = 2 - fall * steps / 200 + rng.normal(0, 0.1, 200)
        return measure_change(Series("loss", steps, values, steps), lower=True).word

    # 10 points of noise 0.1 at the start, 20 at the end: standard error 1.25 x 0.1 x sqrt(1/10 + 1/20) = 0.048, times 4
    assert [change(0.0) for _ in range(20)] == ["no change beyond the noise"] * 20
    assert [change(0.4) for _ in range(20)] == ["improved"] * 20
    assert [change(-0.4) for _ in range(20)] == ["worsened"] * 20


def test_noise_is_that_around_the_trend_and_blind_to_outliers() -> None:
    rng = np.random.default_rng(1)
    values = np.linspace(5, 1, 4000) + rng.normal(0, 0.2, 4000)
    values[::100] += 50
    assert noise_of(values) == pytest.approx(0.2, rel=0.08)


def test_a_rolling_median_has_every_point_and_shrinks_at_the_ends() -> None:
    # width 3: the first point stands alone, the last has the one before it, (9 + 3) / 2
    assert rolling_median(np.array([5.0, 1.0, 2.0, 9.0, 3.0]), 3).tolist() == [5.0, 2.0, 2.0, 3.0, 6.0]


def test_a_jump_is_found_at_its_place() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([np.zeros(60), np.ones(40)]) + rng.normal(0, 0.1, 100)
    assert change_points(values, noise=0.1) == [60]
    assert change_points(rng.normal(0, 0.1, 100), noise=0.1) == []


def test_a_spike_of_one_step_in_a_million_is_found() -> None:
    rng = np.random.default_rng(3)
    values = 2 + rng.normal(0, 0.05, 1_000_000)
    values[777_777] = 5
    steps = np.arange(1_000_000)
    found = spikes(Series("loss", steps, values, steps + 1), sigmas=10, share=0.25)
    assert [s.step for s in found] == [777_777]


def stalled_run(folder: Path, quiet_s: float) -> Run:
    registry = Registry()
    job = registry.create(kind="sft", name="a", backend="embedded", base_model="demo", runs=folder)
    run = load_run(str(healthy("sft", 5).write(folder / "synthetic")))
    run.job, run.quiet_s, run.planned_steps = job, quiet_s, 10_000
    return run


def test_a_running_job_that_logs_nothing_for_long_has_stalled(tmp_path: Path) -> None:
    assert only("stalled", diagnose(stalled_run(tmp_path, 36_000)).findings).level == "warn"


def test_a_running_job_that_logged_just_now_is_neither_stalled_nor_unfinished(tmp_path: Path) -> None:
    assert diagnose(stalled_run(tmp_path, 1)).findings == []
