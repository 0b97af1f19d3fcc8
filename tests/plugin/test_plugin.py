import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
import yaml
from mcp import Client, StdioServerParameters

from sota_ml_researcher.doctrine.rules import load_rules
from sota_ml_researcher.doctrine.topics import topics
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.server.prompts import TOOL_OF_COMMAND, read_command
from sota_ml_researcher.templates.catalog import template_kinds
from sota_ml_researcher.tools import TOOLS
from sota_ml_researcher.training.sft.config import SftConfig

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(ROOT.glob("commands/*.md"))
SKILLS = sorted(ROOT.glob("skills/*/SKILL.md"))
REFERENCES = sorted(ROOT.glob("skills/*/references/*.md"))
REGISTERED = {spec.function.__name__ for spec in TOOLS}
FAMILY = (
    "propose find check prepare validate start run list get wait cancel resume analyze compare sample export submit "
    "manage"
).split()
# Words in code spans that look like a tool and are an argument, a file or a setting.
NOT_TOOLS = {"validate_only", "run_name", "resume_from"}


def manifest(path: str) -> dict[str, Any]:
    return json.loads((ROOT / path).read_text())


def named_tools(text: str) -> set[str]:
    spans = re.findall(r"`([^`\n]+)`", text)
    words = {word for span in spans for word in re.findall(rf"(?<![/\w])(?:{'|'.join(FAMILY)})_[a-z_]+", span)}
    return words - NOT_TOOLS - set(TOOL_OF_COMMAND.keys() - REGISTERED)


def head_of(path: Path) -> dict[str, Any]:
    _, head, _ = path.read_text().split("---\n", 2)
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded


def test_both_manifests_are_equal_and_of_this_version() -> None:
    assert (ROOT / "plugin.json").read_bytes() == (ROOT / ".claude-plugin" / "plugin.json").read_bytes()
    assert manifest("plugin.json")["version"] == version("sota-ml-researcher")


def test_the_marketplace_offers_this_folder_under_the_plugins_name() -> None:
    offered = manifest(".claude-plugin/marketplace.json")["plugins"]
    assert [(entry["name"], entry["source"]) for entry in offered] == [(manifest("plugin.json")["name"], "./")]


def test_every_option_is_passed_to_the_server_and_is_a_secret() -> None:
    options = manifest("plugin.json")["userConfig"]
    (server,) = manifest(".mcp.json")["mcpServers"].values()
    assert server["env"] == {f"ML_RESEARCHER_OPTION_{name.upper()}": f"${{user_config.{name}}}" for name in options}
    assert all(option["sensitive"] and not option["required"] for option in options.values())


def test_the_manifests_hold_no_secret_and_no_path_of_a_machine() -> None:
    for path in ("plugin.json", ".mcp.json", "server.json", ".claude-plugin/marketplace.json"):
        text = (ROOT / path).read_text()
        assert not re.search(r"(sk-|hf_|tml-)[A-Za-z0-9]{6}", text)
        assert not re.search(r"/(home|root|work|Users)/", text)


