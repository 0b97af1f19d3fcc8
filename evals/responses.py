"""The answers of the arms: read from a file, or sampled once and kept by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.foreign_text import foreign
from ..core.paths import state_folder, writable_folder
from ..data.column_proposal import PROMPT_KEYS
from ..judges.prompt import EvalItem, prompt_key
from ..models.chat import Message
from ..models.model_ref import resolve_model
from .test_set import conversation, read_each

if TYPE_CHECKING:
    from ..backends.connection import Backend, Connect
    from ..models.chat import ChatRenderer
    from .benchmark.benchmark_config import BenchmarkConfig
    from .judge_config import JudgeEvalConfig

_RESPONSE_KEYS = ("response", "completion", "output", "text")
# Where response files name their prompt, besides the keys of a test set.
_PROMPT_KEYS = ("query", "problem", "user")
# What a stop waits for, and what a cap is held to: more would be faster, and end later.
_SAMPLED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Response:
    """One answer: its text, why it ended (``stop``, ``length``, or ``file``), and its length in tokens if known."""

    text: str
    stop_reason: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ArmSampling:
    """Everything a sampled answer depends on besides its prompt.

    Attributes:
        model: A ``tinker://`` sampler path, or a base model's wire name.
        backend: Where it is sampled.
        base_url: The address of a cluster, else empty.
        renderer: Its chat format.
        fingerprint: Sizes and times of the weights of a model folder, else empty.
        max_tokens: The most an answer may have.
        temperature: Of sampling.
        seed: Differs between arms, so that a model against itself is not a copy.
    """

    model: str
    backend: str
    base_url: str
    renderer: str
    fingerprint: str
    max_tokens: int
    temperature: float
    seed: int

    def key(self, item: EvalItem) -> str:
        """The content hash under which the answer to ``item`` is kept. At temperature 0 the seed decides nothing."""
        decided = asdict(self) | ({} if self.temperature else {"seed": None})
        content = json.dumps([decided, item.prompt_key], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that can be sampled: where it is, its chat format, and how it is sampled."""

    backend: Backend
    renderer: ChatRenderer
    sampling: ArmSampling


def open_model(model: str, config: JudgeEvalConfig | BenchmarkConfig, connect: Connect, *, seed: int) -> OpenedModel:
    """Connect to the backend for a base model or a ``tinker://`` checkpoint; nothing is sampled yet.

    Raises:
        ResearcherError: If there is no such model, checkpoint or renderer, or the backend does not answer.
    """
    from ..backends.sampling_client import base_model_of
    from ..models.renderers import load_renderer

    backend = connect(config.backend, config.base_url)
    is_checkpoint = model.startswith("tinker://")
    base = base_model_of(backend, model) if is_checkpoint else model
    renderer = load_renderer(base, config.renderer)
    sampling = ArmSampling(
        model=model if is_checkpoint else resolve_model(base).wire_name,
        backend=config.backend,
        base_url=config.base_url or "",
        renderer=renderer.name,
        fingerprint=_fingerprint(base),
        max_tokens=config.max_response_tokens,
        temperature=config.temperature,
        seed=seed,
    )
    return OpenedModel(backend, renderer, sampling)


def _fingerprint(base_model: str) -> str:
    """Tells two states of a model folder apart; an id on the hub or a checkpoint's path never changes its content."""
    folder = resolve_model(base_model).path
    if folder is None:
        return ""
    files = sorted(folder.glob("*.safetensors"))
    return ";".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


@dataclass(frozen=True, slots=True)
class _ResponseRow:
    """A row of a response file: its line, its answer, and what it says of its prompt (None where it says nothing)."""

    line: int
    text: str
    id: str | None
    prompt: str | None


def read_responses(path: Path, items: Sequence[EvalItem]) -> list[Response]:
    """The answers in a file, in the order of ``items``.

    Rows are matched by their prompt where they name one, else by ``id``, else (rows with an answer alone) by position.
    An empty answer is an answer: it is kept and judged as one.

    Raises:
        DataError: If a row has no answer, an answer is missing, or the file holds other prompts.
    """
    questions = {item.messages[-1]["content"].strip() for item in items}
    rows = read_each(path, lambda row, number: _response_row(row, number, questions))
    if any(row.id is not None or row.prompt is not None for row in rows):
        return _matched(path, items, rows)
    if len(rows) != len(items):
        raise DataError(
            f"{len(rows)} responses for {len(items)} prompts",
            where=path.name,
            fix="Give one per prompt, in the test set's order, or name the prompt in each row",
        )
    return [Response(row.text, "file", None) for row in rows]


