"""Checkpoints on disk when the engine is killed, the disk is full, or a file is damaged."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from sota_ml_researcher.core.errors import StorageError
from sota_ml_researcher.core.files import storage_errors
from sota_ml_researcher.engine.interface import RequestRejectedError
from sota_ml_researcher.engine.service import store as stored
from sota_ml_researcher.engine.service.store import Contents, NoSuchCheckpointError, Run, SaveOptions, Store

RUN = Run("abc:train:0", "abc", "tiny", {"rank": 4}, {}, 1.0)
PATH = "tinker://abc:train:0/weights/latest"
_CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


def save(store: Store, value: float, name: str = "latest") -> None:
    arrays = {"w": np.full(8, value, np.float32)}
    store.save(RUN, Contents(arrays, {"r": 4}, arrays), SaveOptions("weights", name))


def value_of(store: Store) -> float | None:
    """What the checkpoint holds, all of it; None if there is none."""
    try:
        saved = store.find(PATH)
    except NoSuchCheckpointError:
        return None
    weights, moments = store.tensors(saved)["w"], store.tensors(saved, optimizer=True)["w"]
    assert (weights == moments).all()
    return float(weights[0])


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Do the work in a child that is killed at its ``number``-th call that changes a disk; whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]

        def dying(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in _CALLS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_point_of_a_save_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    save(Store(tmp_path), 1.0)
    seen: set[float | None] = set()
    point = 0
    while True:
        point += 1
        old = value_of(Store(tmp_path))
        died = killed_at(point, lambda point=point: save(Store(tmp_path), 100.0 + point))
        again = Store(tmp_path)
        found = value_of(again)
        assert found in {old, 100.0 + point}
        seen.add(found)
        assert not [path for path in tmp_path.rglob(".*") if path.name.startswith((".tmp-", ".old-"))]
        if not died:
            break
    assert point > 8  # it was killed at many of them
    assert found == 100.0 + point


def test_a_kill_at_any_point_of_a_first_save_leaves_all_or_nothing(tmp_path: Path) -> None:
    point, died = 0, True
    while died:
        point += 1
        folder = tmp_path / str(point)
        died = killed_at(point, lambda folder=folder: save(Store(folder), 7.0))
        assert value_of(Store(folder)) in ({7.0, None} if died else {7.0})
    assert point > 5


def test_a_kill_at_any_point_of_a_deletion_leaves_all_or_nothing(tmp_path: Path) -> None:
    point, died = 0, True
    while died:
        point += 1
        store = Store(tmp_path)
        if value_of(store) is None:
            save(store, 3.0)
        saved = store.find(PATH)
        died = killed_at(point, lambda store=store, saved=saved: store.delete(saved))
        again = Store(tmp_path)
        assert value_of(again) in ({3.0, None} if died else {None})
        assert len(again.checkpoints()) == (value_of(again) is not None)
    assert point > 3


def test_a_full_disk_is_called_so_and_says_how_to_go_on(tmp_path: Path) -> None:
    said = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match=r"no space left.*Free some space and try again"), storage_errors(tmp_path):
        raise stored.system_error(said)


def test_a_save_that_the_system_refuses_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    import resource

    save(Store(tmp_path), 1.0)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
            save(Store(tmp_path), 2.0)
        except StorageError as error:
            code = 0 if "File too large" in str(error) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value_of(Store(tmp_path)) == 1.0


def test_one_damaged_file_does_not_hide_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_run(RUN)
    for name in ("latest", "cut", "broken"):
        save(store, 5.0, name)
    cut, broken = (store.find(PATH.replace("latest", name)) for name in ("cut", "broken"))
    tensors = store.file(cut, stored.WEIGHTS)
    tensors.write_bytes(tensors.read_bytes()[:-7])
    (store.folder_of(broken) / "checkpoint.json").write_text("{")
    assert {saved.name for saved in store.checkpoints()} == {"latest", "cut"}
    with pytest.raises(StorageError, match=r"is damaged.*Use another checkpoint"):
        store.tensors(cut)
    (tmp_path / "checkpoints" / "other").mkdir()
    (tmp_path / "checkpoints" / "other" / "run.json").write_text('{"run_id": 1}')
    assert [run.run_id for run in store.runs()] == [RUN.run_id]


@pytest.mark.parametrize("name", ["n" * 300, "\u00e9" * 60, "n" * 5000])
def test_a_name_that_is_too_long_is_called_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestRejectedError, match="is too long: at most 200"):
        save(Store(tmp_path), 1.0, name)


@pytest.mark.parametrize("path", ["tinker://x/weights/..", "tinker://../weights/x", f"tinker://{'r' * 999}/weights/x"])
def test_paths_that_lead_elsewhere_are_no_paths(path: str, tmp_path: Path) -> None:
    with pytest.raises(RequestRejectedError, match="is not a path of the form"):
        Store(tmp_path).find(path)
