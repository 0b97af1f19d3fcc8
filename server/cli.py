"""The ``ml-researcher`` command: the server for assistants, and the same facts for a person in a terminal."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..core.errors import ConfigError, ResearcherError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code. Errors meant for a person are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["engine"]:
        return _become("engine", words[1:])
    options = _parser().parse_args(words)
    try:
        return int(options.run(options))
    except ResearcherError as error:
        print(f"ml-researcher: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ml-researcher", description="A post-training researcher behind MCP.")
    parser.add_argument("--version", action="version", version=version("sota-ml-researcher"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the MCP server on stdin and stdout, or over HTTP")
    serve.add_argument("--http", action="store_true", help="streamable HTTP instead of stdin and stdout")
    serve.add_argument(
        "--host", help="with --http: the address (default 127.0.0.1; others need ML_RESEARCHER_HTTP_KEY)"
    )
    serve.add_argument("--port", type=int, help="with --http: the port (default 8765; 0 takes a free one)")
    serve.add_argument("--allow-host", action="append", metavar="NAME", help="a further name clients call it by")
    serve.add_argument(
        "--no-key", action="store_true", help="with --http on loopback: answer every user of this machine"
    )
    serve.set_defaults(run=_serve)

    setup = commands.add_parser("setup", help="install what training, evaluation and analysis need, where this runs")
    setup.add_argument("--cpu", action="store_true", help="take a torch without CUDA: 1.6 GB in all instead of 6")
    setup.add_argument("--dry-run", action="store_true", help="only print the commands")
    setup.set_defaults(run=_setup)

    commands.add_parser("engine", help="run the embedded Tinker-compatible engine (engine --help)", add_help=False)

    demo = commands.add_parser("demo", help="fine-tune the packaged demo model through a real MCP client")
    demo.add_argument("--json", action="store_true", help="print the result as one JSON object")
    demo.set_defaults(run=_demo)

    jobs = commands.add_parser("jobs", help="list jobs, or show, follow, cancel or resume one")
    jobs.add_argument("job_id", nargs="?", help="show this job")
    action = jobs.add_mutually_exclusive_group()
    action.add_argument("--follow", action="store_true", help="show progress until it ends")
    action.add_argument("--cancel", action="store_true", help="stop it; a checkpoint is saved first")
    action.add_argument("--kill", action="store_true", help="stop it at once, without a checkpoint")
    action.add_argument("--resume", action="store_true", help="go on from its last checkpoint")
    jobs.add_argument("--limit", type=int, default=20, help="how many to list (default 20)")
    jobs.set_defaults(run=_jobs)

    costs = commands.add_parser("costs", help="what jobs cost by our meter, beside what Tinker billed")
    costs.add_argument("--days", type=int, default=30, help="how far back (default 30)")
    costs.add_argument("--offline", action="store_true", help="our meter only; do not ask Tinker")
    costs.set_defaults(run=_costs)

    checkpoints = commands.add_parser("checkpoints", help="list what is stored, or delete by name (for good)")
    checkpoints.add_argument("--backend", choices=["embedded", "tinker", "cluster"], default="embedded")
    checkpoints.add_argument("--base-url", help="for backend cluster")
    throw = checkpoints.add_mutually_exclusive_group()
    throw.add_argument("--delete", nargs="+", metavar="PATH", help="delete these tinker:// paths for good")
    throw.add_argument("--keep-best", metavar="JOB", help="of this job keep only the latest and the best")
    checkpoints.add_argument("--yes", action="store_true", help="really delete; without it they are only named")
    checkpoints.set_defaults(run=_checkpoints)

    doctor = commands.add_parser("doctor", help="check this installation and say what to fix")
    doctor.add_argument("--repair", action="store_true", help="first make a damaged job registry again")
    doctor.set_defaults(run=_doctor)
    return parser


def _serve(options: argparse.Namespace) -> int:
    flags = [f"--{name}" for name in ("host", "port", "allow_host") if getattr(options, name) is not None]
    flags += ["--no_key"] * options.no_key
    if flags and not options.http:
        raise ConfigError(f"{flags[0].replace('_', '-')} goes with --http", where="serve")
    gc.disable()  # the classes made at start-up stay: looking through them again and again costs a tenth of a second
    from .app import build_server

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    server = build_server()
    gc.freeze()
    gc.enable()
    if not options.http:
        server.run("stdio")
        return 0
    from . import http_transport as http

    host, port = options.host or http.DEFAULT_HOST, http.DEFAULT_PORT if options.port is None else options.port
    http.serve(server, host, port, options.allow_host or (), needs_key=not options.no_key)
    return 0


def _setup(options: argparse.Namespace) -> int:
    from .install import install_extras

    return install_extras(cpu=options.cpu, dry_run=options.dry_run)


def _demo(options: argparse.Namespace) -> int:
    """The demo is a client of this server, so it stands above it: it runs as a program of its own."""
    return _become("demo", ["--json"] if options.json else [])


def _become(program: str, arguments: Sequence[str]) -> int:
    """Run another of our programs in the place of this process."""
    command = [sys.executable, "-m", f"sota_ml_researcher.{program}", *arguments]
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(sys.executable, command)
    import subprocess

    return subprocess.run(command, check=False).returncode


def _jobs(options: argparse.Namespace) -> int:
    from . import terminal

    if options.job_id is None:
        if options.follow or options.cancel or options.kill or options.resume:
            print("ml-researcher jobs: which job? Give its id first.", file=sys.stderr)
            return 2
        return terminal.list_jobs(options.limit)
    if options.cancel or options.kill:
        return terminal.cancel_job(options.job_id, hard=options.kill)
    if options.resume:
        return terminal.resume_job(options.job_id)
    return terminal.follow_job(options.job_id) if options.follow else terminal.show_job(options.job_id)


def _costs(options: argparse.Namespace) -> int:
    from .terminal import show_costs

    return show_costs(days=options.days, offline=options.offline)


def _checkpoints(options: argparse.Namespace) -> int:
    from . import terminal

    if options.delete or options.keep_best:
        return terminal.delete_checkpoints(
            options.backend, options.base_url, paths=options.delete, keep_best=options.keep_best, really=options.yes
        )
    return terminal.list_checkpoints(options.backend, options.base_url)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import repair, run_doctor

    if options.repair:
        repair()
    return run_doctor()
