"""What went wrong in a tool, as a client gets it: a sentence to read, and the same in fields for programs."""

from __future__ import annotations

import logging
import re
import sqlite3

from mcp_types import CallToolResult, TextContent

from ..core.errors import DataError, ResearcherError, StorageError
from ..core.extras import not_installed
from ..core.foreign_text import foreign
from ..tools.answers import problem_text

logger = logging.getLogger(__name__)

# The place of a row: FILE:LINE.
_ROW = re.compile(r":\d+$")


class ArgumentsError(ResearcherError, ValueError):
    """A tool was called with arguments that it does not take."""


class FaultError(ResearcherError, RuntimeError):
    """This program failed where it should not have."""


def for_the_reader(error: Exception) -> ResearcherError:
    """Any error of a tool as one that its caller can read; a fault of ours goes to the log with its traceback."""
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, ResearcherError):
        return not_installed([(error.name or "a package").partition(".")[0]], by="this")
    if isinstance(error, DataError) and _ROW.search(error.where):  # what is wrong with a row repeats parts of it
        return DataError(foreign(error.problem), where=error.where, fix=error.fix)
    if isinstance(error, ResearcherError):
        return error
    if isinstance(error, OSError | sqlite3.Error):
        return StorageError(f"the system refused: {error.__class__.__name__}: {error}")
    logger.error("A tool failed unexpectedly", exc_info=error)
    name = type(error).__name__
    return FaultError(f"an unexpected {name} ended this call: a fault of this program, whose log has the details")


def error_answer(error: ResearcherError) -> CallToolResult:
    """The error as a tool's result: the sentence as text; kind, place, problem and fix under ``failure``."""
    fields = {"kind": kind_of(error), "place": error.where, "problem": error.problem, "fix": error.fix}
    return CallToolResult(
        content=[TextContent(type="text", text=problem_text(str(error)))],
        structured_content={"failure": {name: problem_text(text) for name, text in fields.items()}},
        is_error=True,
    )


def kind_of(error: ResearcherError) -> str:
    """The kind of an error in a word, such as ``config``, ``data``, ``backend`` or ``missing_dependency``."""
    shared = next(cls for cls in type(error).__mro__ if ResearcherError in cls.__bases__ or cls is ResearcherError)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", shared.__name__.removesuffix("Error")).lower()
    return "other" if shared is ResearcherError else words
