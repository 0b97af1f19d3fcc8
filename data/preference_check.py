"""What is wrong with a file of preferences as a whole: contradictions, repeats, leaks, and a bias to length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from pydantic import BaseModel

from ..core.errors import ConfigError, DataError
from ..core.files import short_digest
from ..doctrine.rules import number
from ..models.chat import ChatRenderer, Message, words_of
from ..models.hyperparameters import require_within_context
from .benchmark_overlap import BenchmarkOverlap, Benchmarks
from .columns import ColumnMap
from .personal_data import LONGEST_WORD, personal_kinds
from .preference_rows import PreferencePair, is_preference_row, to_pair
from .preferences import RenderedPair, render_pair
from .row_files import Row, read_rows
from .row_findings import RowFinding, RowFindings
from .text_checks import answer_problems, text_problems
from .words import words_in

# A share that fair coins show more often says nothing; from so many pairs on none that is warned of is chance.
_CHANCE, _BEYOND_CHANCE = 0.05, 100
_NAMED_LINES = 5
_PROGRESS_ROWS = 256
DataKind = Literal["supervised", "preferences"]


class PairOptions(TypedDict, total=False):
    """What `check_preferences` takes besides the files."""

    renderer: ChatRenderer | None
    max_seq_len: int | None
    context: int | None
    benchmark_files: Sequence[Path]
    columns: ColumnMap | None
    progress: Callable[[int, str], None] | None


@dataclass(slots=True)
class PreferenceFindings:
    """Counts over the usable pairs of a file, with the lines of each kind of problem.

    Attributes:
        rows: Rows read.
        usable: Rows that hold a pair.
        bad_count: Rows that do not.
        bad: (line, error) of the first of these.
        chosen_longer: Pairs whose chosen answer has more characters; ``rejected_longer`` the other way round.
        found: Every kind of problem with its rows, bad rows included.
        benchmarks: What is held of the items of each benchmark.
    """

    rows: int = 0
    usable: int = 0
    bad_count: int = 0
    bad: list[tuple[int, DataError]] = field(default_factory=list[tuple[int, DataError]])
    chosen_longer: int = 0
    rejected_longer: int = 0
    found: RowFindings = field(default_factory=RowFindings)
    benchmarks: list[BenchmarkOverlap] = field(default_factory=list[BenchmarkOverlap])

    @property
    def longer_share(self) -> float | None:
        """Share of pairs of unequal length in which the chosen answer is the longer one."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None

    def add_bad(self, line: int, error: DataError) -> None:
        """Count a row that holds no pair to compare."""
        self.bad_count += 1
        self.found.bad_row(line, error, error.where)
        if len(self.bad) < _NAMED_LINES:
            self.bad.append((line, error))

    def warnings(self) -> list[str]:
        """One sentence for each kind of problem."""
        warnings = list(self.found.sentences())
        share, unequal = self.longer_share, self.chosen_longer + self.rejected_longer
        is_lopsided = share is not None and abs(share - 0.5) > number("dpo.length_bias") - 0.5
        if share is not None and is_lopsided and not _is_chance(max(self.chosen_longer, self.rejected_longer), unequal):
            which = "longer" if share > 0.5 else "shorter"
            warnings.append(
                f"the {which} answer is the chosen one in {max(share, 1 - share):.0%} of pairs of unequal length: "
                "length may be all that is learnt (dpo.length): balance the data, or take loss: dpo_norm, which has "
                "a beta of its own (dpo.beta.norm)"
            )
        return warnings


def _is_chance(longer: int, pairs: int) -> bool:
    """Whether fair coins fall at least ``longer`` of ``pairs`` times on this side too often to speak of a cause."""
    return pairs < _BEYOND_CHANCE and sum(comb(pairs, k) for k in range(longer, pairs + 1)) / 2**pairs > _CHANCE


class PreferenceReport(BaseModel):
    """A file of preferences as `check_dataset` shows it. ``ok`` means that training on it can start."""

    file: str
    format: Literal["preferences"] = "preferences"
    ok: bool
    rows: int
    usable_rows: int
    bad_rows: list[str]
    chosen_longer_share: float | None
    benchmarks: list[BenchmarkOverlap]
    findings: list[RowFinding]
    warnings: list[str]


