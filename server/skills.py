"""The plugin's skills for clients without plugins: ``skill://`` resources, and the Skills extension's two methods.

Source: SEP-2640, ``modelcontextprotocol/ext-skills``, ``specification/stable/skills.mdx``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from mcp.server.context import ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CacheableResult, PaginatedRequestParams, RequestParams, Resource

from ..core.errors import ConfigError, did_you_mean
from ..core.validation import shown

_MANIFEST = "SKILL.md"
# The files change with the installed version alone.
_CACHED_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill: its frontmatter, and its files by their path inside it, the manifest first."""

    name: str
    frontmatter: Mapping[str, Any]
    contents: Mapping[str, bytes]

    def uri(self, path: str = _MANIFEST) -> str:
        """Where a file of it is read."""
        return f"skill://{self.name}/{path}"

    def entry(self) -> dict[str, Any]:
        """It as the extension describes a skill: frontmatter, and every file with digest and size."""
        resources = [
            {"uri": self.uri(path), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
            for path, content in self.contents.items()
        ]
        return {"uri": self.uri(), "frontmatter": self.frontmatter, "resources": resources}


@cache
def skills() -> Mapping[str, Skill]:
    """Every shipped skill by name."""
    folder = Path(str(files("sota_ml_researcher"))) / "skills"
    return {path.parent.name: _read(path.parent) for path in sorted(folder.glob(f"*/{_MANIFEST}"))}


def _read(folder: Path) -> Skill:
    import yaml

    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    paths.sort(key=lambda path: path != _MANIFEST)
    contents = {path: (folder / path).read_bytes() for path in paths}
    frontmatter = yaml.safe_load(contents[_MANIFEST].decode().split("---\n", 2)[1])
    return Skill(folder.name, frontmatter, contents)


def read_skill(name: str, path: str) -> str:
    """One file of a skill.

    Raises:
        ConfigError: If there is no such skill, or no such file in it.
    """
    if name not in skills():
        raise ConfigError(f"there is no skill {shown(name)}", fix=f"There are: {', '.join(skills())}")
    contents = skills()[name].contents
    if path not in contents:
        fix = did_you_mean(path, contents) or f"It has: {', '.join(contents)}"
        raise ConfigError(f"the skill {name} has no file {shown(path)}", fix=fix)
    return contents[path].decode()


def listed_skills() -> list[Resource]:
    """The manifests as resources; the other files of a skill are named in it."""
    return [
        Resource(
            uri=skill.uri(),
            name=skill.name,
            title=f"Skill: {skill.name}",
            description=skill.frontmatter["description"],
            mime_type="text/markdown",
            size=len(skill.contents[_MANIFEST]),
        )
        for skill in skills().values()
    ]


class GetSkillParams(RequestParams):
    """Which skill, by the address of its manifest."""

    uri: str


class ListSkillsResult(CacheableResult):
    """All skills; there are few, so there is one page."""

    result_type: Literal["complete"] = "complete"
    skills: list[dict[str, Any]]


class GetSkillResult(CacheableResult):
    """One skill."""

    result_type: Literal["complete"] = "complete"
    skill: dict[str, Any]


class Skills(Extension):
    """``skills/list`` and ``skills/get``."""

    identifier = "io.modelcontextprotocol/skills"

    def methods(self) -> Sequence[MethodBinding]:
        """The two methods."""
        return (
            MethodBinding("skills/list", PaginatedRequestParams, _list_skills),
            MethodBinding("skills/get", GetSkillParams, _get_skill),
        )


async def _list_skills(_: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> ListSkillsResult:
    if params.cursor is not None:
        raise MCPError(code=INVALID_PARAMS, message="skills/list has one page, and no cursor leads to another")
    entries = [skill.entry() for skill in skills().values()]
    return ListSkillsResult(skills=entries, ttl_ms=_CACHED_MS, cache_scope="public")


async def _get_skill(_: ServerRequestContext[Any, Any], params: GetSkillParams) -> GetSkillResult:
    skill = next((skill for skill in skills().values() if skill.uri() == params.uri), None)
    if skill is None:
        there = ", ".join(skill.uri() for skill in skills().values())
        raise MCPError(code=INVALID_PARAMS, message=f"no skill is served at {shown(params.uri)}. There are: {there}")
    return GetSkillResult(skill=skill.entry(), ttl_ms=_CACHED_MS, cache_scope="public")
