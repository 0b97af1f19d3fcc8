"""What stands in a response: the text after its thinking, and its fenced blocks of code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A fence may be indented as in a list; what follows it on the line is the language and attributes.
_OPENS = re.compile(r"^(?P<indent>[ \t]*(?:>[ \t]?)*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_MARK = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?(?:s|think|tool_call|tool_response)>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_[a-z]+>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]|<</?SYS>>"
)
_PYTHON = ("python", "python3", "py", "py3", "python2", "ipython")
_LANGUAGE = re.compile(r"[\w+#.-]+")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language in small letters or "", its text, and whether its fence is closed."""

    language: str
    text: str
    closed: bool

    @property
    def is_python(self) -> bool:
        """Whether it is marked as Python."""
        return self.language in _PYTHON


def after_thinking(response: str) -> str:
    """What a response says once it has thought: the text after the last ``</think>``; none where that never comes."""
    _, ended, said = response.rpartition("</think>")
    if ended:
        return said
    return "" if response.lstrip().startswith("<think>") else response


def blocks_in(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order; one that is never closed runs to the end."""
    found: list[Block] = []
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if opening is None:
            opening, lines = _OPENS.match(line), []
        elif _closes(line, opening["fence"]):
            found.append(_block(opening, lines, closed=True))
            opening = None
        else:
            lines.append(line)
    return found if opening is None else [*found, _block(opening, lines, closed=False)]


def _closes(line: str, fence: str) -> bool:
    mark = line.strip(" \t>")
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def _block(opening: re.Match[str], lines: Sequence[str], *, closed: bool) -> Block:
    indent = opening["indent"]
    language = _LANGUAGE.match(opening["info"].strip().lstrip("{.").strip())
    inner = [line.removeprefix(indent) if line.startswith(indent) else line.lstrip(" \t") for line in lines]
    return Block(language[0].lower() if language else "", "".join(f"{line}\n" for line in inner), closed)


def shown(output: str) -> str:
    """A program's output as a model may be shown it: no control characters, and no spelling of a chat template's marks.

    What a tokenizer would read as the end of a turn, such as ``<|im_end|>``, gets a space after its first character.
    """
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", output)
    return _MARK.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def program_of(response: str, wanted: Iterable[str] = ()) -> str:
    """The program that a response gives.

    Of its blocks those marked as Python count, or where there is none those without a language. The last one that
    defines a name that is ``wanted`` is the program, else the last one that does anything at all (numbers and text that
    stand for an output do nothing), else the last one. Where there is no block, the whole response is the program.

    Args:
        response: What the model wrote; its thinking is left out.
        wanted: Names that the program's tests may use.
    """
    said = after_thinking(response)
    blocks = blocks_in(said)
    python = [b for b in blocks if b.is_python] or [b for b in blocks if not b.language] or blocks
    if not python:
        return said
    names = set(wanted)
    trees = [_parsed(block.text) for block in python]
    for block, tree in zip(reversed(python), reversed(trees), strict=True):
        if tree is not None and names & _defined(tree):
            return block.text
    for block, tree in zip(reversed(python), reversed(trees), strict=True):
        if tree is not None and not all(_says_nothing(statement) for statement in tree.body):
            return block.text
    return python[-1].text


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defined(tree: ast.Module) -> set[str]:
    """Names that a program defines at its top."""
    found: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Assign):
            found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return found


def _says_nothing(statement: ast.stmt) -> bool:
    """Whether a statement is a value alone, such as a line of output."""
    calls = (ast.Call, ast.Await, ast.Yield, ast.NamedExpr)
    return isinstance(statement, ast.Expr) and not any(isinstance(node, calls) for node in ast.walk(statement))
