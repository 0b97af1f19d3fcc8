"""What the site has besides ``docs/``: README, doctrine, and a reference made from the code. A hook of MkDocs.

``make docs`` builds the site into ``build/site``; a broken link or anchor fails it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sota_ml_researcher.core import errors
from sota_ml_researcher.doctrine.topics import RULES_TOPIC, read_topic, topics
from sota_ml_researcher.jobs.kinds import KINDS
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.server.config_reference import Key, keys_of
from sota_ml_researcher.tools import TOOLS

ROOT = Path(__file__).parents[1]
RULES = "reference/rules.md"
# Pages that lie outside docs/, by their place on the site.
_PAGES = {"index.md": "README.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
_IN_PLACE = {"tests", "scripts", "benchmarks", "build", ".venv"}
_ERRORS = [name for name, kind in vars(errors).items() if isinstance(kind, type) and name != "ResearcherError"]


def on_config(config: MkDocsConfig) -> None:
    """Put the doctrine's pages into the navigation."""
    doctrine = next(part for part in config.nav or () if "Doctrine" in part)
    doctrine["Doctrine"] = [{t.title: f"doctrine/{t.name}.md"} for t in topics() if t.name != RULES_TOPIC]


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Add the pages that are not in ``docs/``."""
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "LICENSE.txt", abs_src_path=str(ROOT / "LICENSE")))


def pages() -> Mapping[str, str]:
    """Each page by its place on the site: its markdown."""
    outside = {place: moved((ROOT / name).read_text(encoding="utf-8")) for place, name in _PAGES.items()}
    doctrine = {f"doctrine/{t.name}.md": doctrine_page(t.name) for t in topics() if t.name != RULES_TOPIC}
    reference = {
        RULES: anchored(read_topic(RULES_TOPIC)),
        "reference/tools.md": tools_page(),
        "reference/configs.md": configs_page(),
        "reference/messages.md": messages_page(),
    }
    return outside | doctrine | reference


def moved(text: str) -> str:
    """A page of the repository's root with its links as they are on the site."""
    text = re.sub(r"\]\(docs/", "](", text)
    return text.replace("](README.md", "](index.md").replace("](LICENSE)", "](LICENSE.txt)")


def doctrine_page(name: str) -> str:
    """A page of the doctrine below its title, with every id of a rule as a link to the table."""
    text = read_topic(name)
    title = next(t.title for t in topics() if t.name == name)
    body = text.split("---\n", 2)[2]
    return f"# {title}\n\n{_linked(body)}"


def anchored(table: str) -> str:
    """The table of rules with an anchor before each id."""
    return re.sub(r"^\| `([\w.]+)`", r'| <a id="\1"></a>`\1`', table, flags=re.M)


def _linked(text: str) -> str:
    known = set(re.findall(r"^\| `([\w.]+)`", read_topic(RULES_TOPIC), flags=re.M))
    return re.sub(
        r"(?<!\[)`([a-z_]+(?:\.[a-z_0-9]+)+)`",
        lambda m: f"[`{m[1]}`](../{RULES}#{m[1]})" if m[1] in known else m[0],
        text,
    )


# Tools


def tools_page() -> str:
    """Every tool as a client sees it."""
    listed = {tool.name: tool for tool in anyio.run(build_server().list_tools)}
    parts = ["# Tools\n\nWhat an assistant is told of each tool."]
    for spec in TOOLS:
        tool = listed[spec.function.__name__]
        hints = [
            word
            for word, holds in (
                ("changes nothing", spec.read_only),
                ("can destroy something", spec.destructive),
                ("may be repeated", spec.idempotent),
                ("may reach beyond this machine", spec.open_world),
            )
            if holds
        ]
        schema: Mapping[str, Any] = tool.input_schema
        required = set(schema.get("required", ()))
        rows = [
            f"| `{name}` | {_type(field)}{', required' * (name in required)} | {_cell(field.get('description', ''))} |"
            for name, field in schema.get("properties", {}).items()
        ]
        says = inspect.cleandoc(tool.description or "")
        parts.append(f"## {tool.name}\n\n{says}\n\n*{spec.title}; {'; '.join(hints)}.*")
        if rows:
            parts.append("\n".join(["| argument | takes | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _type(schema: Mapping[str, Any]) -> str:
    if options := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    kind = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(kind)
    return f"array of {_type(schema['items'])}" if kind == "array" and schema.get("items") else str(kind)


# Configs


def configs_page() -> str:
    """Every key of every kind's config."""
    parts = [
        "# Configs\n\nEvery key, by kind of job. `ml-researcher config KIND` prints the same as a file to fill in. A "
        "default of null may mean derived: the plan shows the value and its rule."
    ]
    for kind, job in KINDS.items():
        parts.append(f"## {kind}\n\nStarted by [`{job.tool}`](tools.md#{job.tool}), or `ml-researcher run CONFIG`.")
        rows = [row for key in keys_of(kind) for row in _rows(key)]
        parts.append("\n".join(["| key | takes | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _rows(key: Key, above: str = "") -> Iterator[str]:
    rule = f" ([`{key.rule}`](rules.md#{key.rule}))" if key.rule else ""
    default = "required" if key.required else f"`{key.default}`".replace("None", "null")
    yield f"| `{above}{key.name}` | {_cell(key.takes)} | {_cell(default)}{rule} | {_cell(key.meaning)} |"
    for inner in key.keys:
        yield from _rows(inner, f"{above}{key.name}.")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# Messages


def messages_page() -> str:
    """Every message that the code raises word for word, by the part that raises it."""
    by_part: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.glob("*/**/*.py")):
        place = path.relative_to(ROOT)
        if place.parts[0] in _IN_PLACE:
            continue
        for kind, problem, fix in _raised(ast.parse(path.read_text(encoding="utf-8"))):
            by_part[place.parts[0]].add(f"| {_cell(problem)} | {_cell(fix)} | {kind} |")
    parts = [
        "# Messages\n\nWhat the program refuses and what to do about it, as the code has it; words in braces are "
        "filled in. A message starts with its place: a file and line, or a config and key."
    ]
    for part, rows in sorted(by_part.items()):
        parts.append("\n".join([f"## {part}\n", "| message | fix | kind |", "|---|---|---|", *sorted(rows)]))
    return "\n\n".join(parts) + "\n"


def _raised(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ERRORS and node.args:
            problem = _words(node.args[0])
            fix = next((_words(word.value) for word in node.keywords if word.arg == "fix"), "")
            if problem:
                yield node.func.id, problem, fix or ""


def _words(node: ast.AST) -> str | None:
    """The text of a literal, with what is filled in between braces; None for anything else."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{_name(part)}}}" for part in node.values
        )
    return None


def _name(part: ast.AST) -> str:
    """What is filled in, by the name of the value; a function around it is left out."""
    called = {id(node.func) for node in ast.walk(part) if isinstance(node, ast.Call)}
    for node in ast.walk(part):
        if id(node) not in called and isinstance(node, ast.Attribute | ast.Name):
            return (node.attr if isinstance(node, ast.Attribute) else node.id).strip("_").lower()
    return "…"
