"""Running untrusted code: which isolation this machine offers, and the command line that uses it.

The tests of a data file, programs that a model wrote, custom rewards and environments are untrusted text. They run as
nobody in namespaces of their own, which bubblewrap makes where it is installed, else our launcher. Where neither works,
the caller has to refuse.

Covered, alike by both: no network, no environment variables, no home folder and no other file but Python, its packages,
the system's libraries and an empty /tmp, all read-only but the latter; no other process to be seen, signalled or looked
into; no capability; no namespace, mount, io_uring, key, anonymous file or IPC object of its own making; limits on
processor time, processes, open files, size of a file and of /tmp, memory of each process and of all of them together.
Whoever started a sandbox reads a bounded number of bytes of what comes out, and as JSON of a fixed shape.

Not covered: holes in the kernel (the filter of system calls refuses what is risky and not needed; it is no list of what
is allowed); what can be learnt from timing. The sum of memory is looked at 20 times a second, not kept by the kernel:
between two looks the processes can grow, at most to the limit of each times their number. Where the kernel does not say
which memory they share (to others than root), twice the limit is allowed. Mode ``plain`` is no sandbox: only time,
memory and the environment are limited.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...core.errors import ConfigError

Mode = Literal["bubblewrap", "namespaces", "plain"]

_NOBODY = 65534
# Not all of /usr: projects are kept in /usr/src/app and /usr/local/src.
_SYSTEM = (
    *(f"/usr/{part}" for part in ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "share")),
    *(f"/usr/local/{part}" for part in ("bin", "sbin", "lib", "lib64", "share")),
    *("/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_INTERPRETER = ("bin", "lib", "lib64", "pyvenv.cfg")
# No user's packages, nothing from the working folder, and packages only where a script asks for them.
_FLAGS = ("-s", "-P", "-S")
_LAUNCHER = Path(__file__).with_name("launcher.py")
_INSIDE = "/sandbox"
_PROBE_S = 20.0
# What going without a sandbox means, in every message about it.
UNSANDBOXED = (
    "the data file itself runs as you: its tests, the model's programs and custom files can read your files and keys, "
    "write anywhere and reach the network"
)


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
    """How to start a program: ``subprocess.Popen(argv, **options)``. Its environment is always one of its own."""

    argv: list[str]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    memory_mb: int | None = None
    """What it and all it starts may hold together; whoever starts it keeps watch (`tree_memory`)."""


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
        fix=f"Install bubblewrap or allow user namespaces; or set allow_unsandboxed: true, and {UNSANDBOXED}",
    )


def unsandboxed_warnings(*, runs_code: bool) -> list[str]:
    """What to tell a user whose job runs code without a sandbox; nothing where there is one."""
    found = isolation()
    if not runs_code or found.mode is not None:
        return []
    return [f"no sandbox works here ({found.reason}) and allow_unsandboxed is true: {UNSANDBOXED}"]


def sandboxed(
    mode: Mode,
    script: Path,
    arguments: Sequence[str],
    *,
    limits: Limits,
    files: Mapping[str, Path] | None = None,
    modules: Sequence[Path] = (),
    site: bool = False,
    share: Sequence[int] = (),
) -> Sandboxed:
    """The command that runs a Python script in the sandbox.

    Before the script runs, a line ``{"unavailable": reason}`` on its standard output says that it will not.

    Args:
        mode: From `require_isolation`.
        script: Runs on the standard library alone, unless ``site``.
        arguments: Given to the script.
        limits: What it may use.
        files: Files it may read, by the name they get below ``/sandbox``; named ``{name}`` in ``arguments``.
        modules: Files that the script may import.
        site: Whether installed packages can be imported.
        share: File descriptors it keeps, under their own numbers.
    """
    inside = {"script.py": script, **{module.name: module for module in modules}, **(files or {})}
    seen = {name: str(path) if mode == "plain" else f"{_INSIDE}/{name}" for name, path in inside.items()}
    binds = [(str(path.resolve()), f"{_INSIDE}/{name}") for name, path in inside.items()]
    loaded = {name: seen[name] if mode == "bubblewrap" else str(path.resolve()) for name, path in inside.items()}
    spec: dict[str, Any] = {
        "script": loaded["script.py"],
        "modules": {module.stem: loaded[module.name] for module in modules},
        "arguments": [argument.format_map(seen) for argument in arguments],
        "limits": asdict(limits),
        "site": site,
    }
    options: dict[str, Any] = {"env": own_environment(), "start_new_session": True, "pass_fds": tuple(share)}
    if mode == "plain":
        # Without a user namespace the kernel counts all processes of this user: no limit could be set sensibly.
        spec["limits"]["processes"] = 0
        return Sandboxed(_launch("plain", spec, []), options, limits.memory_mb)
    options["cwd"] = "/"
    if mode == "bubblewrap":
        return Sandboxed(_bubblewrap(spec, binds), options, limits.memory_mb)
    return Sandboxed(_launch("namespaces", spec, [*_system_binds(), *binds]), options, limits.memory_mb)


def own_environment() -> dict[str, str]:
    """What a program sees instead of this process's variables, which hold keys.

    Text hashes alike in every process, so that a program gives the same output each time.
    """
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


def _launch(mode: str, spec: dict[str, Any], binds: list[tuple[str, str]]) -> list[str]:
    return [sys.executable, *_FLAGS, str(_LAUNCHER), repr({"mode": mode, "binds": binds, "devices": _DEVICES, **spec})]


def _bubblewrap(spec: dict[str, Any], binds: list[tuple[str, str]]) -> list[str]:
    program = shutil.which("bwrap") or "bwrap"
    command = [program, "--unshare-all", "--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    command += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for device in _DEVICES:
        command += ["--dev-bind", device, device]
    for name, value in own_environment().items():
        command += ["--setenv", name, value]
    command += ["--size", str(spec["limits"]["tmp_mb"] << 20), "--tmpfs", "/tmp"]
    for source, target in [*_system_binds(), (str(_LAUNCHER.resolve()), f"{_INSIDE}/launcher.py"), *binds]:
        link = os.path.islink(source) and source == target  # noqa: PTH114
        command += ["--symlink", str(Path(source).readlink()), target] if link else ["--ro-bind", source, target]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
    inner = repr({"mode": "inner", **spec})
    return [*command, sys.executable, *_FLAGS, f"{_INSIDE}/launcher.py", inner]


@cache
def _system_binds() -> tuple[tuple[str, str], ...]:
    """The system's programs and libraries, and this interpreter.

    Of the interpreter's folders only the parts that it runs from: a virtual environment may be the folder of a project,
    or a home.
    """
    prefixes = dict.fromkeys([sys.base_prefix, sys.prefix, str(Path(sys.executable).resolve().parents[1])])
    # An environment may take packages from another one's folder.
    parts = [*(f"{prefix}/{part}" for prefix in prefixes for part in _INTERPRETER), *installed()]
    seen = list(_SYSTEM)
    for part in parts:
        if not any(Path(part).is_relative_to(other) for other in seen):
            seen.append(part)
    return tuple((p, p) for p in seen if os.path.lexists(p))


def installed() -> list[str]:
    """Folders of installed packages."""
    return [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]


def _try(mode: Mode) -> str | None:
    """Why a mode does not work here, or None."""
    if sys.platform != "linux":
        return "only Linux has it"
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    probe = sandboxed(mode, Path(__file__).with_name("probe.py"), [], limits=Limits())
    try:
        done = subprocess.run(
            probe.argv, capture_output=True, text=True, timeout=_PROBE_S, check=False, **probe.options
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0 and done.stdout.strip() == "isolated":
        return None
    said = (done.stdout or done.stderr).strip().splitlines()
    return _reason(said[-1])[:200] if said else "it failed"


def _reason(said: str) -> str:
    """What the launcher or the probe says, as text."""
    try:
        return str(json.loads(said)["unavailable"])
    except (ValueError, TypeError, KeyError):
        return said