def _response_row(row: Mapping[str, Any], number: int, questions: Collection[str]) -> _ResponseRow:
    key = next((k for k in _RESPONSE_KEYS if isinstance(row.get(k), str)), None)
    if key is None:
        raise DataError('no "response" in this row, or it is not text')
    named = str(row["id"]) if row.get("id") not in (None, "") else None
    if any(row.get(k) for k in PROMPT_KEYS if k != key):
        return _ResponseRow(number, row[key], named, prompt_key(conversation({**row, key: None})[0]))
    others = [value for k, value in row.items() if k != key and isinstance(value, str)]
    stated = next((row[k] for k in _PROMPT_KEYS if isinstance(row.get(k), str) and row[k].strip()), None)
    prompt = stated or next((value for value in others if value.strip() in questions), None)
    messages = None if prompt is None else [Message(role="user", content=prompt)]
    return _ResponseRow(number, row[key], named, None if messages is None else prompt_key(messages))


def _matched(path: Path, items: Sequence[EvalItem], rows: Sequence[_ResponseRow]) -> list[Response]:
    by_prompt, by_id = _by_prompt(items), {item.id: item for item in items}
    answers: dict[str, str] = {}
    strangers: list[_ResponseRow] = []
    for row in rows:
        where = f"{path.name}:{row.line}"
        if row.prompt is None and row.id is None:
            raise DataError("this row names no prompt, and others do", where=where)
        item = by_id.get(row.id or "") if row.prompt is None else by_prompt.get(row.prompt)
        if item is None:
            strangers.append(row)
        elif answers.setdefault(item.id, row.text) != row.text:
            raise DataError("a second, different answer to the same prompt", where=where)
    missing = [item for item in items if item.id not in answers]
    if missing:
        other = f"; {len(strangers)} of {len(rows)} rows answer other prompts" if strangers else ""
        raise DataError(
            f"{len(missing)} of {len(items)} prompts have no response here; the first is line {missing[0].line} of the "
            f"test set ({foreign(missing[0].prompt_text, 60)}){other}",
            where=path.name,
            fix="Use responses to the same prompts, for every arm",
        )
    return [Response(answers[item.id], "file", None) for item in items]


def _by_prompt(items: Sequence[EvalItem]) -> dict[str, EvalItem]:
    """The items by their conversation, and by their question alone where no other item asks the same."""
    questions = [prompt_key(item.messages[-1:]) for item in items]
    asked = Counter(questions)
    alone = {q: item for q, item in zip(questions, items, strict=True) if asked[q] == 1}
    return alone | {item.prompt_key: item for item in items}


class ResponseCache:
    """Sampled answers below the state folder, one small file each, named by the hash of what they depend on."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = writable_folder(folder or state_folder("cache") / "responses")

    def get(self, key: str) -> Response | None:
        """The answer kept under ``key``, or None."""
        path = self._path(key)
        try:
            return Response(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, key: str, response: Response) -> None:
        """Keep an answer."""
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(asdict(response), ensure_ascii=False))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def sample_responses(
    opened: OpenedModel, items: Sequence[EvalItem], *, on_done: Callable[[int], bool]
) -> list[Response] | None:
    """Answer every prompt once, from the cache where it has been answered before.

    Args:
        opened: What to sample and how.
        items: The prompts.
        on_done: Told how many answers are there; returns True to stop.

    Returns:
        None when told to stop; what was sampled by then is kept.

    Raises:
        BackendError: If the backend refuses.
    """
    from ..backends.sampling_client import SampleOptions, sample

    cache, sampling = ResponseCache(), opened.sampling
    keys = [sampling.key(item) for item in items]
    answers = {key: cached for key in keys if (cached := cache.get(key)) is not None}
    todo = [(key, item) for key, item in zip(keys, items, strict=True) if key not in answers]
    options = SampleOptions(sampling.max_tokens, sampling.temperature, 1.0, 1, sampling.seed)
    for start in range(0, len(todo), _SAMPLED_AT_ONCE):
        if on_done(len(answers)):
            return None
        chunk = todo[start : start + _SAMPLED_AT_ONCE]
        prompts = [item.messages for _, item in chunk]
        sampled = sample(opened.backend, opened.renderer, sampling.model, prompts, options)
        for (key, _), (completion, *_) in zip(chunk, sampled, strict=True):
            answers[key] = Response(completion.text, completion.stop_reason, completion.tokens)
            cache.put(key, answers[key])
    on_done(len(answers))
    return [answers[key] for key in keys]
