"""``ml-researcher doctor``: what works here, what does not, and the command that fixes it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..backends.connection import TINKER_KEY, remote, supported_models
from ..backends.embedded import running_engine
from ..core.errors import ResearcherError
from ..core.paths import home
from ..jobs import control
from ..jobs.registry import Registry

_TRAINING = ("tinker", "tinker-cookbook", "torch", "transformers", "datasets", "fastapi", "safetensors")
_LOW_DISK_GB = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``ok`` None is a remark: neither good nor bad."""

    topic: str
    ok: bool | None
    detail: str
    fix: str = ""


def run_doctor() -> int:
    """Print every finding; exit code 1 if something has to be fixed."""
    findings = [_safely(check) for check in _CHECKS]
    table = Table("", "check", "found", "to fix it")
    for finding in findings:
        sign = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]--[/]"}[finding.ok]
        table.add_row(sign, finding.topic, finding.detail, finding.fix)
    Console().print(table)
    return 1 if any(finding.ok is False for finding in findings) else 0


def _safely(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except ResearcherError as error:
        return Finding(check.__name__.removeprefix("check_").replace("_", " "), False, str(error), error.fix)


def check_python() -> Finding:
    """The interpreter's version."""
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", ok, platform.python_version(), "" if ok else "Use Python 3.11, 3.12 or 3.13")


def check_server_packages() -> Finding:
    """What the MCP server needs."""
    return Finding("server packages", True, f"sota-ml-researcher {version('sota-ml-researcher')}, mcp {version('mcp')}")


def check_training_packages() -> Finding:
    """What workers and the engine need."""
    missing = [name for name in _TRAINING if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        return Finding("training packages", False, f"missing: {', '.join(missing)}", "ml-researcher setup")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("tinker", "tinker-cookbook", "torch", "transformers"))
    return Finding("training packages", True, versions)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "?"


def check_state_folder() -> Finding:
    """Where jobs, runs and checkpoints are kept, and the room there is."""
    folder = home()
    free_gb = shutil.disk_usage(folder).free / 1e9
    enough = free_gb >= _LOW_DISK_GB
    fix = "" if enough else "Free some space, or set ML_RESEARCHER_HOME to a larger disk"
    return Finding("state folder", enough, f"{folder}, {free_gb:.0f} GB free", fix)


def check_job_registry() -> Finding:
    """The registry opens, and its jobs by state."""
    registry = Registry()
    control.sweep(registry)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(registry.counts().items())) or "no jobs yet"
    return Finding("job registry", True, counts)


def check_embedded_engine() -> Finding:
    """Whether an engine runs; it starts by itself when a job needs it."""
    url = running_engine()
    return Finding("embedded engine", True if url else None, url or "not running (a job starts it)")


def check_hosted_tinker() -> Finding:
    """Whether the key is set and accepted. The key itself is never printed."""
    if not os.environ.get(TINKER_KEY):
        return Finding("hosted Tinker", None, f"{TINKER_KEY} is not set: hosted training is off")
    served = supported_models(remote("tinker"))
    return Finding("hosted Tinker", True, f"key accepted, {len(served)} models")


def check_processor() -> Finding:
    """What the embedded engine will compute on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    fast = "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "fp32"
    gpu = "an NVIDIA GPU, " if shutil.which("nvidia-smi") else ""
    return Finding("processor", True, f"{gpu}{os.cpu_count()} cores, fast in {fast}")


def check_compiler() -> Finding:
    """Whether the embedded engine can compile its loops; it does so at its first start, once."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler or sys.platform != "linux":
        return Finding("C compiler", True if compiler else None, compiler or "not used on this system")
    return Finding("C compiler", None, "none: the embedded engine samples a third slower", "Install gcc or clang")


_CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_server_packages,
    check_training_packages,
    check_state_folder,
    check_job_registry,
    check_embedded_engine,
    check_hosted_tinker,
    check_processor,
    check_compiler,
)
