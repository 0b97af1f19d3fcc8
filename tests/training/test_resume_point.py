import json
from pathlib import Path

from sota_ml_researcher.core.files import append_json_line, read_json_lines
from sota_ml_researcher.training.resume_point import (
    CHECKPOINTS,
    DISCARDED,
    METRICS,
    ResumePoint,
    find_resume_point,
    note_state,
    prepare_folder,
)


def log_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        append_json_line(folder / METRICS, {"step": step, "train_mean_nll": 1.0})


def test_without_a_saved_state_the_run_starts_over(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, 1)
    assert find_resume_point(tmp_path) is None
    prepare_folder(tmp_path, None, batches_per_epoch=10)
    assert list(read_json_lines(tmp_path / METRICS)) == []
    assert [r["step"] for r in read_json_lines(tmp_path / DISCARDED)] == [0, 1]


def test_a_state_ahead_of_the_logged_steps_is_passed_over(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    note_state(tmp_path, "tinker://a", 4, 400)
    note_state(tmp_path, "tinker://b", 9, 900)  # the loop had sent step 8 but not logged it when it was killed
    assert find_resume_point(tmp_path) == ResumePoint("tinker://a", 4, 400)


def test_steps_to_be_taken_again_are_set_aside_not_lost(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    point = ResumePoint("tinker://a", 5)
    prepare_folder(tmp_path, point, batches_per_epoch=3)
    assert [r["step"] for r in read_json_lines(tmp_path / METRICS)] == [0, 1, 2, 3, 4]
    assert [r["step"] for r in read_json_lines(tmp_path / DISCARDED)] == [5, 6, 7]
    (record,) = read_json_lines(tmp_path / CHECKPOINTS)
    assert (record["epoch"], record["batch"], record["state_path"]) == (1, 2, "tinker://a")


def test_the_first_attempt_finds_an_empty_folder_as_it_is(tmp_path: Path) -> None:
    prepare_folder(tmp_path, None, batches_per_epoch=3)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_metrics_line_is_not_counted_as_logged(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, 1)
    with (tmp_path / METRICS).open("a") as file:
        file.write(json.dumps({"step": 2})[:-1])
    note_state(tmp_path, "tinker://a", 3, 300)
    assert find_resume_point(tmp_path) is None


def test_a_torn_line_is_cut_off_before_anything_is_appended_to_it(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, 1)
    note_state(tmp_path, "tinker://a", 2, 200)
    for name in (METRICS, "reference.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 2, "te')
    prepare_folder(tmp_path, find_resume_point(tmp_path), batches_per_epoch=None)
    log_steps(tmp_path, 2)
    assert [r["step"] for r in read_json_lines(tmp_path / METRICS)] == [0, 1, 2]
    assert (tmp_path / "reference.jsonl").read_text() == ""


def test_a_validation_logged_by_itself_is_no_logged_step(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, 1)
    append_json_line(tmp_path / METRICS, {"step": 2, "test/reward": 0.5, "time/total": 1.0})
    note_state(tmp_path, "tinker://a", 3, 300)
    assert find_resume_point(tmp_path) is None
    log_steps(tmp_path, 2)
    assert find_resume_point(tmp_path) == ResumePoint("tinker://a", 3, 300)
