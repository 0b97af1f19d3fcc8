"""One or several sources of rows as one set: how many rows of each a pass takes, and which, by the seed alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_serializer, model_validator

from ..core.errors import ConfigError
from ..core.paths import user_path
from .columns import ColumnMap, Columns
from .hub_reference import parse_reference
from .row_turns import as_fields
from .shards import digest_of, shards

# Keeps the draws from a source apart from the shuffles of passes, which have no third number.
_DRAW = 2**31
_AMOUNTS = ("weight", "rows", "epochs")


class Source(BaseModel):
    """One source of a mixture: a path, and at most one way to say how much of it a pass takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="File, folder, pattern, demo:NAME or owner/name@revision")
    name: str | None = Field(None, min_length=1, max_length=60, description="What plans call it; null: the file's name")
    weight: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Its share of the rows, beside the weights of the others"
    )
    rows: int | None = Field(None, gt=0, le=10**8, description="Rows of it in each pass; more than it has repeat")
    epochs: float | None = Field(
        None, gt=0, le=1000, allow_inf_nan=False, description="How often a pass sees it; 0.25 is a quarter of it"
    )
    columns: Columns | None = Field(None, description="Its columns; null: those of the config; {}: the usual names")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        fields = as_fields(value)
        for key in _AMOUNTS:
            if isinstance(fields.get(key), bool):
                raise ValueError(f"{key} is true or false, and a number is needed")
        return value

    @model_serializer(mode="plain")
    def _as_written(self) -> dict[str, Any]:
        return {key: value for key in type(self).model_fields if (value := getattr(self, key)) is not None}

    @property
    def file(self) -> Path:
        """Its path."""
        return Path(self.path)

    @property
    def label(self) -> str:
        """What plans and errors call it."""
        return self.name or self.path


Sources: TypeAlias = tuple[Source, ...]


def _checked(sources: Sources) -> Sources:
    """The same sources, if there are any, their amounts go together and no two bear one name.

    Raises:
        ValueError: If not.
    """
    if not sources:
        raise ValueError("the list is empty: name one source at least")
    given = [[key for key in _AMOUNTS if getattr(source, key) is not None] for source in sources]
    for source, keys in zip(sources, given, strict=True):
        if len(keys) > 1:
            raise ValueError(f"{source.label}: {' and '.join(keys)} are both given: keep one of them")
    weighed = [source.label for source, keys in zip(sources, given, strict=True) if keys == ["weight"]]
    if 0 < len(weighed) < len(sources):
        counted = next(source.label for source in sources if source.weight is None)
        raise ValueError(
            f"weights and counts are mixed: {weighed[0]} has a weight and {counted} has none. "
            "Give every source a weight, or none"
        )
    names = Counter(source.name for source in sources if source.name is not None)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two sources are called '{twice[0]}': give each a name of its own")
    return sources


def _branch(value: Any) -> str:
    return "sources" if isinstance(value, list | tuple) else "file"


# What a config may say of its training rows: one path, or a list of sources.
TrainFile = Annotated[
    Annotated[str, Field(min_length=1), Tag("file")] | Annotated[Sources, AfterValidator(_checked), Tag("sources")],
    Discriminator(_branch),
]


def as_sources(train_file: str | Sources, columns: ColumnMap | None) -> Sources:
    """What a config says of its rows as sources with columns: one file is a mixture of one."""
    if isinstance(train_file, str):
        return (Source.model_construct(path=train_file, columns=columns),)
    return tuple(
        source if source.columns is not None else source.model_copy(update={"columns": columns})
        for source in train_file
    )


def resolved(sources: Sources, resolve: Callable[[str], Path], *, where: str) -> Sources:
    """The sources with absolute paths, and a name for each: its file's, with the folder's where that is not enough.

    Raises:
        ConfigError: If two of them hold the same file, or bear one name.
    """
    found = [
        source.model_copy(update={"path": str(resolve(source.path)), "name": source.name or _of_hub(source.path)})
        for source in sources
    ]
    seen: dict[Path, Source] = {}
    for source in found:
        for shard in shards(source.file):
            other = seen.setdefault(shard, source)
            if other is not source:
                raise ConfigError(
                    f"{shard} is in two sources",
                    where=where,
                    fix="Name it once; epochs: 2 repeats a source",
                )
    stems = Counter(source.file.stem for source in found)
    named = [source if source.name else _named(source, stems[source.file.stem] > 1) for source in found]
    names = Counter(source.name for source in named)
    if twice := [str(name) for name, count in names.items() if count > 1]:
        raise ConfigError(f"two sources are called '{twice[0]}'", where=where, fix="Give each a name: of its own")
    return tuple(named)


def _of_hub(path: str) -> str | None:
    """The name of a data set of the hub, which lies in a folder that is called by its commit."""
    if user_path(path).exists() or parse_reference(path, where="train_file") is None:
        return None
    return path.rpartition("@")[0][-60:]


