import json
from pathlib import Path

from sota_ml_researcher.core.files import append_json_line, read_json_lines
from sota_ml_researcher.jobs.run_files import CHECKPOINTS, DISCARDED, METRICS
from sota_ml_researcher.training.checkpoints import ResumePoint, find_resume_point, prepare_folder


def log_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        append_json_line(folder / METRICS, {"step": step, "train_mean_nll": 1.0})


def note_state(folder: Path, path: str, next_step: int, tokens: int, *, file: str = CHECKPOINTS) -> None:
    record = {"name": f"{next_step:06d}", "state_path": path, "next_step": next_step, "tokens": tokens}
    append_json_line(folder / file, record)


def test_without_a_saved_state_the_run_starts_over(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, 1)
    assert find_resume_point(tmp_path) is None
    prepare_folder(tmp_path, 0)
    assert list(read_json_lines(tmp_path / METRICS)) == []
    assert [r["step"] for r in read_json_lines(tmp_path / DISCARDED)] == [0, 1]


def test_a_run_of_an_earlier_version_goes_on_from_its_latest_state(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    append_json_line(tmp_path / CHECKPOINTS, {"name": "000004", "batch": 4, "state_path": "x", "sampler_path": "y"})
    note_state(tmp_path, "tinker://a", 6, 600, file="states.jsonl")
    assert find_resume_point(tmp_path) == ResumePoint("tinker://a", 6, 600)


def test_the_best_weights_are_no_place_to_go_on_from(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    note_state(tmp_path, "tinker://a", 4, 400)
    best = {"name": "best-000006", "step": 6, "test/nll": 1.0, "best_state_path": "b", "sampler_path": "c"}
    append_json_line(tmp_path / CHECKPOINTS, best)
    assert find_resume_point(tmp_path) == ResumePoint("tinker://a", 4, 400)


def test_a_state_ahead_of_the_logged_steps_is_passed_over(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    note_state(tmp_path, "tinker://a", 4, 400)
    # Earlier versions saved while steps were under way, into a file of its own: here step 8 was never logged.
    note_state(tmp_path, "tinker://b", 9, 900, file="states.jsonl")
    assert find_resume_point(tmp_path) == ResumePoint("tinker://a", 4, 400)


def test_steps_to_be_taken_again_are_set_aside_not_lost(tmp_path: Path) -> None:
    log_steps(tmp_path, *range(8))
    prepare_folder(tmp_path, 5)
    assert [r["step"] for r in read_json_lines(tmp_path / METRICS)] == [0, 1, 2, 3, 4]
    assert [r["step"] for r in read_json_lines(tmp_path / DISCARDED)] == [5, 6, 7]


def test_the_first_attempt_finds_an_empty_folder_as_it_is(tmp_path: Path) -> None:
    prepare_folder(tmp_path, 0)
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
    prepare_folder(tmp_path, 2)
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
