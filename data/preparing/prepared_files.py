"""From sources to checked files in a folder that is either complete or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError, DataError, StorageError
from ...core.files import storage_errors, sync_folder, write_atomically
from ...core.paths import require_creatable
from ...models.chat import ChatRenderer
from ..column_proposal import Use, unknown_shape
from ..finding_kinds import BAD_ROW, IN_PROMPTS, SUPERVISED_ONLY
from ..preference_check import kind_of
from ..shards import facts_of
from .card import README, Prepared, Removed, Written, card_text, readme_text
from .choice import SPLITS, Choice, choose
from .prepare_config import CARD, Method, PrepareSettings
from .survey import Criteria, Progress, Survey, as_line, prepared_rows, take_in

_PROGRESS_ROWS = 8192
# Rows that can be read and not rendered.
_REFUSED = "the model's chat template does not take it"
_USES: Mapping[Method, Use] = {"sft": "supervised", "dpo": "preferences", "rl": "rl"}


def prepare(
    settings: PrepareSettings, output: Path, *, renderer: ChatRenderer | None = None, progress: Progress
) -> Prepared:
    """Read, check, filter, split and write; the result is a function of the sources and the settings, byte for byte.

    The files are written beside ``output`` and moved there when all is done: a kill, a full disk or a bad row leave no
    such folder. Of two that make the same folder at once one wins.

    Args:
        settings: What to make, with absolute paths.
        output: The folder, which must not be there.
        renderer: Of ``settings.base_model``, where that is given.
        progress: Called with the rows read and what is being done.

    Raises:
        DataError: If the data cannot be read, has an unknown shape, or no row is left.
        ConfigError: If an amount asks for more rows than are left.
        StorageError: If the folder is there, or cannot be written.
    """
    _require_new(output)
    require_creatable(output.parent, where="output_dir")
    method = method_of(settings)
    settings = settings.complete(method)
    for kind in settings.drop or ():
        if (method == "dpo" and kind in SUPERVISED_ONLY) or (method == "rl" and kind not in IN_PROMPTS):
            raise ConfigError(f"{kind} is not looked for in rows of {method}", where="drop", fix="Leave it out")
    if method == "rl" and settings.benchmarks:
        raise ConfigError(
            "prompts for RL are not compared with benchmarks", where="benchmark_files", fix="Leave it out"
        )
    files_read = [*(source.file for source in settings.sources), *settings.benchmarks]
    facts = {str(path): facts_of(path) for path in files_read}
    criteria = Criteria(method, settings.group_by, renderer, settings.max_tokens, settings.benchmarks)
    survey = Survey()
    for source in settings.sources:
        take_in(survey, source, criteria, progress)
    progress(len(survey.numbers), "looking for repeats")
    choice = choose(survey, settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(output) as folder:
        files, examples = _write(folder, settings, choice, survey, progress)
        for path, before in facts.items():
            if facts_of(Path(path)) != before:
                raise DataError("the file changed while it was read", where=path, fix="Prepare it again")
        made = Prepared(
            folder=output,
            settings=settings,
            sources=facts,
            rows_read=len(survey.numbers),
            files=files,
            removed=tuple(_removed(choice, survey, examples)),
            groups=choice.groups,
        )
        write_atomically(folder / CARD, card_text(made))
        write_atomically(folder / README, readme_text(made))
    return made


def method_of(settings: PrepareSettings) -> Method:
    """The method asked for, else what the first rows are for; prompts for RL are never guessed.

    Raises:
        DataError: If the rows of a source have no known shape; with the columns that may be meant.
    """
    found: Method | None = settings.method
    for source in settings.sources:
        uses: tuple[Use, ...] = (_USES[found],) if found else ("preferences", "supervised")
        unknown = unknown_shape(source.file, source.columns, *uses)
        if unknown is not None:
            raise unknown[1]
        found = found or ("dpo" if kind_of(source.file, source.columns) == "preferences" else "sft")
    assert found is not None, "a list of sources has one at least"
    return found


def _require_new(output: Path) -> None:
    with storage_errors(output):
        is_there = output.exists() or output.is_symlink()
    if is_there:
        raise StorageError(
            "this is there already, and nothing is overwritten", where=str(output), fix="Choose a new folder"
        )


@contextmanager
def _unfinished(output: Path) -> Generator[Path]:
    """A folder beside ``output`` that takes its place at the end, or is gone."""
    with storage_errors(output.parent):
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.unfinished-", dir=output.parent))
    try:
        yield folder
        with storage_errors(output):
            sync_folder(folder)
            _require_new(output)
            try:
                folder.rename(output)  # refused by the system where a folder with files has come to be there meanwhile
            except OSError as error:
                _require_new(output)
                raise error
            sync_folder(output.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class _Writer:
    """One of the files, with what its card says of it."""

    file: BinaryIO
    digest: Any
    rows: int = 0
    size: int = 0

    def add(self, line: bytes) -> None:
        self.file.write(line)
        self.digest.update(line)
        self.rows, self.size = self.rows + 1, self.size + len(line)


def _write(
    folder: Path, settings: PrepareSettings, choice: Choice, survey: Survey, progress: Progress
) -> tuple[tuple[Written, ...], dict[int, str]]:
    """Read the sources again, write each row to its file, and note the places of the removed rows to be shown."""
    shown = {int(rows[0]) for rows in choice.removed.values()} | {rows[0] for rows in survey.bad.values()}
    shown |= set(_refused(choice, survey)[:1].tolist())
    places: dict[int, str] = {}
    names = ["train", *(name for name in SPLITS[1:] if name in settings.split)]
    with ExitStack() as stack, storage_errors(folder):
        writers = {
            SPLITS.index(name): _Writer(stack.enter_context((folder / f"{name}.jsonl").open("wb")), hashlib.sha256())
            for name in names
        }
        index = 0
        for source in settings.sources:
            for row, made in prepared_rows(source):
                if index >= len(choice.split):
                    raise DataError("the file changed while it was read", where=source.path, fix="Prepare it again")
                if index in shown:
                    places[index] = row.place or f"{source.file.name}:{row.number}"
                if choice.split[index] >= 0:
                    if isinstance(made, DataError):
                        raise made
                    writers[int(choice.split[index])].add(as_line(made))
                index += 1
                if index % _PROGRESS_ROWS == 0:
                    progress(index, "rows written")
        for writer in writers.values():
            writer.file.flush()
            os.fsync(writer.file.fileno())
    files = [
        Written(f"{SPLITS[place]}.jsonl", writer.rows, writer.size, writer.digest.hexdigest())
        for place, writer in writers.items()
    ]
    return tuple(files), places


def _refused(choice: Choice, survey: Survey) -> NDArray[np.int64]:
    """The unusable rows that can be read."""
    bad = choice.removed.get(BAD_ROW, np.zeros(0, np.int64))
    return bad[np.frombuffer(bytes(survey.usable), dtype=np.bool_)[bad]]


def _removed(choice: Choice, survey: Survey, places: Mapping[int, str]) -> list[Removed]:
    """What was removed and why: rows that cannot be used by what is wrong with them."""
    kinds: list[Removed] = []
    for reason, rows in choice.removed.items():
        causes = survey.bad if reason == BAD_ROW else {}
        explained = 0
        for cause, of_cause in sorted(causes.items(), key=lambda item: (-len(item[1]), item[1][0])):
            kinds.append(Removed(reason, len(of_cause), places[of_cause[0]], cause))
            explained += len(of_cause)
        others = _refused(choice, survey) if reason == BAD_ROW else rows
        if len(others):
            cause = _REFUSED if reason == BAD_ROW else ""
            kinds.append(Removed(reason, len(others), places.get(int(others[0]), ""), cause))
        assert explained + len(others) == len(rows), "each removed row has one reason"
    return kinds
