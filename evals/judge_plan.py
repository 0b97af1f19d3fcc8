"""What a judge evaluation will do, worked out before it starts: prompts, calls, what it can show, what it costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlparse

from ..backends.estimate import CHARS_PER_TOKEN
from ..core.errors import ConfigError, DataError
from ..core.settings import Origin, Settings
from ..judges.judge_catalog import JudgeRef, Price, price_of
from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import load_rubric
from .arms import FILE_ENDINGS, Arm, load_items, resolve_arm, sampled_arms
from .controls import load_canaries
from .human_labels import read_labels
from .judge_config import JudgeEvalConfig
from .questions import count_calls
from .responses import read_responses
from .statistics.power import WORST_DEVIATION, items_needed, minimal_detectable_effect

_VERDICT_TOKENS = 400  # a reason of three sentences, the scores, and some thought
_MANY_FOR_ASSISTANT = 50
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """An evaluation ready to start.

    Attributes:
        settings: The config with absolute paths.
        prompts: Prompts used.
        answers_to_sample: Answers that have to be sampled (those in the cache among them).
        calls: Judge calls in all, calibration checks of the judges included.
        total_steps: Answers and calls: the job's length.
        deviation: Of item scores, which the plan assumes.
        deviation_from: Where that comes from.
        detectable_effect: The smallest true effect found with 80% power, or None for one prompt.
        detectable_if_clustered: The same if prompts of one cluster agree entirely; None without clusters.
        prompts_for_wanted: Prompts that ``wanted_effect`` needs, or None.
        cost_usd: The judges' estimated cost; 0 when all are free, None when a price is not known.
        cost_note: How it was estimated, and the day of the prices.
        needs_confirmation: Whether it may cost money, so that the plan has to be handed back.
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
    needs_confirmation: bool
    sampled_models: tuple[str, ...]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def plan_judge_eval(settings: Settings[JudgeEvalConfig], *, default_base_url: str | None = None) -> JudgePlan:
    """Check everything that can be checked without sampling or judging.

    Args:
        settings: The config, with job ids already resolved to checkpoints.
        default_base_url: Where openai: judges are when the config does not say (``OPENAI_BASE_URL``).

    Raises:
        ResearcherError: For a file, a rubric, a judge or an arm that cannot be used.
    """
    settings = _with_paths(settings)
    config = settings.config
    items = load_items(Path(config.test_set), config.num_samples, config.seed)
    rubric = load_rubric(Path(config.rubric) if config.rubric else None)
    canaries = load_canaries(Path(config.canaries) if config.canaries else None)
    arms = {name: resolve_arm(name, model) for name, model in config.arms.items()}
    lengths = _answer_lengths(config, arms, items)
    _check_references(config, items)
    if config.human_labels:
        read_labels(Path(config.human_labels), items)
    each = count_calls(
        len(arms), len(items), len(canaries), pairwise=config.mode == "pairwise", both_orders=config.position_debias
    )
    deviation, source = _deviation(settings)
    prompter = Prompter(rubric, config.mode, max_chars=config.max_response_chars)
    cost, note = _cost(config, each, prompter, items, lengths)
    sampled = len(sampled_arms(arms)) * len(items)
    wanted = items_needed(config.wanted_effect, deviation) if config.wanted_effect else None
    return JudgePlan(
        settings=settings,
        prompts=len(items),
        answers_to_sample=sampled,
        calls=each * len(config.judges),
        total_steps=sampled + each * len(config.judges),
        deviation=deviation,
        deviation_from=source,
        detectable_effect=minimal_detectable_effect(len(items), deviation),
        detectable_if_clustered=_if_clustered(items, deviation),
        prompts_for_wanted=wanted,
        cost_usd=cost,
        cost_note=note,
        needs_confirmation=_may_cost(config, sampled, default_base_url),
        sampled_models=tuple(arm.model for arm in sampled_arms(arms)),
        files=_files(config, arms),
        warnings=tuple(_warnings(config, items, arms, wanted)),
    )


def _with_paths(settings: Settings[JudgeEvalConfig]) -> Settings[JudgeEvalConfig]:
    """Paths made absolute: the worker runs in another folder."""
    config = settings.config
    changes: dict[str, tuple[Any, Origin]] = {}
    for key in ("test_set", "rubric", "canaries", "human_labels", "pilot"):
        name = getattr(config, key)
        if name is not None:
            changes[key] = (str(settings.data_file(key, name)), settings.origins[key])
    for key in ("baseline_model", "finetuned_model"):
        changes[key] = (_arm_path(settings, key, getattr(config, key)), settings.origins[key])
    others = tuple(_arm_path(settings, "other_models", model) for model in config.other_models)
    changes["other_models"] = (others, settings.origins["other_models"])
    return settings.derived(changes)


