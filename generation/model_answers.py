"""Asking the writing model: each answer is journaled as soon as it is known, so that none is paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ..core.errors import BackendError
from ..core.files import LineJournal, read_json_lines
from ..core.foreign_text import foreign
from ..judges.asking import GIVE_UP_AFTER, call_key
from ..judges.base import JudgeCallError, JudgeUsage, Reply
from ..judges.verdicts import UnreadableVerdictError, last_json_object
from ..models.chat import Message
from ..rewards.response_text import after_thinking
from .ledger import Ledger
from .writers import Writer

T = TypeVar("T")
ANSWERS = "answers.jsonl"
_CUT = {"length", "max_tokens"}


class StoppedError(Exception):
    """The job was told to stop before this request."""


class LeftOpenError(Exception):
    """The service failed on this request for now; a resumed job asks it again."""


class NotMadeError(Exception):
    """Nothing can be made of this source: ``reason`` in a word, and what the model said last."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.said = said


class UnreadableAnswerError(ValueError):
    """An answer that lacks what was asked for; the message says what."""


@dataclass(frozen=True, slots=True)
class Written:
    """One answer of the model.

    Attributes:
        text: What it said, its thinking included.
        stop_reason: ``stop``, ``length``, ``refusal``.
        seed: The request's.
        model: The exact model that answered, in the service's words.
        usage: Its tokens; those of the prompt count with the first sample of a request.
        control: Whether it spells a control token, which training would take for a real one.
        sample: Its place among the samples of one request, from 0.
        tries: Requests until an answer could be read.
    """

    text: str
    stop_reason: str
    seed: int
    model: str
    usage: JudgeUsage
    control: bool = False
    sample: int = 0
    tries: int = 1

    @property
    def answer(self) -> str:
        """What it said once it had thought; empty where that never came."""
        return after_thinking(self.text).strip()

    @property
    def is_cut(self) -> bool:
        """Whether it ended for want of tokens."""
        return self.stop_reason == "length"


