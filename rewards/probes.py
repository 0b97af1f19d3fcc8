"""Trying a reward before any training: what the untrained model earns, and what cheats earn."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import BaseModel

from ..core.errors import ConfigError, DataError
from ..doctrine.rules import number
from .problems import Problem
from .reward_config import RewardPart
from .scorers import GroupScorer, Response, Score, attainable

PROBED_ROWS, PROBES_PER_ROW = 3, 5
SAMPLED_ROWS = 8
REFERENCES = 20
# A probe that gets half of what can be had is a way to be rewarded without doing the task.
_SUSPICIOUS = 0.5
_STUFFING = "correct answer final result therefore solution is right boxed reward verified true "


class Probe(BaseModel):
    """A response that should earn nothing, and the highest share of the attainable reward that it earned."""

    name: str
    share: float
    suspicious: bool


class ScoredExample(BaseModel):
    """The beginning of a sampled response, and its reward."""

    line: int
    response: str
    reward: float


class RewardReport(BaseModel):
    """What a dry run found. Rewards are in the reward's own unit; shares are of 1.

    Attributes:
        samples: Responses of the untrained model that were scored; 0 when none were sampled.
        distribution: How often each reward came (rounded to two decimals; the ten most frequent).
        constant_groups: Share of groups that will have one reward throughout, and so teach nothing.
        seconds_per_call: Wall time of one score.
        references_failed: Lines whose own ``solution`` does not pass.
        turns: Mean turns of an episode, where there is an environment.
    """

    samples: int
    mean: float | None
    std: float | None
    distribution: dict[str, int]
    constant_groups: float | None
    failed: int
    failures: list[str]
    seconds_per_call: float
    probes: list[Probe]
    references_checked: int
    references_failed: list[int]
    examples: list[ScoredExample]
    warnings: list[str]
    turns: float | None = None

    @property
    def broken_tests(self) -> str | None:
        """Says that tests fail on the data's own solutions, if they do."""
        lines = ", ".join(map(str, self.references_failed[:5]))
        return f"the tests fail on the row's own solution (lines {lines})" if lines else None

    @property
    def constant(self) -> bool:
        """Whether every sample got the same reward: training would learn nothing."""
        return self.samples > 1 and len(self.distribution) == 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses of the untrained model to one problem, and their scores."""

    problem: Problem
    outcomes: Sequence[tuple[Response, Score]]


async def check_reward(
    scorers: GroupScorer,
    parts: Sequence[RewardPart],
    problems: Sequence[Problem],
    *,
    group_size: int,
    sampled: Sequence[Sampled] = (),
    warnings: Sequence[str] = (),
) -> RewardReport:
    """Probe a reward, and judge what the untrained model got from it.

    Args:
        scorers: Give the rewards.
        parts: The checks they make.
        problems: The rows; the first few are probed.
        group_size: Samples that are compared with each other.
        sampled: Responses of the untrained model, scored.
        warnings: The caller's own, which come first.

    Raises:
        ConfigError: If the reward cannot be used at all.
    """
    began = time.monotonic()
    probes, probe_notes, calls = await _probe(scorers, parts, problems[:PROBED_ROWS])
    seconds = (time.monotonic() - began) / max(1, calls)
    checked, broken = await _references(scorers, parts, problems)
    scores = [score for group in sampled for _, score in group.outcomes]
    rewards = [score.reward for score in scores if not score.failed]
    notes = [s.note for s in scores if s.failed] + probe_notes
    mean = fmean(rewards) if rewards else None
    report = RewardReport(
        samples=len(scores),
        mean=mean,
        std=math.sqrt(fmean([(r - mean) ** 2 for r in rewards])) if mean is not None else None,
        distribution={f"{v:g}": c for v, c in Counter(round(r, 2) for r in rewards).most_common(10)},
        constant_groups=_constant_share(sampled, group_size),
        failed=sum(score.failed for score in scores),
        failures=list(dict.fromkeys(notes))[:5],
        seconds_per_call=round(seconds, 5),
        probes=probes,
        references_checked=checked,
        references_failed=broken,
        examples=[_example(group) for group in sampled[:3]],
        warnings=[],
    )
    return report.model_copy(update={"warnings": [*warnings, *_warnings(report)]})


def require_usable(report: RewardReport, *, force: bool) -> None:
    """Refuse a reward that cannot teach anything.

    Raises:
        ConfigError: If it was constant on the dry run, or failed throughout, and the user did not insist.
        DataError: If tests fail on the data's own solutions.
    """
    if force:
        return
    if report.broken_tests:
        raise DataError(report.broken_tests, fix="Correct the tests, or set force: true")
    if report.samples and report.failed == report.samples:
        raise ConfigError(
            f"the reward could not be computed for any of the {report.samples} samples: {report.failures[0]}",
            where="reward_type",
            fix="Correct what it names; or set force: true",
        )
    if report.constant:
        value = next(iter(report.distribution))
        raise ConfigError(
            f"the reward was {value} for all {report.samples} samples of the untrained model: nothing can be learnt",
            where="reward_type",
            fix="Look at check_dataset's reward check; SFT first, or an easier task; or set force: true",
        )


def _example(group: Sampled) -> ScoredExample:
    response, score = group.outcomes[0]
    return ScoredExample(line=group.problem.line, response=response.text[:200], reward=score.reward)


async def _probe(
    scorers: GroupScorer, parts: Sequence[RewardPart], problems: Sequence[Problem]
) -> tuple[list[Probe], list[str], int]:
    most = attainable(parts)
    shares: dict[str, float] = {}
    notes: list[str] = []
    calls = 0
    for problem in problems:
        texts = probe_texts(problem)
        responses = [Response(text, max(1, len(text) // 4)) for text in texts.values()]
        scores = await scorers.score_group(problem, responses)
        calls += len(scores)
        for name, score in zip(texts, scores, strict=True):
            if score.failed:
                notes.append(f"{name}: {score.note}")
            shares[name] = max(shares.get(name, -math.inf), score.reward / most)
    probes = [Probe(name=name, share=round(s, 3), suspicious=s >= _SUSPICIOUS) for name, s in shares.items()]
    return probes, notes, calls


def probe_texts(problem: Problem) -> dict[str, str]:
    """Responses that should not score on this problem."""
    answer = str(problem.row.get("answer", ""))
    numbers = ", ".join(map(str, range(200)))
    return {
        "empty answer": "",
        "prompt echoed": problem.prompt,
        "keyword stuffing": _STUFFING * 20,
        "very long": "well, " * 3000,
        "answer list": f"{numbers}, {answer}, {answer}0" if answer else numbers,
    }


async def _references(
    scorers: GroupScorer, parts: Sequence[RewardPart], problems: Sequence[Problem]
) -> tuple[int, list[int]]:
    """Whether the rows' own solutions pass their tests."""
    if not any(part.type == "code" for part in parts):
        return 0, []
    with_solution = [p for p in problems if isinstance(p.row.get("solution"), str)][:REFERENCES]
    groups = await asyncio.gather(
        *[scorers.score_group(p, [Response(str(p.row["solution"]), 1)]) for p in with_solution]
    )
    broken = [p.line for p, (score,) in zip(with_solution, groups, strict=True) if score.parts.get("code", 0.0) < 1.0]
    return len(with_solution), broken


