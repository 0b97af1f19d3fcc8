"""What a judge evaluation will do, worked out before it starts: prompts, calls, what it can show, what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ValidationError

from ..backends.estimate import CHARS_PER_TOKEN
from ..core.errors import ConfigError, DataError
from ..core.paths import user_path
from ..core.settings import Origin, Settings
from ..data.column_proposal import require_known_shape
from ..data.sources import data_source
from ..judges.judge_catalog import judge_price
from ..judges.prompt import EvalItem
from .answer_room import with_room
from .inputs import FILE_ENDINGS, EvalInputs, load_inputs
from .judge_config import JudgeEvalConfig
from .responses import read_responses
from .statistics.power import (
    WORST_DEVIATION,
    WORST_DEVIATION_OF_DIFFERENCES,
    items_needed,
    minimal_detectable_effect,
)
from .test_set import read_labels, unread_keys, worked_solutions

_VERDICT_TOKENS = 400  # a reason of three sentences, the scores, and some reasoning
_MANY_FOR_ASSISTANT = 50


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """An evaluation ready to start.

    Attributes:
        settings: The config with absolute paths.
        prompts: Prompts used.
        answers_to_sample: Answers that have to be sampled (those in the cache among them).
        calls: Judge calls in all, calibration checks included.
        total_steps: Answers and calls: the job's length.
        deviation: Standard deviation of item scores that the plan assumes.
        deviation_from: Where that comes from.
        detectable_effect: The smallest true effect found with 80% power, or None for one prompt.
        detectable_if_clustered: The same if prompts of one cluster agree entirely; None without clusters.
        prompts_for_wanted: Prompts that ``wanted_effect`` needs, or None.
        cost_usd: The judges' estimated cost; 0 when all are free, None when a price is not known.
        cost_note: How it was estimated, and the day of the prices.
        bills_elsewhere: Whether a judge's service may charge for it, besides the backend.
        sampled_models: The arms that have to be sampled: base models and tinker:// paths.
        files: The data files.
        warnings: What to know before starting.
    """

    settings: Settings[JudgeEvalConfig]
    prompts: int
    answers_to_sample: int
    calls: int
    total_steps: int
    deviation: float
    deviation_from: str
    detectable_effect: float | None
    detectable_if_clustered: float | None
    prompts_for_wanted: int | None
    cost_usd: float | None
    cost_note: str
    bills_elsewhere: bool
    sampled_models: tuple[str, ...]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def plan_judge_eval(
    settings: Settings[JudgeEvalConfig],
    *,
    default_base_url: str | None = None,
    bases: Mapping[str, str] | None = None,
) -> JudgePlan:
    """Check everything that can be checked without sampling or judging.

    Args:
        settings: The config, with job ids already resolved to checkpoints.
        bases: The base models of tinker:// paths, as far as they are known.
        default_base_url: Where openai: judges are when the config does not say (``OPENAI_BASE_URL``).

    Raises:
        ResearcherError: For a file, a rubric, a judge or an arm that cannot be used.
    """
    settings = _with_paths(settings)
    config = settings.config
    require_known_shape(Path(config.test_set), config.columns, "evaluation")
    inputs = load_inputs(config)
    sampled = [arm.model for arm in inputs.arms.values() if arm.file is None]
    settings, shortened = with_room(settings, sampled, bases or {}, inputs.items)
    config = settings.config
    answer_chars = _mean_answer_chars(config, inputs)
    _check_references(config, inputs.items)
    if config.human_labels:
        read_labels(Path(config.human_labels), inputs.items)
    deviation, source = _deviation(settings)
    cost, note = _cost(config, inputs, answer_chars)
    count = len(inputs.items)
    wanted = items_needed(config.wanted_effect, deviation) if config.wanted_effect else None
    return JudgePlan(
        settings=settings,
        prompts=count,
        answers_to_sample=inputs.answers_to_sample,
        calls=inputs.calls_per_judge * len(config.judges),
        total_steps=inputs.total_steps,
        deviation=deviation,
        deviation_from=source,
        detectable_effect=minimal_detectable_effect(count, deviation),
        detectable_if_clustered=_if_clustered(inputs.items, deviation),
        prompts_for_wanted=wanted,
        cost_usd=cost,
        cost_note=note,
        bills_elsewhere=any(j.may_cost(config.judge_base_url or default_base_url) for j in config.judges),
        sampled_models=tuple(sampled),
        files=_files(config, inputs),
        warnings=(*shortened, *unread_keys(Path(config.test_set), config.columns), *_warnings(config, inputs, wanted)),
    )


def _with_paths(settings: Settings[JudgeEvalConfig]) -> Settings[JudgeEvalConfig]:
    """Paths made absolute, since the worker runs in another folder; a test set of the hub is fetched."""
    config = settings.config
    changes: dict[str, tuple[Any, Origin]] = {}
    source = data_source(config.test_set, where=settings.place("test_set"), bases=settings.bases)
    changes["test_set"] = (str(source.path), settings.origins["test_set"].model_copy(update={"reason": source.facts}))
    for key in ("rubric", "canaries", "human_labels", "pilot"):
        name = getattr(config, key)
        if name is not None:
            changes[key] = (str(settings.data_file(key, name)), settings.origins[key])
    for key in ("baseline_model", "finetuned_model"):
        changes[key] = (_arm_path(settings, key, getattr(config, key)), settings.origins[key])
    others = tuple(_arm_path(settings, "other_models", model) for model in config.other_models)
    changes["other_models"] = (others, settings.origins["other_models"])
    if config.output_dir is not None:
        changes["output_dir"] = (str(user_path(config.output_dir).absolute()), settings.origins["output_dir"])
    return settings.derived(changes)


def _arm_path(settings: Settings[JudgeEvalConfig], key: str, model: str) -> str:
    is_file = model.startswith("demo:") or model.lower().endswith(FILE_ENDINGS)
    return str(settings.data_file(key, model)) if is_file else model


def _mean_answer_chars(config: JudgeEvalConfig, inputs: EvalInputs) -> float:
    """Mean characters of an answer: measured where there are files, else the most that can be sampled."""
    longest = config.max_response_tokens * CHARS_PER_TOKEN
    files = [arm.file for arm in inputs.arms.values()]
    lengths = [fmean(len(r.text) for r in read_responses(f, inputs.items)) if f else longest for f in files]
    return min(fmean(lengths), config.max_response_chars)


def _check_references(config: JudgeEvalConfig, items: Sequence[EvalItem]) -> None:
    for judge in config.judges:
        without = [item for item in items if item.reference is None]
        if judge.kind == "check" and without:
            raise DataError(
                f"{judge.name} compares with reference answers, and {len(without)} of {len(items)} prompts have none",
                where=f"{Path(config.test_set).name}:{without[0].line}",
                fix='Add "reference" to each row, or use another judge',
            )


class _PilotComparison(BaseModel):
    arm: str
    deviation: float | None = None


class _Pilot(BaseModel):
    """What a plan reads of an earlier evaluation's ``metrics.json``."""

    comparisons: list[_PilotComparison]

    def tuned_deviation(self) -> float:
        """The standard deviation of item scores in the tuned arm's comparison."""
        return next(c.deviation for c in self.comparisons if c.arm == "tuned" and c.deviation is not None)


