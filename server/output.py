"""What a person at a terminal reads: lines that nothing is cut from, JSON where asked, commands for tools' names."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..core.redaction import publishable

PROGRAM = "ml-researcher"
_RUN, _JOBS = f"{PROGRAM} run", f"{PROGRAM} jobs"
# What a person types where an assistant calls a tool; {} is the job or model that the call names.
COMMANDS: Mapping[str, str] = {
    "check_dataset": f"{PROGRAM} data check FILE",
    "prepare_dataset": f"{PROGRAM} data prepare SOURCE OUTPUT_DIR",
    "propose_plan": "ml-researcher plan DATA --goal TEXT",
    "list_jobs": _JOBS,
    "get_job": f"{_JOBS} {{}}",
    "wait_for_job": f"{_JOBS} {{}} --follow",
    "cancel_job": f"{_JOBS} {{}} --cancel",
    "resume_job": f"{_JOBS} {{}} --resume",
    "start_sft": f"{_RUN} CONFIG",
    "start_dpo": f"{_RUN} CONFIG",
    "start_grpo": f"{_RUN} CONFIG",
    "start_generation": f"{_RUN} template://generation",
    "run_judge_eval": f"{_RUN} template://eval",
    "run_benchmark": f"{_RUN} CONFIG",
    "analyze_run": "ml-researcher analyze {}",
    "compare_runs": "ml-researcher compare {} OTHER",
    "sample_model": "ml-researcher sample {} --prompt TEXT",
    "export_checkpoint": "ml-researcher export {}",
    "manage_checkpoints": "ml-researcher checkpoints",
}
_CALL = re.compile(rf"\b({'|'.join(COMMANDS)})\b(\((?:[^()]|\([^()]*\))*\))?")
_NAMED = re.compile(r"(?:job_id|model|run)='([^']+)'")
_JOB = re.compile(r"\b[a-z_]+-[0-9a-f]{6}\b")
_CONFIG = re.compile(r"config='([^']+)'")
_STEPS = re.compile(r"'num_steps': (\d+)")
_TUNED = re.compile(r"finetuned_model='([^']+)'")


class Refused(click.ClickException):
    """A refusal for a person, on stderr."""

    def show(self, file: Any = None) -> None:
        """Print it."""
        show(f"{PROGRAM}: {self.format_message()}", error=True)


class Misused(Refused):
    """A refusal of the command line or the config."""

    exit_code = 2


def confirmed(question: str, *, yes: bool, otherwise: str, error: bool) -> bool:
    """Whether a person agrees; ``yes`` says so already.

    Args:
        question: What is asked.
        yes: Whether nothing has to be asked.
        otherwise: What did not happen, if they do not.
        error: Whether to ask on stderr, because stdout is for JSON.

    Raises:
        Refused: If there is no terminal to ask at.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise Misused(f"{otherwise}: without a terminal to ask at, it needs --yes.")
    if click.confirm(question, err=error):
        return True
    show(f"{otherwise.capitalize()}.", error=True)
    return False


def show(text: str = "", *, error: bool = False) -> None:
    """Print text without keys; what a model or a data row wrote in it cannot steer the terminal.

    A bare carriage return, which a bar of progress in a log has, is a line end.
    """
    click.echo(publishable(text.replace("\r\n", "\n").replace("\r", "\n")), err=error)


def show_json(content: Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> None:
    """Print one JSON document, without keys."""
    click.echo(json.dumps(publishable(content), indent=indent, ensure_ascii=False, default=str))


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below their headings, as wide as their longest cell: a long row is wrapped by the terminal, never cut."""
    cells: list[list[str]] = publishable([head, *rows])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def in_commands(text: str) -> str:
    """A text with the commands of a terminal in the place of the tools it names.

    Of the job that the call names, or else the text.
    """
    mentioned = _JOB.search(text)
    return _CALL.sub(lambda call: _command(call, mentioned[0] if mentioned else "JOB"), text)


def _command(call: re.Match[str], mentioned: str) -> str:
    arguments = call[2] or ""
    named = _NAMED.search(arguments)
    command = COMMANDS[call[1]].format(named[1] if named else mentioned)
    if config := _CONFIG.search(arguments):
        command = command.replace("CONFIG", shlex.quote(config[1]))
    if steps := _STEPS.search(arguments):
        command += f" num_steps={steps[1]}"
    if tuned := _TUNED.search(arguments):
        command += f" finetuned_model={tuned[1]}"
    return f"`{command}`"