class Asking:
    """Asks one model, and keeps what it said in the run's folder.

    Attributes:
        unreadable: Answers that could not be read so far, repeats included.
        answered: Answers so far, earlier attempts of the job included.
    """

    def __init__(
        self,
        writer: Writer,
        folder: Path,
        ledger: Ledger,
        *,
        seed: int,
        tries: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._seed = seed
        self._tries = tries
        self._should_stop = should_stop
        self._failures = 0
        self.unreadable = 0
        self._known = dict(map(_from_record, read_json_lines(folder / ANSWERS)))
        for answers in self._known.values():
            self._count(answers)
        self._journal = LineJournal(folder / ANSWERS)

    @property
    def answered(self) -> int:
        """Answers so far, earlier attempts of the job included."""
        return sum(map(len, self._known.values()))

    @property
    def usage(self) -> JudgeUsage:
        """Tokens of all of them."""
        return sum((each.usage for answers in self._known.values() for each in answers), JudgeUsage())

    async def text(self, number: int, part: str, messages: Sequence[Message], attempt: int = 1) -> Written:
        """One answer.

        Args:
            number: The source's place, which with ``part`` and ``attempt`` decides the seed.
            part: Which of the source's requests this is.
            messages: The conversation.
            attempt: From 1.

        Raises:
            StoppedError, LeftOpenError, NotMadeError: If there is none.
            CapReachedError: If it could pass the cap.
            ResearcherError: If no call can work, or too many in a row have failed.
        """
        (written,) = await self._request(messages, seed_of(self._seed, number, part, attempt), 1)
        return written

    async def samples(self, number: int, messages: Sequence[Message], count: int) -> list[Written]:
        """Several answers to one conversation: in one request where the model's place takes it so, else one by one.

        Raises:
            Exception: As `text`. Where one request fails the others are awaited, since they are paid for.
        """
        if self._writer.samples_at_once:
            return await self._request(messages, seed_of(self._seed, number, "samples", 1), count)
        parts = [f"sample-{n}" for n in range(1, count + 1)]
        found = await asyncio.gather(*[self.text(number, part, messages) for part in parts], return_exceptions=True)
        failed = next((each for each in found if isinstance(each, BaseException)), None)
        if failed is not None:
            raise failed
        return [each for each in found if isinstance(each, Written)]

    async def _request(self, messages: Sequence[Message], seed: int, samples: int) -> list[Written]:
        """The answers of one request: from the journal, or asked for now and written there in one line."""
        key = call_key([list(self._writer.identity), list(messages), seed, samples])
        if key in self._known:
            return self._known[key]
        async with self._ledger.room(self._writer.most(messages, samples)):
            if self._should_stop():
                raise StoppedError
            replies = await self._replies(messages, seed, samples)
            answers = [self._written(reply, seed, n) for n, reply in enumerate(replies)]
            self._journal.append({"key": key, "answers": [asdict(each) for each in answers]})
            self._known[key] = answers
            self._count(answers)
        return answers

    def _written(self, reply: Reply, seed: int, sample: int) -> Written:
        control = self._writer.control.search(after_thinking(reply.text)) is not None
        return Written(_encodable(reply.text), _stop_reason(reply), seed, reply.model, reply.usage, control, sample)

    def _count(self, answers: Sequence[Written]) -> None:
        usd = sum(self._writer.cost(each.usage) for each in answers)
        self._ledger.wrote(usd, metered=self._writer.metered)

    async def read(
        self, number: int, part: str, messages: Sequence[Message], reader: Callable[[str], T]
    ) -> tuple[T, Written]:
        """What ``reader`` makes of an answer; of one that it cannot read another is asked for, with another seed.

        Raises:
            NotMadeError: If none of the tries could be read.
        """
        text = ""
        for attempt in range(1, self._tries + 1):
            written = await self.text(number, part, messages, attempt)
            try:
                value = reader(written.answer)
            except UnreadableAnswerError:
                text = written.text
                self.unreadable += 1
            else:
                return value, replace(written, tries=attempt)
        raise NotMadeError("unreadable", text)

    def close(self) -> None:
        """Make the journal durable."""
        self._journal.close()

    async def _replies(self, messages: Sequence[Message], seed: int, samples: int) -> list[Reply]:
        for attempt in (1, 2):
            try:
                replies = await self._writer.write(messages, seed, samples)
            except JudgeCallError as error:
                if not error.transient:
                    raise NotMadeError("not_answered", error.reason) from error
                if attempt == 2:
                    self._failed(error)
            else:
                self._failures = 0
                return replies
        raise LeftOpenError

    def _failed(self, error: JudgeCallError) -> None:
        self._failures += 1
        if self._failures >= GIVE_UP_AFTER:
            raise BackendError(
                f"{GIVE_UP_AFTER} requests in a row have failed, the last: {foreign(error.reason)}",
                fix="resume_job asks again for what is missing, and for nothing else",
            ) from error


def seed_of(seed: int, number: int, part: str, attempt: int) -> int:
    """The seed of one request: it depends on the job's and the source's place, on nothing that happens beside it."""
    digest = hashlib.sha256(f"{seed}:{number}:{part}:{attempt}".encode()).digest()
    return int.from_bytes(digest[:4]) % (2**31 - 1)


def json_answer(text: str) -> dict[str, Any]:
    """The last JSON object of an answer.

    Raises:
        UnreadableAnswerError: If there is none.
    """
    try:
        return _encodable(last_json_object(text))
    except UnreadableVerdictError as error:
        raise UnreadableAnswerError(str(error)) from error


def _encodable(value: Any) -> Any:
    """The same text, list or mapping without halves of surrogate pairs, which no file takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_encodable(each) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in cast("dict[str, Any]", value).items()}
    return value


def text_under(fields: Mapping[str, Any], key: str) -> str:
    """A text that an answer has to hold.

    Raises:
        UnreadableAnswerError: If it is missing or empty.
    """
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UnreadableAnswerError(f'"{key}" is missing or no text')
    return value.strip()


def _stop_reason(reply: Reply) -> str:
    return "length" if reply.stop_reason in _CUT else "refusal" if reply.stop_reason == "refusal" else "stop"


def _from_record(record: Mapping[str, Any]) -> tuple[str, list[Written]]:
    kept: list[dict[str, Any]] = record["answers"]
    usages = [JudgeUsage(**each.pop("usage")) for each in kept]
    return str(record["key"]), [Written(**each, usage=usage) for each, usage in zip(kept, usages, strict=True)]