def check_preferences(
    train_file: Path,
    val_file: Path | None = None,
    *,
    renderer: ChatRenderer | None = None,
    max_seq_len: int | None = None,
    context: int | None = None,
    benchmark_files: Sequence[Path] = (),
    columns: ColumnMap | None = None,
    val_columns: ColumnMap | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> PreferenceFindings:
    """Read a whole file of preferences; memory grows by some hundred bytes per row.

    Args:
        train_file: The pairs to train.
        val_file: Held-out pairs whose prompts must not be in it.
        renderer: The model's; without one nothing is said of tokens.
        max_seq_len: Tokens at which training cuts a side; without it they are cut at the context.
        context: Tokens that the model takes, where that is known.
        benchmark_files: Test sets whose items must not be in the training file (see `benchmark_overlap`).
        columns: Which columns are what.
        val_columns: The same of the held-out file, where they are others.
        progress: Called with the rows read and what is being done.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are counted, not raised.
    """
    of_val = _pairs(val_file, columns if val_columns is None else val_columns)
    held_out = {_prompt_digest(pair) for _, pair in of_val if isinstance(pair, PreferencePair)}
    benchmarks = Benchmarks(benchmark_files) if benchmark_files else None
    findings = PreferenceFindings()
    chosen_before: dict[bytes, bytes] = {}
    for row, pair in _pairs(train_file, columns):
        findings.rows += 1
        if progress is not None and findings.rows % _PROGRESS_ROWS == 0:
            progress(findings.rows, "pairs read")
        if row.not_finite:
            findings.found.note("not_finite", row.number)
        if isinstance(pair, DataError):
            findings.add_bad(row.number, pair)
            continue
        rendered = render_pair(renderer, pair, max_seq_len or context) if renderer is not None else None
        if isinstance(rendered, DataError):
            findings.add_bad(row.number, row.placed(rendered))
            continue
        findings.usable += 1
        _note_pair(findings, row.number, pair, rendered, benchmarks)
        prompt, key, chosen = _digests(pair)
        if key not in chosen_before:
            chosen_before[key] = chosen
        else:
            kind = "repeated_pair" if chosen_before[key] == chosen else "contradictory_pair"
            findings.found.note(kind, row.number)
        if prompt in held_out:
            findings.found.note("prompt_in_val", row.number)
    findings.benchmarks = benchmarks.overlaps() if benchmarks else []
    return findings


def _note_pair(
    findings: PreferenceFindings,
    line: int,
    pair: PreferencePair,
    rendered: RenderedPair | None,
    benchmarks: Benchmarks | None,
) -> None:
    words = "\n".join((words_of(pair.prompt), pair.chosen_text, pair.rejected_text))
    earlier = [Message(role="user", content=message["content"]) for message in pair.prompt[-1:]]
    problems = [*text_problems(words), *answer_problems([*earlier, *pair.chosen])]
    problems += personal_kinds(words, LONGEST_WORD)
    findings.found.note_all(line, pair.notes, rendered.rendered if rendered else (), problems)
    for shared in benchmarks.shared(words_in([words])) if benchmarks is not None else ():
        findings.found.note_shared(line, shared)
    if rendered is not None and rendered.cut:
        findings.found.note("truncated_pair", line)
    difference = len(pair.chosen_text) - len(pair.rejected_text)
    findings.chosen_longer += difference > 0
    findings.rejected_longer += difference < 0


def _digests(pair: PreferencePair) -> tuple[bytes, bytes, bytes]:
    """The prompt, the prompt with both answers in either order, and the better answer."""
    prompt = _prompt_digest(pair)
    chosen, rejected = short_digest(pair.chosen_text), short_digest(pair.rejected_text)
    return prompt, prompt + min(chosen, rejected) + max(chosen, rejected), chosen


def _pairs(path: Path | None, columns: ColumnMap | None) -> Iterator[tuple[Row, PreferencePair | DataError]]:
    for row in read_rows(path, columns) if path is not None else ():
        yield row, row.parsed(to_pair)


def _prompt_digest(pair: PreferencePair) -> bytes:
    return short_digest(words_of(pair.prompt))


def kind_of(path: Path, columns: ColumnMap | None = None) -> DataKind:
    """What the first readable row of a file is for.

    Raises:
        DataError: If the file cannot be read.
    """
    for row in read_rows(path, columns):
        if row.value is not None:
            return "preferences" if is_preference_row(row.value) else "supervised"
    return "supervised"


def preference_report(
    train_file: Path, val_file: Path | None = None, **options: Unpack[PairOptions]
) -> PreferenceReport:
    """What is wrong with a file of preferences; the arguments are those of `check_preferences`.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    findings = check_preferences(train_file, val_file, **options)
    refused: list[str] = []
    try:
        require_within_context(options.get("max_seq_len"), options.get("context"))
    except ConfigError as error:
        refused.append(str(error))
    return PreferenceReport(
        file=str(train_file),
        ok=findings.usable > 0 and findings.bad_count == 0 and not refused,
        rows=findings.rows,
        usable_rows=findings.usable,
        bad_rows=[*refused, *(str(error) if error.where else f"line {line}: {error}" for line, error in findings.bad)],
        chosen_longer_share=findings.longer_share,
        benchmarks=findings.benchmarks,
        findings=findings.found.listed(),
        warnings=findings.warnings(),
    )
