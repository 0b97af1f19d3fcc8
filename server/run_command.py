"""``ml-researcher run``: from a config to a running job, through the plan, the gate and the answers of the tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

import anyio
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..core.errors import ConfigError, JobError, did_you_mean
from ..core.settings import KIND_KEY, Settings
from ..core.yaml_loading import YamlDocument, load_yaml, quick_yaml
from ..jobs.kinds import KINDS
from ..templates.catalog import config_file
from .output import confirmed, in_commands, show, show_json
from .terminal import follow_job

if TYPE_CHECKING:
    from mcp_types import CallToolResult

# What a start's answer holds that its plan does not.
_STANDING = {"job_id", "state", "run_folder", "plan_id", "next"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run: the kind of job, the config as it was named, and the settings that win over it."""

    kind: str
    config: str
    overrides: Mapping[str, Any]

    def call(self, *, validate_only: bool = False, plan_id: str | None = None) -> CallToolResult:
        """The answer of the tool that starts this kind of job."""
        from ..tools import TOOLS

        tool = next(spec.function for spec in TOOLS if spec.function.__name__ == KINDS[self.kind].tool)
        return answer_of(
            tool, config=self.config, overrides=dict(self.overrides), validate_only=validate_only, plan_id=plan_id
        )


def run(config: str, changes: Sequence[str], *, kind: str | None, yes: bool, as_json: bool, follow: bool) -> int:
    """Show the plan, ask, and start the job.

    Returns:
        0 if it was started (followed: if it has succeeded), else 1; 2 if nobody could be asked.

    Raises:
        ResearcherError: As the tools: whatever stands against the job.
    """
    request = requested(config, changes, kind)
    plan = request.call(validate_only=True)
    show(plan_text(plan), error=as_json)
    if not confirmed("Start it?", yes=yes, otherwise="nothing was started", error=as_json):
        return 1
    started = content_of(_agreed(request, plan))
    job_id = started["job_id"]
    if not follow:
        if as_json:
            show_json(started)
        else:
            show(f"{job_id}: {started['state']}\nFiles: {started['run_folder']}")
            show(f"Next: {in_commands(started['next'])}")
        return 0
    show(f"{job_id}: {started['state']}. Ctrl-C stops following, not the job.", error=as_json)
    return follow_job(job_id, as_json=as_json)


def show_plan(config: str, changes: Sequence[str], *, kind: str | None, as_json: bool) -> int:
    """Print what a job would do; nothing is started."""
    plan = requested(config, changes, kind).call(validate_only=True)
    if as_json:
        show_json(content_of(plan))
    else:
        show(f"{plan_text(plan)}\nNext: the same without --validate-only starts it")
    return 0


def _agreed(request: Request, plan: CallToolResult) -> CallToolResult:
    """The start of what was agreed to; where money may be spent the plan is handed back, if it is still the same.

    Raises:
        JobError: If the plan is another one by now.
    """
    answer = request.call()
    offered = content_of(answer)
    if offered["plan_id"] is None:
        return answer
    if _facts(offered) != _facts(content_of(plan)):
        raise JobError("the plan has changed since it was shown: nothing was started", fix="Run the command again")
    return request.call(plan_id=offered["plan_id"])


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    facts = {key: value for key, value in content.items() if key not in _STANDING}
    if isinstance(facts.get("plan"), dict):
        facts["plan"] = {key: value for key, value in facts["plan"].items() if key not in _STANDING}
    return facts


def requested(config: str, changes: Sequence[str], kind: str | None) -> Request:
    """What a command line asks for.

    Raises:
        ConfigError: If a change is not ``key=value``, the kind is unknown or contradicts the config, or no kind can be
            told from the config.
    """
    overrides = changed(changes)
    path = config_file(config)
    if path is None:
        raise ConfigError("the name of the config is empty", fix="Give a path, or template://sft")
    document = load_yaml(path)
    values = {**document.data, **overrides}
    named = overrides.pop(KIND_KEY, values.pop(KIND_KEY, None))
    chosen = _chosen(kind, named, path=str(path)) or inferred_kind(document, values)
    if chosen == "reward_model":
        if values.get("loss", chosen) != chosen:
            raise ConfigError(
                f"kind reward_model contradicts loss: {values['loss']}", where="loss", fix="Keep one of them"
            )
        overrides["loss"] = chosen
    return Request(chosen, config, overrides)


def changed(changes: Sequence[str]) -> dict[str, Any]:
    """The settings that ``key=value`` words name.

    Raises:
        ConfigError: If a word is none, or a key is given twice.
    """
    named = dict(map(_change, changes))
    if len(named) < len(changes):
        raise ConfigError("a key is given twice", where=" ".join(changes), fix="Keep one of them")
    return named


