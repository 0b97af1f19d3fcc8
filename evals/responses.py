"""The answers of the arms: read from a file, or sampled once and kept by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.paths import home, writable_folder
from ..data.row_files import at_line, read_rows
from ..judges.prompt import EvalItem, prompt_key
from .test_set import conversation

if TYPE_CHECKING:
    from ..backends.connection import Backend
    from ..models.chat import ChatRenderer

_RESPONSE_KEYS = ("response", "completion", "output", "text")
_SAMPLED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Response:
    """One answer: its text, why it ended (``stop``, ``length``, or ``file``), and its length in tokens if known."""

    text: str
    stop_reason: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an arm is sampled. ``seed`` differs between arms, so that a model against itself is not a copy."""

    model: str
    backend: str
    base_url: str
    renderer: str
    fingerprint: str
    max_tokens: int
    temperature: float
    seed: int

    def key(self, item: EvalItem) -> str:
        """The content hash under which the answer to ``item`` is kept."""
        whole = json.dumps([asdict(self), item.prompt_key], ensure_ascii=False)
        return hashlib.sha256(whole.encode()).hexdigest()


def read_responses(path: Path, items: Sequence[EvalItem]) -> list[Response]:
    """The answers in a file, in the order of ``items``.

    Rows are matched by ``id``, else by their prompt, else (rows with an answer alone) by position. An empty answer is
    an answer: it is kept and judged as one.

    Raises:
        DataError: If a row has no answer, an answer is missing, or the file holds other prompts.
    """
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for row in read_rows(path):
        if row.value is None:
            raise row.problem or DataError("not a readable row", where=f"{path.name}:{row.number}")
        rows.append((row.number, row.value))
    texts = [_text(path, number, row) for number, row in rows]
    keyed = [_row_key(path, number, row) for number, row in rows]
    if all(key is None for key in keyed):
        if len(rows) != len(items):
            raise DataError(
                f"{len(rows)} responses for {len(items)} prompts",
                where=path.name,
                fix="Give one a prompt, in the test set's order, or name the prompt in each row",
            )
        return [Response(text, "file", None) for text in texts]
    return _matched(path, items, rows, texts, keyed)


def _matched(
    path: Path,
    items: Sequence[EvalItem],
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    texts: Sequence[str],
    keyed: Sequence[str | None],
) -> list[Response]:
    found: dict[str, str] = {}
    for (number, _), text, key in zip(rows, texts, keyed, strict=True):
        if key is None:
            raise DataError("this row names no prompt, and others do", where=f"{path.name}:{number}")
        if found.setdefault(key, text) != text:
            raise DataError("a second, different answer to the same prompt", where=f"{path.name}:{number}")
    answers = [found.get(f"id:{item.id}", found.get(f"prompt:{item.prompt_key}")) for item in items]
    missing = [item for item, answer in zip(items, answers, strict=True) if answer is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(items)} prompts have no response here; the first is line {missing[0].line} of the "
            f"test set ({missing[0].prompt_text[:60]!r})",
            where=path.name,
            fix="Use responses to the same prompts, for every arm",
        )
    return [Response(answer, "file", None) for answer in answers if answer is not None]


def _text(path: Path, number: int, row: Mapping[str, Any]) -> str:
    for key in _RESPONSE_KEYS:
        if isinstance(row.get(key), str):
            return row[key]
    raise DataError('no "response" in this row, or it is not text', where=f"{path.name}:{number}")


def _row_key(path: Path, number: int, row: Mapping[str, Any]) -> str | None:
    if row.get("id") not in (None, ""):
        return f"id:{row['id']}"
    if not any(row.get(key) for key in ("messages", "prompt", "question", "input")):
        return None
    try:
        return f"prompt:{prompt_key(conversation(row)[0])}"
    except DataError as error:
        raise at_line(path, number, error) from error


class ResponseCache:
    """Sampled answers below the state folder, one small file each, named by the hash of what they depend on."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = writable_folder(folder or home() / "cache" / "responses")

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
    backend: Backend,
    renderer: ChatRenderer,
    sampling: Sampling,
    items: Sequence[EvalItem],
    *,
    on_done: Callable[[int], bool],
) -> list[Response] | None:
    """Answer every prompt once, from the cache where it has been done before.

    Args:
        backend: Where the model is.
        renderer: The one of the model's training.
        sampling: What to sample and how.
        items: The prompts.
        on_done: Told how many are there; returns True to stop.

    Returns:
        None when told to stop; what was sampled by then is kept.
    """
    from ..backends.sampling_client import SampleOptions, sample

    cache = ResponseCache()
    keys = [sampling.key(item) for item in items]
    found = {key: cached for key in keys if (cached := cache.get(key)) is not None}
    todo = [(key, item) for key, item in zip(keys, items, strict=True) if key not in found]
    for start in range(0, len(todo), _SAMPLED_AT_ONCE):
        if on_done(len(found)):
            return None
        chunk = todo[start : start + _SAMPLED_AT_ONCE]
        options = SampleOptions(sampling.max_tokens, sampling.temperature, 1.0, 1, sampling.seed)
        answers = sample(backend, renderer, sampling.model, [item.messages for _, item in chunk], options)
        for (key, _), (completion, *_) in zip(chunk, answers, strict=True):
            found[key] = Response(completion.text, completion.stop_reason, completion.tokens)
            cache.put(key, found[key])
    on_done(len(found))
    return [found[key] for key in keys]