# The parts of https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json that our file uses.
INPUT = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "format": {"enum": ["string", "number", "boolean", "filepath"]},
        "isRequired": {"type": "boolean"},
        "isSecret": {"type": "boolean"},
        "value": {"type": "string"},
    },
}
PACKAGE = {
    "type": "object",
    "required": ["registryType", "identifier", "transport"],
    "properties": {
        "registryType": {"const": "pypi"},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+([a-z]+\d+)?$"},
        "runtimeHint": {"type": "string"},
        "transport": {"type": "object", "required": ["type"], "properties": {"type": {"const": "stdio"}}},
        "packageArguments": {
            "type": "array",
            "items": {**INPUT, "required": ["type", "value"]},
        },
        "environmentVariables": {"type": "array", "items": {**INPUT, "required": ["name"]}},
    },
    "additionalProperties": {"type": "string"},
}
SERVER = {
    "type": "object",
    "required": ["$schema", "name", "description", "version"],
    "properties": {
        "$schema": {"const": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"},
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$", "minLength": 3, "maxLength": 200},
        "title": {"type": "string", "minLength": 1, "maxLength": 100},
        "description": {"type": "string", "minLength": 1, "maxLength": 100},
        "version": {"type": "string", "maxLength": 255},
        "packages": {"type": "array", "items": PACKAGE, "minItems": 1},
    },
    "additionalProperties": False,
}


def test_server_json_is_valid_for_the_registry_and_of_this_version() -> None:
    found = manifest("server.json")
    jsonschema.validate(found, SERVER)
    (package,) = found["packages"]
    assert found["version"] == package["version"] == version("sota-ml-researcher")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert package["identifier"] == project["name"]
    # uvx runs the script of the distribution's name.
    assert package["identifier"] in project["scripts"]
    secret = {entry["name"] for entry in package["environmentVariables"] if entry["isSecret"]}
    assert secret == {name.upper() for name in manifest("plugin.json")["userConfig"]}


def test_each_command_has_its_front_matter_and_takes_arguments() -> None:
    assert {path.stem for path in COMMANDS} == set(TOOL_OF_COMMAND)
    for path in COMMANDS:
        head = head_of(path)
        assert set(head) == {"description", "argument-hint"}
        assert 20 < len(head["description"]) < 100
        assert "$ARGUMENTS" in path.read_text()
        command = read_command(path.stem)
        assert (command.description, command.argument_hint) == (head["description"], head["argument-hint"])
        assert f"`{TOOL_OF_COMMAND[path.stem]}`" in command.text


def test_each_skill_says_what_it_is_for_and_when() -> None:
    assert {path.parent.name for path in SKILLS} == {"researcher", "training-data", "debug-run"}
    for path in SKILLS:
        head = head_of(path)
        assert set(head) == {"name", "description"}
        assert head["name"] == path.parent.name
        assert "Use when" in head["description"] and len(head["description"]) < 500
        assert len(path.read_text().splitlines()) < 80


def test_every_reference_of_a_skill_exists_and_is_named() -> None:
    for path in SKILLS:
        linked = set(re.findall(r"\]\((references/[\w-]+\.md)\)", path.read_text()))
        there = {f"references/{file.name}" for file in path.parent.glob("references/*.md")}
        assert linked == there


@pytest.mark.parametrize("path", [*COMMANDS, *SKILLS, *REFERENCES], ids=lambda path: "/".join(path.parts[-2:]))
def test_what_a_page_names_exists(path: Path) -> None:
    text = path.read_text()
    assert named_tools(text) <= REGISTERED
    known = {topic.name for topic in topics()} | set(load_rules())
    assert set(re.findall(r"doctrine://([\w.]+\w)", text)) <= known
    parts = set(re.findall(r"run://\{job_id\}/(\w+)", text))
    assert parts <= {name.lower() for name in vars(run_files) if name.isupper()}


def test_every_page_of_the_doctrine_has_a_route_from_the_researcher() -> None:
    text = (ROOT / "skills/researcher/SKILL.md").read_text()
    assert {topic.name for topic in topics()} - set(re.findall(r"doctrine://(\w+)`", text)) == {"rules"}


def test_each_run_command_ends_in_an_evaluation() -> None:
    for name in ("run_sft", "run_dpo", "run_grpo"):
        after_the_run = read_command(name).text.split("`analyze_run`")[-1]
        assert "Propose an evaluation" in after_the_run or "Propose `run_judge_eval`" in after_the_run, name


@pytest.mark.parametrize(
    "sign", ["entropy", "KL between", "KL to the reference", "answers cut", "log-probability falls"]
)
def test_the_debugger_knows_the_signs_of_rl_and_dpo(sign: str) -> None:
    lines = (ROOT / "skills/debug-run/SKILL.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("|") and sign in line.split("|")[1]]
    assert "doctrine://" in row


def test_every_tool_is_named_by_the_routing_table_of_the_researcher() -> None:
    table = (ROOT / "skills/researcher/references/tools.md").read_text()
    assert named_tools(table) == REGISTERED


def blocks(page: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"(?ms)^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text())


CLIENTS = ("json", "toml")


@pytest.mark.parametrize("language", CLIENTS)
def test_the_snippets_for_other_clients_start_our_command(language: str) -> None:
    found = [tomllib.loads(b) if language == "toml" else json.loads(b) for b in blocks("install.md", language)]
    assert len(found) == {"json": 3, "toml": 1}[language]
    for snippet in found:
        (servers,) = (snippet[key] for key in ("mcpServers", "servers", "mcp_servers") if key in snippet)
        assert list(servers) == ["ml-researcher"]
        assert (servers["ml-researcher"]["command"], servers["ml-researcher"]["args"]) == ("ml-researcher", ["serve"])


def test_the_command_of_the_snippets_answers() -> None:
    script = Path(sys.executable).parent / "ml-researcher"
    server = StdioServerParameters(command=str(script), args=["serve"], env=dict(os.environ))

    async def run() -> list[str]:
        async with Client(server) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert set(anyio.run(run)) == REGISTERED


# A page of the SDK's methods, whose names look like tools.
OF_THE_SDK = {"engine-methods.md", "clusters.md"}


def test_the_docs_name_only_what_exists() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        if page.name not in OF_THE_SDK:
            assert named_tools(text) <= REGISTERED, page.name
        known = {topic.name for topic in topics()} | set(load_rules())
        assert set(re.findall(r"doctrine://([\w.]+\w)", text)) <= known, page.name
        assert set(re.findall(r"template://([a-z]\w*)", text)) <= set(template_kinds()), page.name
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_transcripts_in_the_docs_are_what_the_program_answers() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "refresh_transcripts.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run scripts/refresh_transcripts.py\n{done.stdout}{done.stderr}"


def test_the_settings_in_the_docs_of_sft_are_those_of_the_config() -> None:
    table = (ROOT / "docs" / "sft.md").read_text().split("## Config")[1].split("## While")[0]
    keys = {key for cell in re.findall(r"(?m)^\| (.*?) \|", table) for key in re.findall(r"`(\w+)`", cell)}
    assert keys
    assert keys <= set(SftConfig.model_fields)
