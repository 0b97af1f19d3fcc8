"""What the samples of each step were like, and the rollouts kept for people in ``rollouts.jsonl``."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.errors import ResearcherError
from ...core.files import append_json_line, read_json_lines, write_json_lines
from ...doctrine.rules import number
from ...jobs.run_files import ROLLOUTS
from ...rewards.episodes import Episode
from ..loop import Metrics
from .rollouts import PlayedGroup

_KEPT_TEXT = 20_000
_LEAST_GROUPS = 8


class RewardFailedError(ResearcherError, RuntimeError):
    """Too many samples could not be scored: what is left is not a fair sample of what the model does."""


def sample_metrics(groups: Sequence[PlayedGroup]) -> Metrics:
    """Statistics of a step's samples, before any group is left out: ``reward/...``, ``response/...``, ``episode/...``.

    Rewards are those of samples that were scored; ``reward/std`` is the population's deviation.
    """
    responses = [response for group in groups for response in group.responses]
    scores = [score for group in groups for score in group.scores]
    if not responses:
        return {}
    metrics = {
        "reward/failed": fmean([float(score.failed) for score in scores]),
        "response/tokens": fmean([response.tokens for response in responses]),
        "response/cut": fmean([float(response.cut) for response in responses]),
    }
    scored = [score for score in scores if not score.failed]
    if scored:
        mean = fmean([score.reward for score in scored])
        rewards = [[s.reward for s in group.scores if not s.failed] for group in groups]
        metrics |= {
            "reward/mean": mean,
            "reward/std": math.sqrt(fmean([(score.reward - mean) ** 2 for score in scored])),
            "reward/constant_groups": fmean([float(len(set(group)) == 1) for group in rewards if group]),
        }
    for name in dict.fromkeys(name for score in scored for name in score.parts):
        metrics[f"reward/{name}"] = fmean([score.parts[name] for score in scored if name in score.parts])
    return metrics | episode_metrics([episode for group in groups for episode in group.episodes])


def episode_metrics(episodes: Sequence[Episode]) -> Metrics:
    """What episodes of several turns were like.

    ``episode/turns`` and ``episode/tokens`` are means; ``episode/reward_turn_N`` is the mean reward of the N-th turn,
    before discount, of the episodes that came so far; ``episode/ended_REASON`` the share of episodes.
    """
    if not episodes:
        return {}
    metrics = {
        "episode/turns": fmean([len(e.turns) for e in episodes]),
        "episode/tokens": fmean([e.tokens for e in episodes]),
    }
    for n in range(max(len(e.turns) for e in episodes)):
        reached = [e.turns[n].score.reward for e in episodes if len(e.turns) > n and not e.turns[n].score.failed]
        if reached:
            metrics[f"episode/reward_turn_{n + 1}"] = fmean(reached)
    ended = Counter(e.stop for e in episodes)
    return metrics | {f"episode/ended_{reason}": count / len(episodes) for reason, count in ended.items()}


class RolloutLog:
    """Keeps some rollouts of each step, and watches how many samples could not be scored.

    Args:
        folder: The run's.
        keep: Rollouts kept of each step.
        on_failure: Told why a sample could not be scored.
        batch: Groups per step: the failures of that many (and of eight at least) are looked at together.
    """

    def __init__(self, folder: Path, keep: int, on_failure: Callable[[str], None], *, batch: int = 1) -> None:
        self._path = folder / ROLLOUTS
        self._keep = keep
        self._on_failure = on_failure
        self._latest: deque[float] = deque(maxlen=max(batch, _LEAST_GROUPS))

    def note(self, step: int, groups: Sequence[PlayedGroup]) -> None:
        """Take in the groups of a step, in the order of its prompts.

        Raises:
            RewardFailedError: If too many of the latest samples could not be scored.
        """
        for group in groups:
            for score in group.scores:
                if score.failed:
                    self._on_failure(score.note)
        share = max(1, self._keep // 4)
        kept = [_record(step, group, member) for group in groups for member in range(len(group.responses))[:share]]
        for record in kept[: self._keep]:
            append_json_line(self._path, record)
        for group in groups:
            self._watch(group)

    def _watch(self, group: PlayedGroup) -> None:
        self._latest.append(fmean([float(score.failed) for score in group.scores]))
        share = fmean(self._latest)
        if len(self._latest) == self._latest.maxlen and share > number("reward.unscored"):
            last = next((score.note for score in group.scores if score.failed), "")
            raise RewardFailedError(
                f"{share:.0%} of the samples of the last {len(self._latest)} prompts could not be scored; last: {last}",
                where="reward",
                fix="Fix what it names, then resume_job goes on from the last checkpoint",
            )


def _record(step: int, group: PlayedGroup, member: int) -> dict[str, Any]:
    """One line of ``rollouts.jsonl``; an episode is shown turn by turn."""
    response, score = group.responses[member], group.scores[member]
    record: dict[str, Any] = {
        "step": step,
        "line": group.problem.line,
        "prompt": group.problem.prompt[:_KEPT_TEXT],
        "response": response.text[:_KEPT_TEXT],
        "reward": None if score.failed else score.reward,
        "parts": dict(score.parts),
        "tokens": response.tokens,
        "cut": response.cut,
        "note": score.note,
    }
    if not group.episodes:
        return record
    episode = group.episodes[member]
    turns = [
        {
            "reply": turn.reply[:_KEPT_TEXT],
            "tokens": turn.tokens,
            "reward": None if turn.score.failed else turn.score.reward,
            "parts": dict(turn.score.parts),
            "environment": [{**m, "content": m["content"][:_KEPT_TEXT]} for m in turn.messages],
        }
        for turn in episode.turns
    ]
    return {**record, "opening": list(episode.opening.messages), "turns": turns, "ended": episode.stop}


def forget_rollouts(folder: Path, next_step: int) -> None:
    """Drop the rollouts of steps that will be taken again."""
    path = folder / ROLLOUTS
    if path.exists():
        write_json_lines(path, [r for r in read_json_lines(path) if r["step"] < next_step])
