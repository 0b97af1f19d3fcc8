import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sota_ml_researcher.analysis.diagnosis import diagnose
from sota_ml_researcher.analysis.metrics_reading import read_metrics
from sota_ml_researcher.analysis.runs import Run, load_run
from sota_ml_researcher.core.errors import DataError, JobError, ResearcherError
from sota_ml_researcher.jobs.registry import Registry


def write(folder: Path, rows: list[dict[str, Any]], *, tail: str = "", name: str = "metrics.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def losses(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"step": i, "train_mean_nll": 2.0 / (1 + i)} for i in range(start, start + n)]


def steps_of(run: Run) -> list[int]:
    return run.series["train_loss"].steps.tolist()


def test_a_half_written_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = load_run(str(write(tmp_path, losses(4), tail='{"step": 4, "train_me')))
    assert steps_of(run) == [0, 1, 2, 3]
    assert run.notes == ["line 5 is still being written: left out"]


def test_a_whole_last_line_without_a_newline_counts(tmp_path: Path) -> None:
    assert steps_of(load_run(str(write(tmp_path, losses(2), tail='{"step": 2, "train_mean_nll": 0.5}')))) == [0, 1, 2]


def test_nan_and_infinity_are_kept_apart_with_their_lines(tmp_path: Path) -> None:
    rows = losses(6)
    rows[3]["train_mean_nll"], rows[5]["train_mean_nll"] = math.nan, -math.inf
    series = load_run(str(write(tmp_path, rows))).series["train_loss"]
    assert series.steps.tolist() == [0, 1, 2, 4]
    assert series.not_finite == ((3, 4), (5, 6))  # lines count from 1


def test_a_broken_line_in_the_middle_is_left_out_and_later_lines_keep_their_numbers(tmp_path: Path) -> None:
    text = '{"step": 0, "loss": 2}\n{"step": 1, "lo\n{"step": 2, "loss": 1}\n\n{"step": 3, "loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    run = load_run(str(tmp_path))
    assert steps_of(run) == [0, 2, 3]
    assert run.series["train_loss"].lines.tolist() == [1, 3, 5]
    assert run.notes == ["1 broken lines left out (line 2)"]


def test_names_that_first_appear_late_and_mixed_types_are_read(tmp_path: Path) -> None:
    rows = losses(3000)
    rows[2500] |= {"test/nll": 1, "remark": {"a": [1, 2]}}
    rows[2600] |= {"test/nll": 0.5, "remark": "text"}
    rows[2700] |= {"test/nll": "nan"}
    run = load_run(str(write(tmp_path, rows)))
    assert run.series["val_loss"].values.tolist() == [1.0, 0.5]
    assert run.series["val_loss"].lines.tolist() == [2501, 2601]
    assert len(run.series["train_loss"]) == 3000


def test_large_and_small_blocks_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = losses(5000)
    for i in range(0, 5000, 700):
        rows[i]["test/nll"] = float(i)
    whole = read_metrics(write(tmp_path, rows) / "metrics.jsonl")
    monkeypatch.setattr("sota_ml_researcher.analysis.metrics_reading._BLOCK", 999)
    pieces = read_metrics(tmp_path / "metrics.jsonl")
    assert whole.columns.keys() == pieces.columns.keys() == {"step", "train_mean_nll", "test/nll"}
    for name in whole.columns:
        np.testing.assert_array_equal(whole.columns[name][0], pieces.columns[name][0])
        np.testing.assert_array_equal(whole.columns[name][1], pieces.columns[name][1])
    np.testing.assert_array_equal(whole.lines, pieces.lines)


def test_a_resume_that_repeats_steps_keeps_the_later_values(tmp_path: Path) -> None:
    again = [row | {"train_mean_nll": 9.0} for row in losses(4, start=6)]
    run = load_run(str(write(tmp_path, losses(10) + again)))
    assert steps_of(run) == list(range(10))
    assert run.series["train_loss"].values[6:].tolist() == [9.0] * 4
    assert not run.mixed
    assert any("the step falls back at line 11" in note for note in run.notes)


def test_two_runs_one_after_the_other_are_told_apart_and_the_last_is_read(tmp_path: Path) -> None:
    second = [row | {"train_mean_nll": 7.0} for row in losses(12)]
    run = load_run(str(write(tmp_path, losses(20) + second)))
    assert run.series["train_loss"].values.tolist() == [7.0] * 12
    assert "2 runs in one file" in run.mixed and "line 21" in run.mixed


def test_two_runs_line_by_line_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(k), "run_id": f"r{k}"} for i in range(6) for k in (1, 2)]
    run = load_run(str(write(tmp_path, rows)))
    assert run.series["train_loss"].values.tolist() == [2.0] * 6
    assert "'r2'" in run.mixed


