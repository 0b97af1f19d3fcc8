"""``ml-researcher doctor``: what works here, what does not, and the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..backends.connection import TINKER_KEY, remote, supported_models
from ..backends.embedded import running_engine
from ..backends.embedded_memory import cpu_has_bf16
from ..backends.prices import load_prices
from ..backends.servers import described, server_of
from ..core.ages import age
from ..core.errors import ResearcherError
from ..core.extras import missing_packages, setup_command
from ..core.paths import home
from ..jobs import control
from ..jobs.registry import Registry
from ..judges.judge_catalog import catalog as judge_catalog
from ..models.model_catalog import load_catalog
from ..rewards.sandbox.modes import isolation
from .output import show_json

_LOW_DISK_GB = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. ``ok`` None is a remark: neither good nor bad."""

    topic: str
    ok: bool | None
    detail: str
    fix: str = ""


def run_doctor(*, base_url: str | None = None, as_json: bool = False) -> int:
    """Print every check, of a cluster too where its address is given; exit code 1 if something has to be fixed."""
    checks = [_safely(check) for check in _CHECKS]
    if base_url is not None:
        checks.append(_safely(partial(check_cluster, base_url), "cluster"))
    failed = 1 if any(check.ok is False for check in checks) else 0
    if as_json:
        show_json([asdict(check) for check in checks])
        return failed
    table = Table("", "check", "found")
    for check in checks:
        sign = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]--[/]"}[check.ok]
        table.add_row(sign, check.topic, Text(check.detail, overflow="fold"))
    console = Console()
    console.print(table)
    for fix in dict.fromkeys(check.fix for check in checks if check.fix):
        topics = ", ".join(check.topic for check in checks if check.fix == fix)
        # On a line of its own, as it is: a command in a column would be broken, and its brackets read as markup.
        console.print(Text(f"{topics}: {fix}"), soft_wrap=True)
    return failed


def repair() -> None:
    """Make a damaged job registry again, and say what came of it.

    Raises:
        StorageError: If it cannot be done; nothing is changed then.
    """
    from ..jobs.repair import repair_registry

    done = repair_registry()
    say = Console(soft_wrap=True, stderr=True).print
    say(f"Job registry: {done.read} jobs read, {len(done.restored)} made again from their run folders.")
    for job_id in done.restored:
        say(f"  {job_id}")
    if done.kept_as:
        say(f"The damaged file is kept as {done.kept_as}. What was spent is known for the jobs above alone.")


def _safely(check: Callable[[], Check], topic: str = "") -> Check:
    try:
        return check()
    except ResearcherError as error:
        topic = topic or check.__name__.removeprefix("check_").replace("_", " ")
        place = f"{error.where}: " if error.where else ""
        return Check(topic, False, f"{place}{error.problem}", error.fix)


def check_python() -> Check:
    """The interpreter's version."""
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", ok, platform.python_version(), "" if ok else "Use Python 3.11, 3.12 or 3.13")


def check_server_packages() -> Check:
    """What the MCP server needs."""
    return Check("server packages", True, f"sota-ml-researcher {version('sota-ml-researcher')}, mcp {version('mcp')}")


def check_training() -> Check:
    """What workers and the engine need."""
    return _packages("training", "train", ("tinker", "tinker-cookbook", "torch", "transformers"))


def check_evaluation() -> Check:
    """What judge evaluations and benchmarks need."""
    return _packages("evaluation", "evals", ("scipy", "statsmodels", "inspect-ai"))


def check_analysis() -> Check:
    """What analyze_run and compare_runs need."""
    return _packages("analysis", "analysis", ("matplotlib", "ruptures", "pyarrow"))


def _packages(topic: str, extra: str, shown: tuple[str, ...]) -> Check:
    if missing := missing_packages(extra):
        return Check(topic, False, f"missing: {', '.join(missing)}", setup_command())
    return Check(topic, True, ", ".join(f"{name} {_version(name)}" for name in shown))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "?"


def check_state_folder() -> Check:
    """Where jobs, runs and checkpoints are kept, and the room there is."""
    folder = home()
    free_gb = shutil.disk_usage(folder).free / 1e9
    enough = free_gb >= _LOW_DISK_GB
    fix = "" if enough else "Free some space, or set ML_RESEARCHER_HOME to a larger disk"
    return Check("state folder", enough, f"{folder}, {free_gb:.0f} GB free", fix)


def check_job_registry() -> Check:
    """The registry opens, and its jobs by state."""
    registry = Registry()
    control.sweep(registry)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(registry.counts().items())) or "no jobs yet"
    return Check("job registry", True, counts)


def check_embedded_engine() -> Check:
    """Whether an engine runs; it starts by itself when a job needs it."""
    url = running_engine()
    return Check("embedded engine", True if url else None, url or "not running (a job starts it)")


def check_hosted_tinker() -> Check:
    """Whether the key is set and accepted. The key itself is never printed."""
    if not os.environ.get(TINKER_KEY):
        return Check("hosted Tinker", None, f"{TINKER_KEY} is not set: hosted training is off")
    served = supported_models(remote("tinker"))
    return Check("hosted Tinker", True, f"key accepted, {len(served)} models")


def check_prices() -> Check:
    """How old the prices and the table of models are; published prices are asked for where hosted Tinker is in use."""
    models, table = load_catalog(), load_prices(asking="tinker" if os.environ.get(TINKER_KEY) else None)
    judges = judge_catalog().as_of
    found = f"Tinker: {table.ages('tinker')}; judges: {age(judges)}; models: {models.source}, {age(models.as_of)}"
    if table.problem:
        return Check("prices", None, f"{found}. The published prices could not be read again: {table.problem}")
    return Check("prices", True, found)


def check_cluster(base_url: str) -> Check:
    """What the server at an address is, and what it can do."""
    server = server_of(remote("cluster", base_url))
    usable = server.abilities.wire != "json" and not server.sampling_error
    return Check("cluster", usable, described(server), "" if usable else "See docs/clusters.md for servers that train")


def check_processor() -> Check:
    """What the embedded engine will compute on."""
    fast = "bf16" if cpu_has_bf16() else "fp32"
    return Check("processor", True, f"{os.cpu_count()} cores, fast in {fast}")


def check_gpu() -> Check:
    """The GPUs there are, and whether the installed torch is a build that can use them."""
    listing = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not listing:
        return Check("GPU", None, "none found: the embedded engine computes on the processor")
    names = "; ".join(line.strip() for line in listing.splitlines())
    torch = _version("torch")
    if torch.endswith("+cpu"):
        return Check("GPU", False, f"{names}; torch {torch} cannot use it", f"Uninstall torch, then {setup_command()}")
    return Check("GPU", True, names)


def _output(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_sandbox() -> Check:
    """Whether rewards that run programs have a sandbox here."""
    found = isolation()
    if found.mode is None:
        why = f"none, so rewards that run programs are refused ({found.reason})"
        return Check("sandbox", None, why, "Install bubblewrap")
    return Check("sandbox", True, found.mode)


def check_compiler() -> Check:
    """Whether the embedded engine can compile its loops; it does so at its first start, once."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler or sys.platform != "linux":
        return Check("C compiler", True if compiler else None, compiler or "not used on this system")
    return Check("C compiler", None, "none: the embedded engine samples a third slower", "Install gcc or clang")


_CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_server_packages,
    check_training,
    check_evaluation,
    check_analysis,
    check_state_folder,
    check_job_registry,
    check_embedded_engine,
    check_hosted_tinker,
    check_prices,
    check_processor,
    check_gpu,
    check_compiler,
    check_sandbox,
)