def _arm_path(settings: Settings[JudgeEvalConfig], key: str, model: str) -> str:
    is_file = model.startswith("demo:") or model.lower().endswith(FILE_ENDINGS)
    return str(settings.data_file(key, model)) if is_file else model


def _answer_lengths(config: JudgeEvalConfig, arms: Mapping[str, Arm], items: Sequence[EvalItem]) -> float:
    """Mean characters of an answer: measured where there are files, else the most that can be sampled."""
    lengths = [fmean(len(r.text) for r in read_responses(a.file, items)) for a in arms.values() if a.file is not None]
    lengths += [config.max_response_tokens * CHARS_PER_TOKEN] * len(sampled_arms(arms))
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


def _deviation(settings: Settings[JudgeEvalConfig]) -> tuple[float, str]:
    config = settings.config
    if config.expected_deviation is not None:
        return config.expected_deviation, "expected_deviation of the config"
    if config.pilot is None:
        return WORST_DEVIATION, "the worst case, no ties; a pilot's is often smaller"
    try:
        pilot = json.loads(Path(config.pilot).read_bytes())
        deviation = next(c["deviation"] for c in pilot["comparisons"] if c["arm"] == "tuned")
        return float(deviation), f"the pilot {Path(config.pilot).parent.name}"
    except (ValueError, KeyError, TypeError, StopIteration) as error:
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


def _cost(
    config: JudgeEvalConfig, calls: int, prompter: Prompter, items: Sequence[EvalItem], answer_chars: float
) -> tuple[float | None, str]:
    paid = [judge for judge in config.judges if judge.is_paid]
    if not paid:
        return 0.0, "the judges cost nothing"
    answers = 2 if config.mode == "pairwise" else 1
    chars = fmean(len(i.prompt_text) + len(i.reference or "") for i in items) + answers * answer_chars
    fixed = len(prompter.system) + len(json.dumps(prompter.schema)) + 600
    tokens = (fixed + chars) / CHARS_PER_TOKEN
    total, dates = 0.0, set[str]()
    for judge in paid:
        price = _price(judge, config)
        if price is None:
            return None, f"unknown: no price of {judge.name} here; give judge_price: {{input: .., output: ..}}"
        dates.add(price.as_of)
        batch = config.judge_batch and judge.kind == "anthropic"
        total += calls * price.cost(tokens, _VERDICT_TOKENS, batch=batch)
    return (
        total,
        f"about {tokens:,.0f} tokens in and {_VERDICT_TOKENS} out per call, prices of {', '.join(sorted(dates))}",
    )


def _price(judge: JudgeRef, config: JudgeEvalConfig) -> Price | None:
    if config.judge_price is not None:
        return Price(config.judge_price.input, config.judge_price.output, "the config")
    return price_of(judge.model) if judge.kind == "anthropic" else None


def _may_cost(config: JudgeEvalConfig, sampled: int, default_base_url: str | None) -> bool:
    if config.backend == "tinker" and (sampled or any(j.kind == "tinker" for j in config.judges)):
        return True
    address = urlparse(config.judge_base_url or default_base_url or "").hostname
    return any(j.kind == "anthropic" or (j.kind == "openai" and address not in _LOOPBACK) for j in config.judges)


def _files(config: JudgeEvalConfig, arms: Mapping[str, Arm]) -> tuple[Path, ...]:
    named = [config.test_set, config.rubric, config.canaries, config.human_labels]
    return tuple([Path(f) for f in named if f] + [arm.file for arm in arms.values() if arm.file is not None])


def _warnings(
    config: JudgeEvalConfig, items: Sequence[EvalItem], arms: Mapping[str, Arm], wanted: int | None
) -> list[str]:
    warnings: list[str] = []
    if len(items) < 2:
        warnings.append("one prompt can show nothing: there is no interval")
    if wanted is not None and wanted > len(items):
        warnings.append(f"an effect of {config.wanted_effect:g} needs {wanted} prompts, and there are {len(items)}")
    if not config.position_debias:
        warnings.append("each pair is asked in one order only (judge.both_orders advises both)")
    for judge in config.judges:
        if judge.kind == "check":
            warnings.append(f"{judge.name} is a program that compares with references, not a model's opinion")
        if judge.kind not in {"check", "assistant"} and any(
            _family(judge.model) == _family(m) for m in config.arms.values()
        ):
            warnings.append(f"{judge.name} judges a model of its own family (judge.self_preference)")
    if "assistant" in config.judge_model and len(items) > _MANY_FOR_ASSISTANT:
        warnings.append("an assistant judges each packet itself: num_samples of 20 to 50 is a bearable amount")
    if len({str(a.file or a.model) for a in arms.values()}) < len(arms):
        warnings.append("two arms are the same model: expect no difference")
    return warnings


def _family(model: str) -> str:
    name = model.split("/")[-1].lower()
    return next((f for f in ("claude", "gpt", "qwen", "llama", "deepseek", "kimi") if f in name), model)
