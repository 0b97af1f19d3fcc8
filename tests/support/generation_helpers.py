"""Making rows in this process as a worker would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from eval_helpers import Context, write_lines
from loopback_judges import fenced

from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.core.settings import render_config
from sota_ml_researcher.generation.generation_config import load_generation_settings
from sota_ml_researcher.generation.generation_job import run_generation_job
from sota_ml_researcher.generation.generation_plan import GenerationPlan, plan_generation
from sota_ml_researcher.jobs.context import Outcome

WRITER = "claude-haiku-5-5"


def planned(**config: Any) -> GenerationPlan:
    return plan_generation(load_generation_settings(None, config))


def make(folder: Path, context: Context | None = None, **config: Any) -> tuple[Outcome, Context]:
    """Plan, write the resolved config where there is none, and run."""
    context = context or Context(folder / "run", job_id="generation-000000")
    context.folder.mkdir(exist_ok=True)
    file = context.folder / "config.yaml"
    if not file.exists():
        plan = planned(**config)
        file.write_text(render_config(plan.settings.config, plan.settings.origins))
    return run_generation_job(context, file), context


def rows(context: Context, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    return list(read_json_lines(context.folder / name))


def reasons(context: Context) -> list[str]:
    return [row["reason"] for row in rows(context, "gated.jsonl")]


def prompts_file(folder: Path, count: int, **more: Any) -> str:
    """Sums, each with its answer."""
    return str(
        write_lines(
            folder / "prompts.jsonl", [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} | more for n in range(count)]
        )
    )


def documents(folder: Path, count: int = 3) -> str:
    """A folder of texts, each of them one passage."""
    place = folder / "docs"
    place.mkdir()
    for n in range(count):
        (place / f"{n}.md").write_text(f"The river number {n} is {n}00 km long.\nIt ends in lake {n}.\n")
    return str(place)


def text_shown(messages: list[dict[str, Any]], tag: str) -> str:
    """What a request holds under a tag."""
    return fenced(tag, messages[-1]["content"]) or ""


def asks_questions(messages: list[dict[str, Any]]) -> str:
    """A model that writes one sound question on a passage of `documents`."""
    text = text_shown(messages, "text")
    number = (re.search(r"number (\d+)", text) or ["", ""])[1]
    quote = text.splitlines()[0]
    asked = {
        "question": f"How long is river {number} in all?",
        "answer": f"River {number} is {number}00 km long.",
        "quote": quote,
    }
    return "Here they are.\n" + json.dumps({"questions": [asked]})