def _deviation(settings: Settings[JudgeEvalConfig]) -> tuple[float, str]:
    config = settings.config
    if config.expected_deviation is not None:
        return config.expected_deviation, "expected_deviation of the config"
    if config.pilot is None:
        if config.mode == "absolute":
            worst = "the worst case, all differences as large as the scale; a pilot's is often smaller"
            return WORST_DEVIATION_OF_DIFFERENCES, worst
        return WORST_DEVIATION, "the worst case, no ties; a pilot's is often smaller"
    try:
        pilot = _Pilot.model_validate_json(Path(config.pilot).read_bytes())
        return pilot.tuned_deviation(), f"the pilot {Path(config.pilot).parent.name}"
    except (ValidationError, StopIteration) as error:
        raise ConfigError(
            "this is not the metrics.json of a judge evaluation with a deviation in it",
            where=settings.place("pilot"),
            fix="Give the metrics.json in the run folder of an earlier run_judge_eval",
        ) from error


def _if_clustered(items: Sequence[EvalItem], deviation: float) -> float | None:
    sizes = Counter(item.cluster for item in items if item.cluster is not None)
    if not sizes:
        return None
    units = len(sizes) + sum(item.cluster is None for item in items)
    return minimal_detectable_effect(units, deviation)


def _cost(config: JudgeEvalConfig, inputs: EvalInputs, answer_chars: float) -> tuple[float | None, str]:
    """US dollars for all calls (None where a price is unknown), and how they were estimated."""
    services = [judge for judge in config.judges if judge.is_service]
    if not services:
        return 0.0, "the judges cost nothing"
    answers = 2 if config.mode == "pairwise" else 1
    chars = fmean(len(i.prompt_text) + len(i.reference or "") for i in inputs.items)
    chars += answers * answer_chars
    fixed = len(inputs.prompter.system) + len(json.dumps(inputs.prompter.schema)) + 600
    tokens = (fixed + chars) / CHARS_PER_TOKEN
    total, dates = 0.0, set[str]()
    for judge in services:
        price = judge_price(judge, config.judge_price)
        if price is None:
            return None, f"unknown: no price of {judge.name} here; give judge_price: {{input: .., output: ..}}"
        dates.add(price.as_of)
        total += inputs.calls_per_judge * price.cost(tokens, _VERDICT_TOKENS, batch=config.in_batches(judge))
    as_of = ", ".join(sorted(dates))
    return total, f"about {tokens:,.0f} tokens in and {_VERDICT_TOKENS} out per call, prices of {as_of}"


def _files(config: JudgeEvalConfig, inputs: EvalInputs) -> tuple[Path, ...]:
    named = [config.test_set, config.rubric, config.canaries, config.human_labels]
    return tuple([Path(f) for f in named if f] + [arm.file for arm in inputs.arms.values() if arm.file is not None])


def _warnings(config: JudgeEvalConfig, inputs: EvalInputs, wanted: int | None) -> list[str]:
    warnings: list[str] = []
    count = len(inputs.items)
    if count < 2:
        warnings.append("one prompt can show nothing: there is no interval")
    if wanted is not None and wanted > count:
        warnings.append(f"an effect of {config.wanted_effect:g} needs {wanted} prompts, and there are {count}")
    if not config.position_debias:
        warnings.append("each pair is asked in one order only (judge.both_orders advises both)")
    for name in ("check:exact", "check:includes"):
        if name in config.judge_model:
            warnings += worked_solutions(inputs.items, name)
    warnings += [
        f"{judge.name} is a program that compares with references, not a model's opinion"
        for judge in config.judges
        if judge.kind == "check"
    ]
    warnings += [
        f"{name} judges a model of its own family (judge.self_preference)" for name in config.judges_of_own_family
    ]
    if "assistant" in config.judge_model and count > _MANY_FOR_ASSISTANT:
        warnings.append("an assistant judges each packet itself: num_samples of 20 to 50 is manageable")
    if len({str(a.file or a.model) for a in inputs.arms.values()}) < len(inputs.arms):
        warnings.append("two arms are the same model: expect no difference")
    return warnings
