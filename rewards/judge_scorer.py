"""A judge behind a service (Anthropic, an OpenAI-compatible endpoint) as a reward: RLAIF.

Each response is scored by itself against the rubric, by tool call. Verdicts are kept in ``judgments.jsonl`` of the run
folder: the same response to the same prompt is paid for once, and a resumed job asks for nothing twice. A response
without a verdict has no score at all; it is left out and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from ..judges.asking import Call, Judging, Spending, call_key
from ..judges.base import Judge, check_judges
from ..judges.journal import JUDGMENTS, Journal, Judgment, read_judgments
from ..judges.judge_catalog import Price, judge_price, parse_judge
from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import Criterion, Rubric
from ..judges.services import CallLimits, service_judge
from .problems import Problem
from .reward_config import RewardPart
from .scorers import GroupScorer, Response, Score

# Calls under way: so many groups, and of each so many responses.
_GROUPS, _RESPONSES = 4, 8
_SHOWN_CHARS = 60_000
_ARM = "policy"


def rubric_of(part: RewardPart) -> Rubric:
    """The rubric in a reward's words, on a scale of 0 to 10."""
    text = str(part.rubric)
    ends = {0: "no", 10: "yes"} if text.rstrip().endswith("?") else {0: "not at all", 10: "entirely"}
    criterion = Criterion(name="quality", question=text, weight=1.0, anchors=ends)
    return Rubric(instructions="One answer is scored by itself.", use_reference=True, criteria=(criterion,))


def prompter_of(part: RewardPart) -> Prompter:
    """What writes the questions of a reward's judge."""
    return Prompter(rubric_of(part), "absolute", max_chars=_SHOWN_CHARS)


def price_of_judge(part: RewardPart) -> Price | None:
    """The judge's price, by the config or the shipped table; None where neither has it."""
    return judge_price(parse_judge(str(part.judge_model), where="rewards"), part.judge_price)


def judge_of(part: RewardPart) -> Judge:
    """The judge a reward names.

    Raises:
        ConfigError: If it names none.
        BackendError: If its key is not set.
        MissingDependencyError: If the evals extra is not installed.
    """
    ref = parse_judge(str(part.judge_model), where="rewards")
    limits = CallLimits(part.judge_max_tokens, part.judge_timeout_s)
    return service_judge(ref, prompter_of(part).schema, limits, base_url=part.judge_base_url)


async def check_service_judges(parts: Sequence[RewardPart]) -> None:
    """See that each judge behind a service can be asked. Costs nothing.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown, or a service does not answer.
    """
    await check_judges(judge_of(part) for part in parts if part.is_service_judge)


class ServiceJudge(GroupScorer):
    """Asks one judge for the scores of a group's responses."""

    def __init__(self, part: RewardPart, folder: Path, judged: Callable[[float], None]) -> None:
        """Prepare a judge.

        Args:
            part: The reward.
            folder: The run's; verdicts of earlier attempts are read from it.
            judged: Called with what the judge has cost so far, in US dollars.
        """
        self._judge = judge_of(part)
        self._prompter = prompter_of(part)
        path = folder / JUDGMENTS
        asked_with = {self._prompter.prompt_hash, ""}  # other rewards may ask the same judge
        earlier = [j for j in read_judgments(path) if j.judge == self._judge.name and j.prompt_hash in asked_with]
        self._known = {j.key: self._scored(j) for j in earlier if j.unscored is None}
        self._journal = Journal(path)
        spending = Spending({self._judge.name: price_of_judge(part)}, None, tell=judged)
        for judgment in earlier:
            spending.count(judgment.judge, judgment.usage)
        self._judging = Judging(
            self._judge,
            self._prompter,
            self._journal,
            spending,
            concurrency=_RESPONSES,
            should_stop=lambda: False,  # the job stops between groups; calls under way are paid for
            on_judged=lambda: None,
        )
        self._places: asyncio.Semaphore | None = None

    async def score_group(self, problem: Problem, responses: Sequence[Response]) -> list[Score]:
        """A score of 0 to 1 for each response; a failed one where the judge gave no verdict.

        Raises:
            ResearcherError: If no call can work, or too many in a row failed.
        """
        if self._places is None:
            self._places = asyncio.Semaphore(_GROUPS)
        calls = [self._call(problem, response) for response in responses]
        new = list({call.key: call for call in calls if call.key not in self._known}.values())
        lost: dict[str, str] = {}
        if new:
            async with self._places:
                judgments = await self._judging.ask_all(new) or {}
            self._known |= {key: self._scored(j) for key, j in judgments.items() if j.unscored is None}
            lost = {key: j.unscored for key, j in judgments.items() if j.unscored is not None}
        return [self._known.get(call.key) or _unscored(problem, lost.get(call.key, "not asked")) for call in calls]

    async def close(self) -> None:
        """Close the service and the journal."""
        await self._judge.close()
        self._journal.close()

    def _scored(self, judgment: Judgment) -> Score:
        return Score(self._prompter.rubric.weighted(judgment.scores), note=judgment.reason[:300])

    def _call(self, problem: Problem, response: Response) -> Call:
        answer = problem.row.get("answer")
        reference = None if answer is None else str(answer)
        name = str(problem.line)
        item = EvalItem(name, problem.messages, reference, None, None, problem.line)
        settings = [self._judge.name, dict(self._judge.settings), self._prompter.prompt_hash]
        key = call_key(["reward", settings, item.prompt_key, reference, response.text], sort_keys=True)
        return Call(key, "absolute", item, _ARM, None, response.text, None)


def _unscored(problem: Problem, why: str) -> Score:
    return Score.failure(f"line {problem.line}: judge: {why}")
