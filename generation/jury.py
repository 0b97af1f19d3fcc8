"""The judge of made rows: it scores one answer, or ranks several by comparing every two in both orders."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backends.connection import Backend, Connect
from ..core.errors import BackendError
from ..core.foreign_text import foreign
from ..core.names import BackendName
from ..evals.inputs import make_judge
from ..judges.asking import GIVE_UP_AFTER, Call, CallKind, Judging, Spending, call_key
from ..judges.base import Judge
from ..judges.journal import JUDGMENTS, Journal, Judgment, read_judgments
from ..judges.judge_catalog import JudgeRef, Price
from ..judges.prompt import EvalItem, Mode, Prompter
from ..judges.rubric import Rubric, default_rubric, load_rubric
from .generation_config import GenerationConfig
from .ledger import Ledger
from .model_answers import LeftOpenError, StoppedError
from .wording import GROUNDED
from .writers import price_of_judge, prompt_tokens

_SHOWN_CHARS = 60_000
VERDICT_TOKENS = 400  # a reason of three sentences, the scores, and some reasoning


def prompter_of(config: GenerationConfig) -> Prompter:
    """What writes the questions to the judge of a recipe.

    Raises:
        ConfigError: If the rubric cannot be used.
    """
    mode: Mode = "pairwise" if config.recipe == "preferences" else "absolute"
    return Prompter(_rubric(config), mode, max_chars=_SHOWN_CHARS)


def _rubric(config: GenerationConfig) -> Rubric:
    if config.rubric is not None:
        return load_rubric(config.rubric)
    return GROUNDED if config.recipe == "questions" else default_rubric()


@dataclass(frozen=True, slots=True)
class Ranking:
    """How several answers compare.

    Attributes:
        best: The position of the one that won most often, or None where no answer is best.
        worst: The position of the one that lost most often and lost to the best.
        wins: Comparisons won by each.
        agreed: Pairs on which both orders agreed that one is better.
        undecided: Pairs that were ties, or where the orders disagreed.
        unreadable: Pairs without a readable verdict in both orders.
    """

    best: int | None
    worst: int | None
    wins: tuple[int, ...]
    agreed: int
    undecided: int
    unreadable: int


class Jury:
    """One judge, what it was asked before, and what it may cost."""

    def __init__(
        self,
        config: GenerationConfig,
        ref: JudgeRef,
        folder: Path,
        connect: Connect,
        ledger: Ledger,
        should_stop: Callable[[], bool],
    ) -> None:
        """Prepare the judge; verdicts of earlier attempts are read from ``folder``.

        Raises:
            ResearcherError: If it needs a key that is not set, or its backend does not answer.
        """
        self._prompter = prompter_of(config)
        # What a backend's judge is sent is counted here, in dollars of its own model: the meter has the writer's price.
        apart = _uncounted(connect) if ref.kind == "tinker" else connect
        self._judge: Judge = make_judge(ref, config, self._prompter, folder, apart)
        self._price: Price | None = price_of_judge(ref, config.judge_price, config.backend)
        self._most_out = config.judge_max_tokens
        self._ledger = ledger
        self._asked: dict[str, asyncio.Lock] = {}
        path = folder / JUDGMENTS
        spending = Spending({ref.name: self._price}, None, tell=ledger.judged)
        earlier = list(read_judgments(path))
        for judgment in earlier:
            spending.count(judgment.judge, judgment.usage)
        self._known = {j.key: j for j in earlier if not j.transient}
        self._journal = Journal(path)
        self._judging = Judging(
            self._judge,
            self._prompter,
            self._journal,
            spending,
            concurrency=config.parallel_requests,
            should_stop=should_stop,
            on_judged=lambda: None,
        )

    async def check(self) -> None:
        """See that the judge can be asked. Costs nothing.

        Raises:
            ResearcherError: If it cannot.
        """
        await self._judge.check()

    async def score(self, item: EvalItem, answer: str) -> float | None:
        """The weighted score of an answer, 0 to 1; None where no verdict can be read.

        Raises:
            StoppedError, CapReachedError, ResearcherError: As `Asking.text`.
        """
        call = self._call("absolute", item, ("answer", None), (answer, None))
        return (await self._ask([call]))[call.key].weighted(self._prompter.rubric)

    async def rank(self, item: EvalItem, answers: Sequence[str]) -> Ranking:
        """Compare every two of several answers, each in both orders; a pair counts where the orders agree.

        Raises:
            StoppedError, CapReachedError, ResearcherError: As `Asking.text`.
        """
        orders = {
            (a, b): self._call("pair", item, (str(a), str(b)), (answers[a], answers[b]))
            for a, b in itertools.permutations(range(len(answers)), 2)
        }
        judged = await self._ask(list(orders.values()))
        return ranking(len(answers), {pair: judged[call.key].verdict for pair, call in orders.items()})

    async def close(self) -> None:
        """Close the service and the journal."""
        await self._judge.close()
        self._journal.close()

    def _call(
        self, kind: CallKind, item: EvalItem, who: tuple[str, str | None], answers: tuple[str, str | None]
    ) -> Call:
        settings = [self._judge.name, dict(self._judge.settings), self._prompter.prompt_hash]
        key = call_key(["made", settings, kind, item.prompt_key, item.reference, *answers], sort_keys=True)
        return Call(key, kind, item, *who, *answers)

    async def _ask(self, calls: Sequence[Call]) -> Mapping[str, Judgment]:
        for call in calls:
            # Rows that are alike make equal questions, and may be under way at the same time.
            async with self._asked.setdefault(call.key, asyncio.Lock()):
                if call.key not in self._known:
                    await self._ask_one(call)
        return {call.key: self._known[call.key] for call in calls}

    async def _ask_one(self, call: Call) -> None:
        async with self._ledger.room(self._most(call)):
            judged = await self._judging.ask_all([call])
        if judged is None:
            raise StoppedError
        judgment = judged[call.key]
        if judgment.transient:
            raise LeftOpenError
        self._known[call.key] = judgment
        if len(self._known) >= GIVE_UP_AFTER and all(j.unscored for j in self._known.values()):
            raise BackendError(
                f"the judge {self._judge.name} gave no readable verdict on its first {len(self._known)} questions, "
                f"the last: {foreign(judgment.unscored)}",
                fix="Use another judge_model; judgments.jsonl holds what it said",
            )

    def _most(self, call: Call) -> float:
        if self._price is None:
            return 0.0
        question = call.question(self._prompter)
        told = prompt_tokens([{"role": "user", "content": question.system + question.user}])
        # An unreadable verdict is asked for once more, with what was said before it.
        return 2 * self._price.cost(told, self._most_out) + self._price.cost(self._most_out, 0)


def ranking(count: int, verdicts: Mapping[tuple[int, int], str | None]) -> Ranking:
    """What verdicts in both orders say; ``verdicts`` by the positions of the answers shown as A and as B."""
    wins = [0] * count
    beaten: set[tuple[int, int]] = set()
    agreed = undecided = unreadable = 0
    for a, b in itertools.combinations(range(count), 2):
        one, other = verdicts[a, b], verdicts[b, a]
        if one is None or other is None:
            unreadable += 1
        elif (one, other) in {("A", "B"), ("B", "A")}:
            winner, loser = (a, b) if one == "A" else (b, a)
            wins[winner] += 1
            beaten.add((winner, loser))
            agreed += 1
        else:
            undecided += 1
    best = max(range(count), key=lambda i: wins[i])
    if wins[best] == 0 or wins.count(wins[best]) > 1:
        return Ranking(None, None, tuple(wins), agreed, undecided, unreadable)
    worst = min((i for i in range(count) if (best, i) in beaten), key=lambda i: (wins[i], i))
    return Ranking(best, worst, tuple(wins), agreed, undecided, unreadable)


def _uncounted(connect: Connect) -> Connect:
    def apart(name: BackendName, base_url: str | None) -> Backend:
        backend = connect(name, base_url)
        return Backend(backend.name, backend.base_url, backend.api_key)

    return apart
