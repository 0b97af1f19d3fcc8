"""Skills over MCP: what the extension lists is what the plugin ships, and each file is read as its digest says."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
import yaml
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CompletionArgument, Request, ResourceTemplateReference, TextResourceContents
from pydantic import BaseModel

from sota_ml_researcher.server.app import build_server

SHIPPED = Path(__file__).parents[2] / "skills"
MODES: list[Literal["legacy", "auto"]] = ["legacy", "auto"]


class Answer(BaseModel, extra="allow"):
    """Whatever a server sends."""


class Asked(Request[dict[str, Any], str]):
    """A request of an extension, which the SDK's client has no method for."""


async def ask(client: Client, method: str, **params: Any) -> dict[str, Any]:
    answer = await client.session.send_request(Asked(method=method, params=params), Answer)
    return answer.model_dump(by_alias=True)


async def text(client: Client, uri: str) -> str:
    content = (await client.read_resource(uri)).contents[0]
    assert isinstance(content, TextResourceContents)
    return content.text


@pytest.mark.parametrize("mode", MODES)
def test_every_shipped_skill_is_listed_whole_and_reads_as_its_digest_says(mode: Any) -> None:
    async def run() -> None:
        async with Client(build_server(), mode=mode) as client:
            declared = client.server_capabilities
            assert declared is not None and declared.resources is not None
            if mode == "auto":  # the older protocol has no place for extensions, and serves them all the same
                assert "io.modelcontextprotocol/skills" in (declared.extensions or {})
            entries = (await ask(client, "skills/list"))["skills"]
            names = [entry["frontmatter"]["name"] for entry in entries]
            assert names == sorted(path.parent.name for path in SHIPPED.glob("*/SKILL.md"))
            for name, entry in zip(names, entries, strict=True):
                assert entry["uri"] == f"skill://{name}/SKILL.md"
                files = {f"skill://{name}/{p.relative_to(SHIPPED / name)}" for p in (SHIPPED / name).rglob("*.md")}
                assert {file["uri"] for file in entry["resources"]} == files
                for file in entry["resources"]:
                    raw = (await text(client, file["uri"])).encode()
                    assert file["digest"] == f"sha256:{hashlib.sha256(raw).hexdigest()}"
                    assert file["size"] == len(raw)
                manifest = await text(client, entry["uri"])
                assert yaml.safe_load(manifest.split("---\n")[1]) == entry["frontmatter"]
                for reference in re.findall(r"\]\((references/\S+?)\)", manifest):
                    assert await text(client, f"skill://{name}/{reference}")
                assert (await ask(client, "skills/get", uri=entry["uri"]))["skill"] == entry

    anyio.run(run)


def test_skills_stand_among_the_resources_and_their_names_are_completed() -> None:
    async def run() -> None:
        async with Client(build_server()) as client:
            listed = {resource.uri: resource for resource in (await client.list_resources()).resources}
            assert listed["skill://researcher/SKILL.md"].description
            ref = ResourceTemplateReference(uri="skill://{skill}/{+path}")
            answer = await client.complete(ref, CompletionArgument(name="skill", value="res").model_dump())
            assert answer.completion.values == ["researcher"]

    anyio.run(run)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("skill://reseacher/SKILL.md", "There are: debug-run, researcher, training-data"),
        ("skill://researcher/references/workflw.md", "Did you mean 'references/workflow.md'"),
        ("skill://researcher/../../pyproject.toml", "pyproject.toml"),
        ("skill://researcher/..%2F..%2Fpyproject.toml", "pyproject.toml"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_outside_is_read(uri: str, message: str) -> None:
    async def run() -> None:
        async with Client(build_server()) as client:
            with pytest.raises(MCPError, match=message):
                await client.read_resource(uri)
            with pytest.raises(MCPError, match="no skill is served at"):
                await ask(client, "skills/get", uri=uri)

    anyio.run(run)
