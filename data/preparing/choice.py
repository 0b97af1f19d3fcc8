"""Which rows stay, and in which file: decided from the survey, by the settings and the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError, DataError
from ...core.foreign_text import foreign
from ..finding_kinds import BAD_ROW
from ..mixtures import Mix, pass_order
from ..near_duplicates import SimilarPair, similar_pairs
from .prepare_config import REPEATS, PrepareSettings
from .survey import Survey

SPLITS = ("train", "val", "test")
TOO_LONG = "too_long"
NOT_TAKEN = "not_taken"
# Keeps the draw of groups apart from the order of rows.
_SPLIT_DRAW = 2**30
# What a model with max_tokens would not see whole.
_CUT = ("nothing_left", "truncated", "truncated_pair")


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of each row.

    Attributes:
        split: For each row the place of its file in `SPLITS`, or -1; shape [rows].
        removed: For each reason the rows that it removed, each row under one reason, in the order of removal.
        groups: Groups of rows that stay together, or 0 where nothing is split.
    """

    split: NDArray[np.int8]
    removed: Mapping[str, NDArray[np.int64]]
    groups: int


def choose(survey: Survey, settings: PrepareSettings) -> Choice:
    """Remove what cannot be used, what has a finding that is not wanted, and repeats; then take and split the rest.

    Raises:
        DataError: If no row is left, or a file would be empty.
        ConfigError: If an amount asks for more rows than are left.
    """
    alive = np.frombuffer(bytes(survey.usable), dtype=np.bool_).copy()
    removed: dict[str, NDArray[np.int64]] = {BAD_ROW: np.flatnonzero(~alive)}

    def remove(reason: str, rows: NDArray[np.int64]) -> None:
        gone = np.unique(rows[alive[rows]])
        removed[reason] = np.concatenate([removed.get(reason, np.zeros(0, np.int64)), gone])
        alive[gone] = False

    drop = settings.drop or ()
    remove(BAD_ROW, survey.rows_with(BAD_ROW))
    if settings.max_tokens is not None:
        for kind in _CUT:
            remove(TOO_LONG, survey.rows_with(kind))
    for kind in ("in_benchmark", *drop):
        if kind not in REPEATS:
            remove(kind, survey.rows_with(kind))
    if "exact_duplicate" in drop:
        here = np.flatnonzero(alive)
        _, firsts = np.unique(np.frombuffer(survey.exact, dtype=np.uint64)[here], return_index=True)
        remove("exact_duplicate", np.delete(here, firsts))
    pairs = _similar(survey, alive)
    if "near_duplicate" in drop:
        remove("near_duplicate", np.array([pair.second for pair in pairs], dtype=np.int64))
    _require_rows(alive, removed, survey)
    remove(NOT_TAKEN, _left_over(survey, settings, alive))
    split, groups = _split(survey, settings, alive, pairs)
    return Choice(split, {reason: np.sort(rows) for reason, rows in removed.items() if len(rows)}, groups)


def _similar(survey: Survey, alive: NDArray[np.bool_]) -> list[SimilarPair]:
    """Pairs of rows that are alike, among those that are left."""
    usable = np.flatnonzero(np.frombuffer(bytes(survey.usable), dtype=np.bool_))
    left = alive[usable]
    rows = usable[left]
    found = similar_pairs(survey.sketches.rows()[left])
    return [SimilarPair(int(rows[pair.first]), int(rows[pair.second]), pair.similarity) for pair in found]


def _require_rows(alive: NDArray[np.bool_], removed: Mapping[str, NDArray[np.int64]], survey: Survey) -> None:
    if not alive.any():
        why = ", ".join(f"{len(rows):,} {reason}" for reason, rows in removed.items() if len(rows))
        causes = sorted(survey.bad.items(), key=lambda item: (-len(item[1]), item[1][0]))
        most = f"; of these {len(causes[0][1]):,}: {foreign(causes[0][0])}" if causes else ""
        raise DataError(
            f"every row is filtered away ({why}{most}): nothing was written",
            fix="Drop fewer findings, or correct the rows or the columns",
        )


def _left_over(survey: Survey, settings: PrepareSettings, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rows that the amounts of the sources and ``max_rows`` leave out, drawn by the seed."""
    bounds = np.cumsum((0, *survey.sizes))
    here = np.flatnonzero(alive)
    sizes = [int(alive[low:high].sum()) for low, high in itertools.pairwise(bounds)]
    for source, size in zip(settings.sources, sizes, strict=True):
        if not size:
            raise DataError(f"every row of {source.label} is filtered away", fix="Leave it out, or drop fewer findings")
        if source.rows is not None and source.rows > size:
            raise ConfigError(
                f"rows {source.rows:,} of {source.label}: {size:,} are left, and a prepared file holds no row twice",
                where="source",
                fix="Ask for fewer, or repeat the source when it is trained",
            )
    mix = Mix.of(settings.sources, sizes, where="source")
    if mix.taken == mix.sizes and settings.max_rows is None:
        return np.zeros(0, np.int64)
    taken = pass_order(mix, settings.seed, 0)[: settings.max_rows]
    return np.delete(here, taken)


def _split(
    survey: Survey, settings: PrepareSettings, alive: NDArray[np.bool_], pairs: list[SimilarPair]
) -> tuple[NDArray[np.int8], int]:
    """The file of each row: whole groups, in an order drawn by the seed, as long as they fit."""
    split = np.where(alive, 0, -1).astype(np.int8)
    if not settings.split:
        return split, 0
    here = np.flatnonzero(alive)
    group_of = _groups(survey, settings, alive, pairs)
    members = np.unique(group_of, return_counts=True)[1]
    places = np.full(len(members), 0, dtype=np.int8)
    order = np.random.default_rng([settings.seed, _SPLIT_DRAW]).permutation(len(members))
    for name in ("test", "val"):
        wanted = _wanted(settings.split.get(name), len(here))
        for group in order:
            size = int(members[group])
            if wanted and not places[group] and size <= wanted:
                places[group], wanted = SPLITS.index(name), wanted - size
    split[here] = places[group_of]
    for place, name in enumerate(SPLITS):
        if (name == "train" or name in settings.split) and not (split == place).any():
            largest = int(members.max())
            raise DataError(
                f"{name} would be empty: {len(here):,} rows are {len(members):,} groups that stay together, the "
                f"largest of {largest:,}",
                fix="Ask for other sizes, or group by another column",
            )
    return split, len(members)


def _wanted(size: float | None, rows: int) -> int:
    return 0 if size is None else max(1, round(size * rows)) if size < 1 else int(size)


def _groups(
    survey: Survey, settings: PrepareSettings, alive: NDArray[np.bool_], pairs: list[SimilarPair]
) -> NDArray[np.int64]:
    """For each row that is left its group: rows that open alike, are alike, or have one value of ``group_by``."""
    here = np.flatnonzero(alive)
    place = np.full(len(alive), -1, dtype=np.int64)
    place[here] = np.arange(len(here))
    parent = list(range(len(here)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    for digests in (survey.opening, *([survey.group] if settings.group_by else [])):
        keys, firsts, inverse = np.unique(
            np.frombuffer(digests, dtype=np.uint64)[here], return_index=True, return_inverse=True
        )
        if len(keys) < len(here):
            for row in np.flatnonzero(firsts[inverse] != np.arange(len(here))):
                join(int(row), int(firsts[inverse[row]]))
    for pair in pairs:
        if alive[pair.first] and alive[pair.second]:
            join(int(place[pair.first]), int(place[pair.second]))
    return np.unique([root(row) for row in range(len(here))], return_inverse=True)[1].astype(np.int64)
