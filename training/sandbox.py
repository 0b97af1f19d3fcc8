"""Running code that nobody has read: which isolation this machine offers, and the command line that uses it.

Model-written programs and custom rewards run as nobody in namespaces of their own: no network, no environment, no
home, a read-only root with Python and the system's libraries, an empty /tmp, limits on everything else. Bubblewrap
makes them where it is installed, else our launcher does. Where neither works, the caller has to refuse.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sota_ml_researcher.core.errors import ConfigError

Mode = Literal["bubblewrap", "namespaces", "plain"]

_NOBODY = 65534
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
_INSIDE = "/sandbox"
_PROBE_S = 20.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandboxed program may use: processor seconds, megabytes, processes. Wall time is the caller's to keep."""

    cpu_s: int = 5
    memory_mb: int = 512
    file_mb: int = 8
    tmp_mb: int = 32
    processes: int = 8


@dataclass(frozen=True, slots=True)
class Isolation:
    """What this machine offers; ``mode`` None means nothing, and ``reason`` says why."""

    mode: Mode | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sandboxed:
    """How to start a shut-in program: ``subprocess.Popen(argv, **options)``."""

    argv: list[str]
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@cache
def isolation() -> Isolation:
    """The isolation that works here, found by trying it once."""
    reasons: list[str] = []
    for mode in _order():
        problem = _try(mode)
        if problem is None:
            return Isolation(mode)
        reasons.append(f"{mode}: {problem}")
    return Isolation(None, "; ".join(reasons))


def _order() -> tuple[Mode, ...]:
    """Bubblewrap first: distributions that restrict user namespaces let it through.

    For root it comes second, because it keeps the real user id, which our launcher gives up.
    """
    return ("namespaces", "bubblewrap") if os.geteuid() == 0 else ("bubblewrap", "namespaces")


def require_isolation(*, allow_unsandboxed: bool, where: str = "reward_type") -> Mode:
    """The mode to use.

    Args:
        allow_unsandboxed: Whether programs may run without isolation where there is none.
        where: The setting that makes code run, for the error.

    Raises:
        ConfigError: If this machine cannot isolate programs and the user did not say that it may go without.
    """
    found = isolation()
    if found.mode is not None:
        return found.mode
    if allow_unsandboxed:
        return "plain"
    raise ConfigError(
        f"code cannot be isolated on this machine ({found.reason})",
        where=where,
        fix="Install bubblewrap or allow user namespaces; or set allow_unsandboxed: true, and the code runs as you do",
    )


def sandboxed(
    mode: Mode, script: Path, arguments: list[str], *, limits: Limits, files: dict[str, Path], site: bool = False
) -> Sandboxed:
    """The command that runs a Python script shut in.

    Args:
        mode: From `require_isolation`.
        script: Runs on the standard library alone, unless ``site``.
        arguments: Given to the script.
        limits: What it may use.
        files: Files it may read, by the name they get below ``/sandbox``; named ``{name}`` in ``arguments``.
        site: Whether installed packages can be imported.
    """
    inside = {"script.py": script, **files}
    where = {name: str(path) if mode == "plain" else f"{_INSIDE}/{name}" for name, path in inside.items()}
    flags = ["-I"] if site else ["-I", "-S"]
    argv = [sys.executable, *flags, where["script.py"], *(a.format_map(where) for a in arguments)]
    binds = [(str(path.resolve()), f"{_INSIDE}/{name}") for name, path in inside.items()]
    spec: dict[str, Any] = {"limits": asdict(limits), "argv": argv}
    if mode == "plain":
        # Without a user namespace the kernel counts all processes of this user: no limit could be set sensibly.
        spec["limits"]["processes"] = 0
        return Sandboxed(_launch("plain", spec, []), {"env": _environment(), "start_new_session": True})
    options: dict[str, Any] = {"env": _environment(), "cwd": "/", "start_new_session": True}
    if mode == "bubblewrap":
        return Sandboxed(_bubblewrap(spec, binds), options)
    return Sandboxed(_launch("namespaces", spec, [*_system_binds(), *binds]), options)


def _launch(mode: str, spec: dict[str, Any], binds: list[tuple[str, str]]) -> list[str]:
    text = json.dumps({"mode": mode, "binds": binds, **spec})
    return [sys.executable, "-I", "-S", str(_LAUNCHER), text]


def _bubblewrap(spec: dict[str, Any], binds: list[tuple[str, str]]) -> list[str]:
    program = shutil.which("bwrap") or "bwrap"
    command = [program, "--unshare-all", "--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--dev", "/dev"]
    command += ["--size", str(spec["limits"]["tmp_mb"] << 20), "--tmpfs", "/tmp"]
    for source, target in [*_system_binds(), (str(_LAUNCHER.resolve()), f"{_INSIDE}/launcher.py"), *binds]:
        link = os.path.islink(source) and source == target  # noqa: PTH114
        command += ["--symlink", str(Path(source).readlink()), target] if link else ["--ro-bind", source, target]
    text = json.dumps({"mode": "inner", "binds": [], **spec})
    return [*command, "--chdir", "/tmp", "--", sys.executable, "-I", "-S", f"{_INSIDE}/launcher.py", text]


@cache
def _system_binds() -> tuple[tuple[str, str], ...]:
    """The system's programs and libraries, and this interpreter."""
    prefixes = dict.fromkeys([sys.base_prefix, sys.prefix, str(Path(sys.executable).resolve().parents[1])])
    inside_usr = [p for p in prefixes if not Path(p).is_relative_to("/usr")]
    return tuple((p, p) for p in [*_SYSTEM, *inside_usr] if os.path.lexists(p))


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def _try(mode: Mode) -> str | None:
    """Why a mode does not work here, or None."""
    if sys.platform != "linux":
        return "only Linux has it"
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    probe = sandboxed(mode, Path(__file__).with_name("sandbox_probe.py"), [], limits=Limits(), files={})
    try:
        done = subprocess.run(
            probe.argv, capture_output=True, text=True, timeout=_PROBE_S, check=False, **probe.options
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0 and done.stdout.strip() == "isolated":
        return None
    return (done.stderr or done.stdout).strip().splitlines()[-1][:200] if done.stderr or done.stdout else "it failed"
