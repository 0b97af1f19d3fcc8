import errno
import os
from pathlib import Path

import pytest

from sota_ml_researcher.core import files
from sota_ml_researcher.core.errors import StorageError
from sota_ml_researcher.core.paths import HOME_VARIABLE, home, state_folder, writable_folder


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    files.write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_real_full_device_is_reported_as_full() -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this system has no /dev/full to prove it on")
    with pytest.raises(StorageError, match="the disk is full"):
        files.append_json_line(Path("/dev/full"), {"a": 1})


def test_a_torn_last_line_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_json_line(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    assert list(files.read_json_lines(path)) == [{"step": 0}]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"runs.*a file, and a folder is needed"):
        writable_folder(tmp_path / "runs")


def test_a_folder_nobody_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write anywhere, so the refusal itself is simulated; /proc is refused for real below.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match="not writable"):
        writable_folder(tmp_path)


def test_a_folder_that_cannot_be_created_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot be created"):
        writable_folder(Path("/proc/nothing/here"))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_our_state_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "new"))
    assert home().stat().st_mode & 0o777 == 0o700
    (tmp_path / "chosen" / "runs").mkdir(parents=True, mode=0o755)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "chosen"))
    mode = home().stat().st_mode
    assert state_folder("runs").stat().st_mode & 0o777 == 0o700
    assert home().stat().st_mode == mode  # it may hold other things of the user's
