"""The memory that a sandbox's processes hold together; each of them has a limit of its own, their sum has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
# Lines of /proc/PID/status and /proc/PID/smaps_rollup, in kB: memory that is no file's.
_RESIDENT = ("RssAnon:", "RssShmem:", "VmSwap:")
_PROPORTIONAL = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
# What the processes that only wait in a sandbox hold.
_WAITING_MB = 64


def exceeds(pid: int, limit_mb: int) -> bool:
    """Whether a process and all that descend from it hold more than a limit.

    Memory that several share counts once where the kernel says who shares it, as it does to root. Elsewhere it counts
    in each process that has it, so that twice the limit is allowed. False where there is no /proc, or they have ended.
    """
    most = (limit_mb + _WAITING_MB) << 10
    processes = list(_family(pid))
    if sum(_total(process / "status", _RESIDENT) or 0 for process in processes) <= most:
        return False
    shared = [_total(process / "smaps_rollup", _PROPORTIONAL) for process in processes]
    if all(share is not None for share in shared):
        return sum(share or 0 for share in shared) > most
    return sum(_total(process / "status", _RESIDENT) or 0 for process in processes) > 2 * most


def _family(pid: int) -> Iterator[Path]:
    """A process and its descendants, by their folders in /proc."""
    waiting = [pid]
    while waiting:
        process = _PROC / str(waiting.pop())
        yield process
        try:
            for thread in (process / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue


def _total(file: Path, names: tuple[str, ...]) -> int | None:
    """The sum of some lines, in kB; None if the file cannot be read."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))