def _constant_share(sampled: Sequence[Sampled], group_size: int) -> float | None:
    """The expected share of groups of ``group_size`` with one reward, each prompt's rewards drawn as often as seen.

    With n samples per prompt, of which k_v got reward v: the sum over v of (k_v / n)^G, averaged over prompts.
    """
    shares: list[float] = []
    for group in sampled:
        rewards = [score.reward for _, score in group.outcomes if not score.failed]
        if rewards:
            counts: Mapping[float, int] = Counter(rewards)
            shares.append(sum((k / len(rewards)) ** group_size for k in counts.values()))
    return round(fmean(shares), 3) if shares else None


def _warnings(report: RewardReport) -> list[str]:
    warnings: list[str] = []
    if report.constant:
        warnings.append(f"every sample got {next(iter(report.distribution))}: nothing can be learnt from this reward")
    elif report.constant_groups is not None and report.constant_groups > number("rl.constant_groups"):
        warnings.append(
            f"about {report.constant_groups:.0%} of the groups will have one reward throughout and teach nothing "
            "(rl.constant_groups): change the difficulty, or raise group_size"
        )
    warnings += [
        f"the probe '{probe.name}' earns {probe.share:.0%} of the attainable reward: the model will find that"
        for probe in report.probes
        if probe.suspicious
    ]
    if report.failures:
        warnings.append(f"the reward failed: {report.failures[0]}")
    if report.broken_tests:
        warnings.append(report.broken_tests)
    return warnings