def _change(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{word}' is no change", fix="Write key=value, such as num_steps=50")
    try:
        return key.strip(), quick_yaml(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "not readable"
        raise ConfigError(f"'{value}' is not a YAML value ({problem})", where=key, fix="Quote it") from error


def _chosen(wanted: str | None, named: object, *, path: str) -> str | None:
    """The kind that the command line or the config says."""
    if named == "reward_model":
        fix = "Write kind: dpo, and loss: reward_model"
        raise ConfigError("a reward model is a loss of DPO", where=f"{path}: {KIND_KEY}", fix=fix)
    for given, where in ((wanted, "--kind"), (named, KIND_KEY)):
        if given is not None and given not in KINDS:
            fix = did_you_mean(str(given), KINDS) or f"There are: {', '.join(KINDS)}"
            raise ConfigError(f"there is no kind of job '{given}'", where=where, fix=fix)
    tools = {KINDS[str(given)].tool for given in (wanted, named) if given is not None}
    if len(tools) > 1:
        raise ConfigError(f"--kind {wanted} contradicts kind: {named}", where=path, fix="Keep one of them")
    return wanted or (str(named) if named is not None else None)


def inferred_kind(document: YamlDocument, values: Mapping[str, Any]) -> str:
    """The kind of job whose keys these are; SFT and DPO have most keys in common, and the rows decide between them.

    Raises:
        ConfigError: If that leaves none or several; names them.
        DataError: If the rows would decide, and cannot be read.
    """
    loaders = {KINDS[kind].load: kind for kind in list(KINDS)[::-1]}  # of two with one loader, the first
    known = {kind: len(values.keys() & config_model(kind).model_fields.keys()) for kind in loaders.values()}
    likely = sorted(kind for kind, count in known.items() if count == max(known.values()) > 0)
    if len(likely) == 1:
        return likely[0]
    train_file, columns = _first_source(values)
    # RL may be among them, but has a key of its own that must be given.
    if {"dpo", "sft"} <= set(likely) and isinstance(train_file, str):
        settings = Settings(config_model("sft").model_construct(), {}, document)
        return _kind_of_rows(settings, train_file, columns)
    kinds = " or ".join(likely or KINDS)
    fix = "Add --kind, or a line such as kind: sft"
    raise ConfigError(f"its keys do not say whether this is {kinds}", where=str(document.path), fix=fix)


def _first_source(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The path and the columns of the first training rows that a config names."""
    named: Any = values.get("train_file")
    listed = cast("list[Any]", named) if isinstance(named, list) else [named]
    first: Any = listed[0] if listed else None
    if not isinstance(first, dict):
        return first, values.get("columns")
    source = cast("dict[str, Any]", first)
    return source.get("path"), source.get("columns", values.get("columns"))


def _kind_of_rows(settings: Settings[Any], train_file: str, columns: Any) -> str:
    from ..data.columns import Columns
    from ..data.preference_check import kind_of
    from ..data.sources import data_source

    try:
        mapped = TypeAdapter[dict[str, Any] | None](Columns | None).validate_python(columns)
    except ValidationError:  # the method's own check of the config says what is wrong
        mapped = None
    source = data_source(train_file, where=settings.place("train_file"), bases=settings.bases)
    rows = kind_of(source.path, mapped)
    return "dpo" if rows == "preferences" else "sft"


def config_model(kind: str) -> type[BaseModel]:
    """The pydantic model of a kind's settings: what its loader says that it returns."""
    return get_args(get_type_hints(resolve_name(KINDS[kind].load))["return"])[0]


def answer_of(tool: Callable[..., Any], **arguments: Any) -> CallToolResult:
    """A tool's answer, whether it is a coroutine or not."""
    if not inspect.iscoroutinefunction(tool):
        return tool(**arguments)

    async def called() -> CallToolResult:
        return await tool(**arguments)

    return anyio.run(called)


def content_of(answer: CallToolResult) -> dict[str, Any]:
    """The structured content of a tool's answer."""
    return dict(answer.structured_content or {})


def plan_text(answer: CallToolResult) -> str:
    """An answer's text without the next call, which is an assistant's, and with every warning in full."""
    content = content_of(answer)
    facts: dict[str, Any] = content.get("plan") or content
    warnings: list[str] = facts.get("warnings") or []
    text = str(getattr(answer.content[0], "text", "")).rsplit("\nNext: ", 1)[0]
    lines = [line for line in text.splitlines() if not (warnings and line.startswith("Warning: "))]
    return in_commands("\n".join([*lines, *(f"Warning: {warning}" for warning in warnings)]))
