"""The files of a finished generation job: rows with their provenance, what was left out and why, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core.errors import DataError, StorageError
from ..core.files import write_atomically, write_json_lines
from ..data.formats import PROVENANCE
from ..judges.base import JudgeUsage
from .gate import Draft, Task, plain, repeated
from .generation_config import GenerationConfig
from .jury import prompter_of
from .recipe import Recipe

GATED = "gated.jsonl"
# Shares above which whoever looks at the result is told.
_SAME_ANSWER, _CHOSEN_LONGER = 0.5, 0.75


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one source: rows with or without a fault, or why there are none and what the model said."""

    task: Task
    drafts: Sequence[Draft]
    reason: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What it took: answers, those that could not be read, tokens of the writing model, and US dollars in all."""

    answers: int
    unreadable: int
    usage: JudgeUsage
    spent_usd: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job tells of its end: ``numbers`` go into result.json."""

    numbers: Mapping[str, object]
    warnings: Sequence[str]


def finish(folder: Path, config: GenerationConfig, recipe: Recipe, made: Sequence[Made], facts: Facts) -> Summary:
    """Write the files of a job whose sources are all done.

    Raises:
        DataError: If no row has passed; what was left out is written all the same.
        StorageError: If the disk is full, or ``output_file`` has come to exist.
    """
    passed = [(one.task, draft) for one in made for draft in one.drafts if draft.fault is None]
    twice = repeated([draft for _, draft in passed], config.gate, by_prompt=recipe.compares_prompts)
    kept = [pair for at, pair in enumerate(passed) if at not in twice]
    repeats = {(id(draft)): twice[at] for at, (_, draft) in enumerate(passed) if at in twice}
    left_out = [record for one in made for record in _left_out(config, recipe, one, repeats)]
    write_json_lines(folder / GATED, left_out)
    reasons = Counter(str(record["reason"]) for record in left_out)
    if not kept:
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise DataError(
            f"no row was made of {len(made)} sources: {listed}",
            where=str(folder / GATED),
            fix="It holds what the model said; use another model, or change the gate",
        )
    rows = [{**draft.row, PROVENANCE: provenance(config, recipe, task, draft)} for task, draft in kept]
    files = recipe.write(folder, rows)
    if config.output_file is not None:
        _copy_to(Path(config.output_file), (folder / files[0]).read_bytes())
    where = Path(config.output_file) if config.output_file else folder / files[0]
    warnings = _warnings(config, [draft for _, draft in kept])
    return Summary(
        {
            "rows": len(kept),
            "sources": len(made),
            "left_out": dict(sorted(reasons.items())),
            "answers": facts.answers,
            "unreadable_answers": facts.unreadable,
            "tokens_in": facts.usage.input_tokens + facts.usage.cache_read_tokens + facts.usage.cache_write_tokens,
            "tokens_out": facts.usage.output_tokens,
            "spent_usd": round(facts.spent_usd, 6),
            "files": [str(folder / name) for name in files],
            "next": recipe.next_call.format(rows=where, folder=folder),
            "verdict_text": _verdict(len(kept), len(made), files, reasons, facts),
        },
        warnings,
    )


def provenance(config: GenerationConfig, recipe: Recipe, task: Task, draft: Draft) -> dict[str, Any]:
    """How a row came about. No time stands in it, so that the same job gives the same bytes."""
    made: dict[str, Any] = {"recipe": config.recipe}
    written = draft.written
    if written is not None:
        made |= {"model": config.model, "seed": written.seed, "sample": written.sample, "tries": written.tries}
        made |= {"served_model": written.model} if config.service else {"base_model": config.base_model}
        made["sampling"] = {"max_tokens": config.max_response_tokens, "temperature": config.temperature}
    made |= {"prompt_hash": recipe.template_hash} if recipe.template_hash else {}
    made |= {"judge_prompt_hash": prompter_of(config).prompt_hash} if "judge" in draft.facts else {}
    return {**made, "source": dict(task.source), **draft.facts}


def _left_out(config: GenerationConfig, recipe: Recipe, made: Made, repeats: Mapping[int, str]) -> list[dict[str, Any]]:
    if made.reason:
        record = {"reason": made.reason, "said": made.said}
        about = {"recipe": config.recipe, "model": config.model, "prompt_hash": recipe.template_hash}
        return [{**record, PROVENANCE: {**about, "source": dict(made.task.source)}}]
    records: list[dict[str, Any]] = []
    for draft in made.drafts:
        reason = draft.fault or repeats.get(id(draft))
        if reason is not None:
            said = draft.written.text if draft.written else draft.answer
            record = {"reason": reason, "row": dict(draft.row), "said": said}
            records.append({**record, PROVENANCE: provenance(config, recipe, made.task, draft)})
    return records


def _copy_to(path: Path, content: bytes) -> None:
    """Write the rows to the place the user named; a kill after that and a resume find them there."""
    if path.exists():
        if path.read_bytes() != content:
            raise StorageError(
                f"{path} has come to exist, and is not overwritten", fix="The rows are in the run's folder"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _verdict(rows: int, sources: int, files: Sequence[str], reasons: Counter[str], facts: Facts) -> str:
    lines = [f"{rows:,} rows of {sources:,} sources in {' and '.join(files)}."]
    if reasons:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        lines.append(f"Left out: {sum(reasons.values()):,} ({listed}), each in {GATED}.")
    asked = f"{facts.answers:,} answers of the model"
    asked += f", {facts.unreadable:,} of which could not be read" if facts.unreadable else ""
    cost = f"; ${facts.spent_usd:.4g}" if facts.spent_usd else ""
    return "\n".join([*lines, f"{asked}; {facts.usage.output_tokens:,} tokens written{cost}."])


def _warnings(config: GenerationConfig, kept: Sequence[Draft]) -> list[str]:
    warnings: list[str] = []
    answers = Counter(plain(draft.answer) for draft in kept)
    _, most = answers.most_common(1)[0]
    if len(kept) > 2 and most / len(kept) > _SAME_ANSWER and config.recipe in {"distillation", "rewrites", "questions"}:
        warnings.append(f"{most:,} of {len(kept):,} rows have one and the same answer: look at them before you train")
    if config.recipe == "preferences" and len(kept) > 2:
        longer = fmean(len(str(d.row["chosen"])) > len(str(d.row["rejected"])) for d in kept)
        if longer > _CHOSEN_LONGER:
            warnings.append(
                f"the chosen answer is the longer one in {longer:.0%} of the pairs: DPO will learn length from them"
            )
    return warnings
