"""Checking and making files of rows, for a person in a terminal: the tools' answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ..core.errors import ConfigError, did_you_mean
from .model_commands import Spoken
from .output import show, show_json
from .run_command import answer_of, changed, content_of, plan_text, quick_yaml


def check(file: str, changes: Sequence[str], *, as_json: bool) -> int:
    """Print what is wrong with a training file.

    Returns:
        0 if it can be trained on as it is, else 1.
    """
    from ..tools.data import check_dataset

    content = _done(check_dataset, changes, {"train_file": file}, as_json=as_json)
    report: dict[str, Any] | None = content["report"]
    if report is None:  # other columns than ours: a mapping is proposed
        return 1
    constant = report.get("samples", 0) > 1 and len(report.get("distribution", ())) == 1
    return 0 if report.get("ok", not constant) else 1


def prepare(source: str, output_dir: str, changes: Sequence[str], *, as_json: bool) -> int:
    """Make a folder of checked files."""
    from ..tools.prepare import prepare_dataset

    named: object = quick_yaml(source) if source.lstrip().startswith("[") else source
    _done(prepare_dataset, changes, {"source": named, "output_dir": output_dir}, as_json=as_json)
    return 0


def _done(tool: Callable[..., Any], changes: Sequence[str], given: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """The content of a tool's answer when its work is done; what it says is printed.

    Raises:
        ConfigError: If a change is no argument of the tool.
    """
    from inspect import signature
    from typing import get_type_hints

    from pydantic import TypeAdapter, ValidationError

    from ..core.foreign_text import one_line

    arguments = changed(changes)
    known = [name for name in signature(tool).parameters if name != "ctx" and name not in given]
    for name in arguments:
        if name not in known:
            raise ConfigError("unknown key", where=name, fix=did_you_mean(name, known) or f"Keys: {', '.join(known)}")
    hints = get_type_hints(tool, include_extras=True)
    for name, value in arguments.items():
        try:
            arguments[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(one_line(error.errors()[0]["msg"]).lower(), where=name) from error
    while True:
        answer = answer_of(tool, ctx=cast("Any", Spoken()), **given, **arguments)
        content = content_of(answer)
        if content["done"]:
            break
    if as_json:
        show_json(content)
    else:
        show(plan_text(answer))
    return content
