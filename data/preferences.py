"""Preference pairs ready to train on: rendered once, handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..models.chat import ChatRenderer, Conversation, Rendered, RenderingNote
from .columns import ColumnMap
from .examples import KEPT_PROBLEMS, Batches, Example
from .mixtures import Mix
from .preference_rows import PreferencePair, to_pair
from .row_files import at_line, none_usable, read_rows, usable_rows
from .row_findings import RowFindings
from .row_turns import Note


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """The better and the worse answer to one prompt, each with its prompt and weight 1 on the answer's tokens.

    ``cut``: whether a side was longer than ``max_seq_len``. ``read`` and ``rendered`` are what was noted of the row.
    """

    chosen: Example
    rejected: Example
    cut: bool
    read: tuple[Note, ...] = ()
    rendered: frozenset[RenderingNote] = frozenset()


class PreferenceData(Batches[RenderedPair]):
    """All pairs of a file."""

    def __init__(self, pairs: Sequence[RenderedPair], *, batch_size: int, seed: int) -> None:
        super().__init__(Mix.whole(len(pairs)), batch_size=batch_size, seed=seed)
        self._pairs = list(pairs)

    def row(self, index: int) -> RenderedPair:
        """A pair by its place among the usable ones of the file."""
        return self._pairs[index]


def load_preference_data(
    path: Path,
    renderer: ChatRenderer,
    *,
    batch_size: int,
    max_seq_len: int | None,
    seed: int,
    skip_bad_rows: bool = False,
    columns: ColumnMap | None = None,
) -> PreferenceData:
    """Read, check, render and cut every pair of a file; the arguments are those of `load_sft_data`.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """
    pairs = usable_rows(path, _rendered_pairs(path, renderer, max_seq_len, columns), skip_bad_rows=skip_bad_rows)
    return PreferenceData(list(pairs), batch_size=batch_size, seed=seed)


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """What a file of pairs holds.

    Attributes:
        rows: Usable pairs.
        tokens: Tokens of both sides of every pair after truncation.
        answer_tokens: Those of the answers.
        truncated: Pairs of which a side was cut.
        chosen_longer: Pairs whose chosen answer has more tokens than the rejected one.
        rejected_longer: Pairs where it is the other way round.
        problems: The first rows that cannot be used, with file and line.
        unusable: How many rows cannot be used.
        longest: Tokens of the longest pair, both sides after truncation.
        notes: What to know of how the rows were read and rendered (see `TokenCounts.notes`).
    """

    rows: int
    tokens: int
    answer_tokens: int
    truncated: int
    chosen_longer: int
    rejected_longer: int
    problems: tuple[DataError, ...]
    unusable: int = 0
    longest: int = 0
    notes: tuple[str, ...] = ()


def count_pairs(
    path: Path, renderer: ChatRenderer, *, max_seq_len: int | None, columns: ColumnMap | None = None
) -> PreferenceCounts:
    """Count pairs and tokens of a file.

    Raises:
        DataError: If the file cannot be read, or not one of its rows can be used.
    """
    rows = tokens = answers = truncated = longer = shorter = unusable = longest = 0
    problems: list[DataError] = []
    findings = RowFindings()
    for number, outcome in _rendered_pairs(path, renderer, max_seq_len, columns):
        if isinstance(outcome, DataError):
            unusable += 1
            if len(problems) < KEPT_PROBLEMS:
                problems.append(at_line(path, number, outcome))
            continue
        findings.note_all(number, outcome.read, outcome.rendered)
        chosen, rejected = outcome.chosen.trained_tokens, outcome.rejected.trained_tokens
        rows, answers, truncated = rows + 1, answers + chosen + rejected, truncated + outcome.cut
        both = len(outcome.chosen.tokens) + len(outcome.rejected.tokens)
        tokens, longest = tokens + both, max(longest, both)
        longer, shorter = longer + (chosen > rejected), shorter + (chosen < rejected)
    if not rows:
        raise none_usable(path, problems, unusable)
    notes = findings.sentences()
    return PreferenceCounts(
        rows, tokens, answers, truncated, longer, shorter, tuple(problems), unusable, longest, notes
    )


def mixed_pair_counts(counts: Sequence[PreferenceCounts], mix: Mix, names: Sequence[str]) -> PreferenceCounts:
    """The counts of a pass over several files: expected ones where it takes a part of a file."""
    if len(counts) == 1 and mix.taken == mix.sizes:
        return counts[0]
    return PreferenceCounts(
        rows=mix.rows,
        tokens=mix.per_pass([each.tokens for each in counts]),
        answer_tokens=mix.per_pass([each.answer_tokens for each in counts]),
        truncated=mix.per_pass([each.truncated for each in counts]),
        chosen_longer=mix.per_pass([each.chosen_longer for each in counts]),
        rejected_longer=mix.per_pass([each.rejected_longer for each in counts]),
        problems=tuple(problem for each in counts for problem in each.problems),
        unusable=sum(each.unusable for each in counts),
        longest=max(each.longest for each in counts),
        notes=tuple(f"{name}: {note}" for name, each in zip(names, counts, strict=True) for note in each.notes),
    )


def _rendered_pairs(
    path: Path, renderer: ChatRenderer, max_seq_len: int | None, columns: ColumnMap | None
) -> Iterator[tuple[int, RenderedPair | DataError]]:
    """Every row of a file with its number: both sides rendered, or why they cannot be."""
    for row in read_rows(path, columns):
        pair = row.parsed(to_pair)
        made = pair if isinstance(pair, DataError) else render_pair(renderer, pair, max_seq_len)
        yield row.number, row.placed(made)


def render_pair(renderer: ChatRenderer, pair: PreferencePair, max_seq_len: int | None) -> RenderedPair | DataError:
    """Both sides of a pair, cut; or why nothing of it can be compared."""
    sides = [Conversation([*pair.prompt, *answer], pair.tools) for answer in (pair.chosen, pair.rejected)]
    try:
        prompt = renderer.generation_prompt(Conversation(pair.prompt, pair.tools))
        both = renderer.render_many(sides)
    except DataError as error:
        return error
    chosen, rejected = (_answer(side, len(prompt), max_seq_len) for side in both)
    if not chosen.trained_tokens or not rejected.trained_tokens:
        return DataError(
            "nothing of an answer is left within max_seq_len", fix="Raise max_seq_len or shorten the prompt"
        )
    if np.array_equal(chosen.tokens, rejected.tokens):
        return DataError("both answers are the same tokens after truncation", fix="Raise max_seq_len")
    cut = max_seq_len is not None and any(len(side.tokens) > max_seq_len for side in both)
    # Earlier answers are common to both sides and not compared, whether they could be trained or not.
    notes = both[0].notes.union(both[1].notes) - {"last_turn_only"}
    return RenderedPair(chosen, rejected, cut, pair.notes, frozenset(notes))


def _answer(side: Rendered, prompt_tokens: int, max_seq_len: int | None) -> Example:
    """One side, cut; assistant turns within the prompt are common to both sides and are not compared."""
    example = Example.of(side, max_seq_len)
    example.weights[:prompt_tokens] = 0
    return example