def test_two_runs_line_by_line_without_ids_are_noticed(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(k)} for i in range(20) for k in (1, 2)]
    assert "two runs write to one file" in load_run(str(write(tmp_path, rows))).mixed


def test_steps_out_of_order_are_sorted(tmp_path: Path) -> None:
    rows = losses(40)
    order = np.random.default_rng(0).permutation(40)
    run = load_run(str(write(tmp_path, [rows[i] for i in order])))
    assert steps_of(run) == list(range(40))
    np.testing.assert_allclose(run.series["train_loss"].values, [2.0 / (1 + i) for i in range(40)], rtol=1e-6)
    assert "steps are out of order: sorted" in run.notes


def test_a_run_of_two_steps_is_called_too_short(tmp_path: Path) -> None:
    found = diagnose(load_run(str(write(tmp_path, losses(2)))))
    assert found.findings == []
    assert found.notes == ["2 steps are too few to judge a curve"]


def test_a_trainer_state_is_read_and_the_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    for age, step in ((100, 10), (50, 20)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history: list[dict[str, Any]] = [
            {"step": i, "loss": 2.0 - i / 100, "epoch": i / 30} for i in range(1, step + 1)
        ]
        history += [{"step": step, "eval_loss": 1.5}, {"step": step, "train_runtime": 9.0, "train_loss": 1.8}]
        state = {"log_history": history, "max_steps": 30, "global_step": step}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        os.utime(folder / "trainer_state.json", (time.time() - age * 1000,) * 2)
    run = load_run(str(tmp_path))
    assert run.name == "checkpoint-20"
    assert run.planned_steps == 30
    assert len(run.series["train_loss"]) == 20  # the closing averages are no step
    assert run.series["val_loss"].values.tolist() == [1.5]
    assert [f.kind for f in diagnose(run).findings] == ["unfinished"]


def test_csv_is_read_with_empty_cells_and_a_torn_row(tmp_path: Path) -> None:
    text = "step,loss,eval_loss,remark\n0,2.0,,a\n1,nan,1.9,b\n2,1.0,,c\n3,0."
    (tmp_path / "progress.csv").write_text(text)
    run = load_run(str(tmp_path))
    assert run.series["train_loss"].steps.tolist() == [0, 2]
    assert run.series["train_loss"].not_finite == ((1, 3),)
    assert run.series["val_loss"].values.tolist() == pytest.approx([1.9])
    assert run.notes == ["1 rows with another number of cells left out"]


def test_a_foreign_log_without_steps_is_counted(tmp_path: Path) -> None:
    run = load_run(str(write(tmp_path, [{"loss": 2.0}, {"loss": 1.0}], name="history.jsonl")))
    assert steps_of(run) == [0, 1]
    assert run.notes == ["no step column: rows are counted"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: (f / "readme.txt").write_text("x"), r"no metrics here \(it has readme.txt\).*trainer_state.json"),
        (lambda f: (f / "metrics.jsonl").write_text(""), r"metrics.jsonl: the file is empty"),
        (lambda f: (f / "metrics.jsonl").write_text("not\njson\n"), r"metrics.jsonl:1: this is not a file of JSON"),
        (lambda f: (f / "metrics.jsonl").write_text('{"a": 1}\n'), "no known metric"),
        (lambda f: (f / "trainer_state.json").write_text('{"log_h'), r"not valid JSON.*half-written"),
        (lambda f: (f / "trainer_state.json").write_text("{}"), "no log_history"),
        (lambda f: [(f / n).write_text("step,loss\n") for n in ("a.csv", "b.csv")], r"several tables \(a.csv, b.csv\)"),
        (lambda f: (f / "metrics.csv").write_text("step,loss\n1,two\n"), r"values of loss are text .'two'"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load_run(str(tmp_path))


def test_an_unknown_job_or_path_says_so() -> None:
    with pytest.raises(JobError, match="there is no job 'sft-000000'"):
        load_run("sft-000000")
    with pytest.raises(DataError, match="no such file or folder"):
        load_run("/nowhere/at/all")


def test_a_job_without_metrics_and_an_evaluation_say_what_they_are(tmp_path: Path) -> None:
    registry = Registry()
    common: dict[str, Any] = {"backend": "embedded", "base_model": "demo", "runs": tmp_path}
    waiting = registry.create(kind="sft", name="a", **common)
    judged = registry.create(kind="judge_eval", name="b", **common)
    with pytest.raises(ResearcherError, match="has logged no metrics yet"):
        load_run(waiting.id)
    with pytest.raises(ResearcherError, match=r"is an evaluation.*report.html"):
        load_run(judged.id)


@pytest.mark.slow
def test_a_million_lines_take_three_seconds_of_one_processor_and_500_mb(tmp_path: Path) -> None:
    import subprocess
    import sys

    rng = np.random.default_rng(0)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for i in range(1_000_000):
            row = {"step": i, "epoch": 0, "num_tokens": 2000, "learning_rate": 1e-4, "progress": i / 1e6}
            row |= {"train_mean_nll": 2 * (1 + i / 1e4) ** -0.3, "grad_norm": 1.5, "time/step": 0.5}
            file.write(json.dumps(row | ({"test/nll": 1.0 + rng.random() / 100} if i % 5000 == 0 else {})) + "\n")
    code = (
        "import sys, time, resource\n"
        "import pyarrow.json, ruptures, jinja2, sota_ml_researcher.analysis.plots, sota_ml_researcher.analysis.report\n"
        "from sota_ml_researcher.tools.analysis import _analyzed\n"
        "start = time.process_time(); _analyzed(sys.argv[1])\n"
        "print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True)
    seconds, peak_mb = map(float, done.stdout.split())
    assert seconds < 3
    assert peak_mb < 500


def curve(n: int = 100) -> list[float]:
    """A sound loss: a fall with noise."""
    noise = np.random.default_rng(3).normal(0, 0.03, n)
    return [round(0.9 + 1.3 * math.exp(-i / 20) + float(noise[i]), 4) for i in range(n)]


def table(folder: Path, head: str, rows: Iterable[str], name: str = "log.csv") -> Run:
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return load_run(str(folder / name))


def is_the_curve(run: Run, steps: list[int] | None = None) -> None:
    series = run.series["train_loss"]
    assert series.steps.tolist() == (steps or list(range(100)))
    np.testing.assert_allclose(series.values, curve(), rtol=1e-6)


def test_llamafactory_counts_current_steps_of_total_steps(tmp_path: Path) -> None:
    rows = [{"current_steps": 10 * i + 10, "total_steps": 1000, "loss": v, "lr": 1e-4} for i, v in enumerate(curve())]
    run = load_run(str(write(tmp_path, rows, name="trainer_log.jsonl")))
    is_the_curve(run, list(range(10, 1001, 10)))
    assert (run.last_step, run.planned_steps) == (1000, 1000)
    assert run.notes == []


def test_steps_written_as_a_part_of_the_whole_are_read(tmp_path: Path) -> None:
    rows = [{"global_step/max_steps": f"{i}/100", "loss": v} for i, v in enumerate(curve())]
    run = load_run(str(write(tmp_path, rows, name="logging.jsonl")))
    is_the_curve(run)
    assert run.planned_steps == 100


@pytest.mark.parametrize("word", ["NaN", "nan", "Infinity", "-inf"])
def test_numbers_and_nan_written_as_text_are_read(tmp_path: Path, word: str) -> None:
    rows = [{"_step": str(i), "train/loss": str(v) if i < 60 else word} for i, v in enumerate(curve())]
    series = load_run(str(write(tmp_path, rows, name="history.jsonl"))).series["train_loss"]
    assert series.steps.tolist() == list(range(60))
    assert series.not_finite == tuple((i, i + 1) for i in range(60, 100))


def test_text_that_is_no_number_is_said(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": v if i != 4 else "oops"} for i, v in enumerate(curve())]
    run = load_run(str(write(tmp_path, rows)))
    assert len(run.series["train_loss"]) == 99
    assert run.notes == ["loss: 1 text that is no number ('oops'), left out"]


@pytest.mark.parametrize(
    "head", ["Step,Training Loss,Validation Loss", "step,train_loss,eval_loss", "Global Step,Train/Loss,Eval Loss"]
)
def test_capitals_and_blanks_in_names_do_not_count(tmp_path: Path, head: str) -> None:
    run = table(tmp_path, head, (f"{i},{v},{v + 0.1:.4f}" for i, v in enumerate(curve())))
    is_the_curve(run)
    np.testing.assert_allclose(run.series["val_loss"].values, np.array(curve()) + 0.1, rtol=1e-5)


def test_a_chart_exported_by_weights_and_biases_is_read(tmp_path: Path) -> None:
    name = "sunny-lake-4 - train/loss"
    run = table(
        tmp_path,
        f'"Step","{name}","{name}__MIN","{name}__MAX"',
        (f'"{i}","{v}","{v - 1}","{v + 1}"' for i, v in enumerate(curve())),
    )
    is_the_curve(run)
    assert run.notes == []


def test_of_a_chart_of_two_runs_the_first_is_read_and_said(tmp_path: Path) -> None:
    head = '"Step","a-1 - train/loss","b-2 - train/loss"'
    run = table(tmp_path, head, (f"{i},{v},{v + 1}" for i, v in enumerate(curve())))
    is_the_curve(run)
    assert run.notes == ["curves of 2 runs: only 'a-1' is read"]


@pytest.mark.parametrize(
    ("mark", "decimal"),
    [(";", ","), (";", "."), ("\t", "."), ("\t", ","), ("|", ".")],
    ids=["; ,", "; .", "tab .", "tab ,", "|"],
)
def test_other_separators_and_decimal_commas_are_read(tmp_path: Path, mark: str, decimal: str) -> None:
    run = table(
        tmp_path, f"step{mark}loss", (f"{i}{mark}{str(v).replace('.', decimal)}" for i, v in enumerate(curve()))
    )
    is_the_curve(run)


def test_a_comma_in_a_quoted_header_does_not_shift_the_columns(tmp_path: Path) -> None:
    is_the_curve(table(tmp_path, '"step","note, free","loss"', (f'{i},"a, b",{v}' for i, v in enumerate(curve()))))


def test_a_utf_16_table_with_a_separator_line_is_read(tmp_path: Path) -> None:
    text = "sep=;\nstep;loss\n" + "".join(f"{i};{v}\n" for i, v in enumerate(curve()))
    (tmp_path / "log.csv").write_text(text, encoding="utf-16")
    is_the_curve(load_run(str(tmp_path / "log.csv")))


def test_a_table_without_names_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log.csv:1: the first line holds numbers, not the names"):
        table(tmp_path, "0,2.0", ["1,1.5"])


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no known metric in this file, which has step, goodness"):
        table(tmp_path, "step,goodness", ["1,1.5"])


def test_records_of_verl_are_those_of_reinforcement_learning(tmp_path: Path) -> None:
    rows = [
        {"training/global_step": i, "critic/rewards/mean": 0.2 + i / 500, "actor/entropy": 0.6, "actor/lr": 1e-6}
        | {"response_length/mean": 500.0, "response_length/clip_ratio": 0.1, "actor/grad_norm": 0.1}
        for i in range(100)
    ]
    run = load_run(str(write(tmp_path, rows, name="verl.jsonl")))
    assert run.kind == "rl"
    assert {"reward", "entropy", "length", "truncated", "grad_norm", "lr"} <= run.series.keys()
    # a tenth is the limit, not beyond it, whatever single precision makes of it
    assert [f.kind for f in diagnose(run).findings] == []


def test_train_and_validation_records_of_one_step_are_one_step(tmp_path: Path) -> None:
    history: list[dict[str, Any]] = []
    for i, v in enumerate(curve(), 1):
        shared = {"epoch": i / 100, "step": 10 * i}
        history += [{"loss": v, "learning_rate": 1e-4, **shared}, {"eval_loss": v + 0.05, **shared}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 1000}))
    found = diagnose(load_run(str(tmp_path)))
    assert (found.run.mixed, found.notes, found.findings) == ("", [], [])


def test_steps_that_begin_again_with_every_epoch_are_one_run(tmp_path: Path) -> None:
    rows = [{"epoch": i // 25, "step": i % 25, "loss": v} for i, v in enumerate(curve())]
    run = load_run(str(write(tmp_path, rows)))
    is_the_curve(run)
    assert (run.mixed, run.notes) == ("", ["steps begin again with every epoch: they are counted on"])


def test_an_array_of_records_named_jsonl_is_read(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": v} for i, v in enumerate(curve())]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows, indent=1))
    is_the_curve(load_run(str(tmp_path)))