def _named(source: Source, is_shared: bool) -> Source:
    path = source.file
    return source.model_copy(update={"name": f"{path.parent.name}/{path.stem}" if is_shared else path.stem})


def require_apart(sources: Sources, val_file: Path, *, where: str) -> None:
    """Refuse held-out rows that are those of training: the same file, or one with the same bytes.

    Raises:
        ConfigError: Naming both.
    """
    held_out = shards(val_file)
    sizes = {file.stat().st_size for file in held_out}
    digests = set[str]()
    for source in sources:
        for shard in shards(source.file):
            is_same = shard in held_out
            if not is_same and shard.stat().st_size in sizes:
                digests = digests or {digest_of(file) for file in held_out}
                is_same = digest_of(shard) in digests
            if is_same:
                raise ConfigError(
                    f"{shard.name} is trained, and {'val_file holds it' if len(held_out) > 1 else 'it is val_file'}: "
                    "its loss would say nothing of rows that were not trained",
                    where=where,
                    fix="Hold rows back (prepare_dataset splits), or leave val_file out",
                )


@dataclass(frozen=True, slots=True)
class Mix:
    """How many rows each source has, and how many of them a pass takes."""

    sizes: tuple[int, ...]
    taken: tuple[int, ...]

    @classmethod
    def whole(cls, rows: int) -> Mix:
        """One source, each row once in a pass."""
        return cls((rows,), (rows,))

    @classmethod
    def of(cls, sources: Sources, sizes: Sequence[int], *, where: str = "train_file") -> Mix:
        """The mix of sources with so many usable rows.

        With weights a pass ends when the first source has been seen once, so that no row is in it twice. Without any
        it takes ``rows`` or ``epochs`` of each, or all of it.

        Raises:
            ConfigError: If an amount is less than one row.
        """
        weights = [source.weight for source in sources]
        total = sum(weight or 0.0 for weight in weights)
        shares = [(weight or 0.0) / total for weight in weights] if total else []
        whole = min((sizes[i] / share for i, share in enumerate(shares)), default=0.0)
        taken = [
            round(whole * shares[i]) if shares else source.rows or round((source.epochs or 1) * size)
            for i, (source, size) in enumerate(zip(sources, sizes, strict=True))
        ]
        for source, size, count in zip(sources, sizes, taken, strict=True):
            if count < 1:
                key, value = ("weight", source.weight) if source.weight is not None else ("epochs", source.epochs)
                raise ConfigError(
                    f"{key} {value:g} of {source.label} ({size:,} rows) is less than one row in a pass",
                    where=where,
                    fix="Raise it, or leave the source out",
                )
        return cls(tuple(sizes), tuple(taken))

    @property
    def rows(self) -> int:
        """Rows of a pass."""
        return sum(self.taken)

    @property
    def shares(self) -> list[float]:
        """How much of each source a pass takes: 1 is each row once."""
        return [count / size for count, size in zip(self.taken, self.sizes, strict=True)]

    def per_pass(self, counts: Sequence[int]) -> int:
        """What a pass has of something that so much of is in each source: exact where it takes whole sources."""
        return round(sum(count * share for count, share in zip(counts, self.shares, strict=True)))

    def seen(self, rows: int, seed: int) -> list[int]:
        """How many of the first ``rows`` rows of a run are of each source."""
        passes, rest = divmod(rows, self.rows)
        begun = pass_order(self, seed, passes)[:rest]
        bounds = np.cumsum((0, *self.sizes))
        return [
            passes * count + int(((begun >= low) & (begun < high)).sum())
            for count, (low, high) in zip(self.taken, itertools.pairwise(bounds), strict=True)
        ]


@lru_cache(maxsize=4)
def pass_order(mix: Mix, seed: int, number: int) -> NDArray[np.int64]:
    """The rows of a pass in their order, counted through all sources, shape [rows]: by the seed and the pass alone."""
    starts = np.cumsum((0, *mix.sizes))
    drawn = [
        _drawn(size, count, seed=seed, source=i, number=number) + starts[i]
        for i, (size, count) in enumerate(zip(mix.sizes, mix.taken, strict=True))
    ]
    return np.concatenate(drawn)[np.random.default_rng([seed, number]).permutation(mix.rows)]


def _drawn(size: int, count: int, *, seed: int, source: int, number: int) -> NDArray[np.int64]:
    """The rows that a pass takes of one source: each before any is taken again, also from pass to pass."""
    if count % size == 0:
        return np.tile(np.arange(size), count // size)
    begin = number * count
    rounds = range(begin // size, math.ceil((begin + count) / size))
    stream = [np.random.default_rng([seed, _DRAW, source, k]).permutation(size) for k in rounds]
    skipped = begin - rounds.start * size
    return np.concatenate(stream)[skipped : skipped + count]
