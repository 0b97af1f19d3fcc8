"""What a client can read: the doctrine, the config templates, the skills, and the files of each run."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp_types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    Resource,
    ResourceTemplateReference,
)

from ..core.errors import ResearcherError
from ..core.foreign_text import fenced, foreign, new_tag
from ..core.validation import shown
from ..jobs import run_files
from ..jobs.registry import Registry
from ..tools.answers import problem_text

# A resource is read whole into a context window; longer files are cut at their end, the newest part.
_MAX_BYTES = 64 * 1024
_MAX_COMPLETIONS = 100

RUN_PARTS = {
    "config": run_files.CONFIG,
    "environment": run_files.ENVIRONMENT,
    "metrics": run_files.METRICS,
    "checkpoints": run_files.CHECKPOINTS,
    "alerts": run_files.ALERTS,
    "result": run_files.RESULT,
    "log": run_files.LOG,
}


def register(server: MCPServer[Any]) -> None:
    """Add the four families of resources and the completions of their variables."""

    @server.resource(
        "doctrine://{topic}",
        title="Research doctrine",
        description="What research says about a topic, with sources: lora, sft, dpo, rl, data, statistics, ...",
        mime_type="text/markdown",
    )
    def doctrine(topic: str) -> str:
        from ..doctrine.topics import read_topic

        return _readable(lambda: read_topic(topic))

    @server.resource(
        "template://{kind}",
        title="Config template",
        description="A YAML config that runs as shipped",
        mime_type="application/yaml",
    )
    def template(kind: str) -> str:
        from ..templates.catalog import read_template

        return _readable(lambda: read_template(kind))

    @server.resource(
        "skill://{skill}/{+path}",
        title="Skill",
        description="How to work with these tools, step by step: SKILL.md of a skill, and the files it names",
        mime_type="text/markdown",
    )
    def skill_file(skill: str, path: str) -> str:
        from .skills import read_skill

        return _readable(lambda: read_skill(skill, path))

    @server.resource(
        "run://{job_id}/{part}",
        title="File of a run",
        description=f"A file of one job: {', '.join(RUN_PARTS)} (the newest 64 KiB)",
        mime_type="text/plain",
    )
    def run(job_id: str, part: str) -> str:
        return _readable(lambda: read_run_part(job_id, part))

    @server.completion()
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        candidates = await anyio.to_thread.run_sync(_candidates, argument.name)
        values = [v for v in candidates if v.startswith(argument.value)]
        return Completion(values=values[:_MAX_COMPLETIONS], total=len(values), has_more=len(values) > _MAX_COMPLETIONS)


def listed() -> list[Resource]:
    """Each doctrine page, template and skill, with what it holds, when to read it, and its size."""
    from ..doctrine.topics import topics
    from ..templates.catalog import describe_template, read_template, template_kinds
    from .skills import listed_skills

    pages = [
        Resource(
            uri=f"doctrine://{topic.name}",
            name=topic.name,
            title=topic.title,
            description=f"{topic.description}. {topic.when_to_read}. {_kilobytes(topic.size_bytes)}",
            mime_type="text/markdown",
            size=topic.size_bytes,
        )
        for topic in topics()
    ]
    templates = [
        Resource(
            uri=f"template://{kind}",
            name=f"{kind}-template",
            title=f"{kind} config",
            description=f"{describe_template(kind)} {_kilobytes(len(read_template(kind).encode()))}",
            mime_type="application/yaml",
            size=len(read_template(kind).encode()),
        )
        for kind in template_kinds()
    ]
    return [*pages, *templates, *listed_skills()]


def _kilobytes(size_bytes: int) -> str:
    return f"({size_bytes / 1000:.1f} kB)"


def read_run_part(job_id: str, part: str) -> str:
    """The newest part of one file of a run.

    Raises:
        ResourceNotFoundError: If there is no such part, or it is not written yet.
        JobError: If there is no such job.
    """
    if part not in RUN_PARTS:
        raise ResourceNotFoundError(problem_text(f"a run has no part {shown(part)}. Parts: {', '.join(RUN_PARTS)}"))
    path = Registry().get(job_id).folder / RUN_PARTS[part]
    if not path.exists():
        raise ResourceNotFoundError(f"job {job_id} has written no {part} yet ({path})")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _MAX_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    head = ""
    if size > _MAX_BYTES:
        head = f"[the last 64 KiB of {size:,} bytes; the whole file: {path}]\n"
        text = text.partition("\n")[2]
    if part == "log":  # plain text, in which programs and servers speak; the other parts are JSON or YAML
        text = fenced(foreign(text, len(text), lines=True), new_tag())
    return head + text


def _readable(read: Any) -> str:
    try:
        return read()
    except ResearcherError as error:
        raise ResourceNotFoundError(problem_text(str(error))) from error


def _candidates(variable: str) -> list[str]:
    if variable == "topic":
        from ..doctrine.topics import topics

        return [topic.name for topic in topics()]
    if variable == "kind":
        from ..templates.catalog import template_kinds

        return template_kinds()
    if variable == "skill":
        from .skills import skills

        return list(skills())
    if variable == "job_id":
        return [job.id for job in Registry().find(limit=_MAX_COMPLETIONS)]
    if variable == "part":
        return list(RUN_PARTS)
    return []
