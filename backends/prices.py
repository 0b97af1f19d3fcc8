"""Prices per million tokens and their sources: the packaged table, under the published file, under the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.ages import age
from ..core.errors import ConfigError
from ..core.paths import home
from ..core.yaml_loading import load_yaml, shipped_yaml
from .published_prices import PublishedPrices, published_prices

PRICES_VARIABLE = "ML_RESEARCHER_PRICES"
# One token costs this share of a price "per million tokens".
PER_TOKEN = 1e-6
PACKAGED, PUBLISHED, OWN = "packaged", "published", "your own"
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPrice(_Frozen):
    """One model's prices in USD per million tokens; None means unknown, not free. ``origin``: who says so."""

    prefill: Usd | None = None
    cached_prefill: Usd | None = None
    sample: Usd | None = None
    train: Usd | None = None
    as_of: date | None = None
    origin: str = PACKAGED

    @property
    def age(self) -> str:
        """Where the prices are from and how old they are, such as ``published, 3 days old``."""
        return f"{self.origin}, {age(self.as_of)}" if self.as_of else self.origin


class BackendPrices(_Frozen):
    """Prices of one backend. ``cached_prefill_factor`` holds for models without a price of their own for it."""

    storage_gb_month: Usd | None = None
    cached_prefill_factor: Annotated[float, Field(ge=0, le=1)] = 1.0
    models: Mapping[str, ModelPrice] = {}


class PriceTable(_Frozen):
    """Everything that has a price. ``problem``: why the published file is not newer than it is, or empty."""

    as_of: date
    source: str
    problem: str = ""
    backends: Mapping[str, BackendPrices] = {}

    def charges(self, backend: str) -> bool:
        """Whether the backend costs money: hosted Tinker always does, others when the table says so."""
        return backend == "tinker" or backend in self.backends

    def model(self, backend: str, base_model: str) -> ModelPrice | None:
        """The prices of a model, its cached prefill filled in; None when unknown. A ``:variant`` is another model.

        Args:
            backend: Where it runs.
            base_model: As the user names it: an id, ``demo``, or a folder.
        """
        prices = self.backends.get(backend)
        price = prices.models.get(base_model) if prices else None
        if prices is None or price is None:
            return None
        cached = price.cached_prefill
        if cached is None and price.prefill is not None:
            cached = price.prefill * prices.cached_prefill_factor
        return price.model_copy(update={"cached_prefill": cached, "as_of": price.as_of or self.as_of})

    def ages(self, backend: str) -> str:
        """How many models have a price, who says so, and how old that is: ``24 published, of today``."""
        days: dict[str, list[date]] = {}
        for name in self.backends[backend].models if backend in self.backends else ():
            if price := self.model(backend, name):
                days.setdefault(price.origin, []).append(price.as_of or self.as_of)
        return "; ".join(f"{len(found)} {origin}, {_ages(found)}" for origin, found in days.items()) or "none"

    def storage(self, backend: str) -> float | None:
        """USD per gigabyte and month, or None."""
        prices = self.backends.get(backend)
        return prices.storage_gb_month if prices else None


def _ages(days: list[date]) -> str:
    newest, oldest = age(max(days)), age(min(days))
    return newest if newest == oldest else f"the newest {newest}, the oldest {oldest}"


def load_prices(*, asking: str | None = None) -> PriceTable:
    """The packaged table, under what Tinker published where that is newer, under the user's own file.

    Args:
        asking: The backend whose prices are needed now: for hosted Tinker the published file is asked for again if the
            copy is old (`published_prices`). Without it nothing leaves the machine.

    Raises:
        ConfigError: If the user's file cannot be read or does not have the table's shape; names the key.
    """
    shipped: dict[str, Any] = shipped_yaml("backends", "prices.yaml")
    published = published_prices(refresh=asking == "tinker")
    table = shipped if published is None else _with_published(shipped, published)
    own = _own_file()
    if own is None:
        return PriceTable.model_validate(table)
    document = load_yaml(own)
    try:
        override = _Override.model_validate(document.data)
        if override.as_of and override.as_of > datetime.now(UTC).date() + timedelta(days=1):
            raise ConfigError(
                f"{override.as_of} is in the future", where=document.place("as_of"), fix="Give the day they were read"
            )
        merged = _overlay(table, _dated(override.model_dump(exclude_unset=True), override.as_of or _written(own)))
        return PriceTable.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        top = str(first["loc"][0]) if first["loc"] else ""
        raise ConfigError(
            f"{key}: {first['msg']}, got {first['input']!r:.60}",
            where=document.place(top),
            fix=f"Write it as the shipped table has it: {Path(__file__).with_name('prices.yaml')}",
        ) from error


def _with_published(shipped: dict[str, Any], published: PublishedPrices) -> dict[str, Any]:
    """The packaged table with the published prices over it, model by model, where they are not older."""
    if published.checked is None or not published.models:
        return {**shipped, "problem": published.problem}
    day = published.checked.date()
    tinker = shipped["backends"]["tinker"]
    models = dict(tinker["models"])
    for name, model in published.models.items():
        packaged = models.get(name)
        if packaged is None or (packaged.get("as_of") or shipped["as_of"]) <= day:
            models[name] = {**model.usd, "as_of": day, "origin": PUBLISHED}
    return {
        "as_of": max(day, shipped["as_of"]),
        "source": f"{published.url}, read {day}; else {shipped['source']}",
        "problem": published.problem,
        "backends": {**shipped["backends"], "tinker": {**tinker, "models": models}},
    }


def _dated(override: dict[str, Any], day: date) -> dict[str, Any]:
    """The user's prices with a day of their own: the table's would be wrong for them."""
    for backend in override.get("backends", {}).values():
        group = backend.get("models", {})
        for name, price in group.items():
            group[name] = {"as_of": day, **price, "origin": OWN}
    return override


def _written(path: Path) -> date:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date()


class _Override(_Frozen):
    as_of: date | None = None
    source: str | None = None
    backends: Mapping[str, BackendPrices] = {}


def _own_file() -> Path | None:
    if named := os.environ.get(PRICES_VARIABLE):
        return Path(named).expanduser()
    own = home() / "prices.yaml"
    return own if own.exists() else None


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, mapping by mapping; a null in it changes nothing."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            continue
        under = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = _overlay(cast("dict[str, Any]", under), cast("dict[str, Any]", value)) if both else value
    return merged


class PaidConfig(Protocol):
    """What a job's config says about money."""

    @property
    def base_model(self) -> str: ...  # noqa: D102
    @property
    def backend(self) -> str: ...  # noqa: D102
    @property
    def max_cost_usd(self) -> float | None: ...  # noqa: D102


def require_price_for_cap(
    config: PaidConfig, table: PriceTable, *, where: str = "max_cost_usd", judged: bool = False
) -> None:
    """Refuse a cap that could not be held.

    Args:
        config: The job's settings.
        table: The prices.
        where: The cap's place, for the error.
        judged: Whether the job pays judges besides its backend.

    Raises:
        ConfigError: If there is a cap and the model's price is unknown, or the backend charges nothing.
    """
    if config.max_cost_usd is None:
        return
    if not table.charges(config.backend):
        if judged:
            return
        raise ConfigError(
            f"backend {config.backend} has no prices, so a cap means nothing", where=where, fix="Remove it"
        )
    price = table.model(config.backend, config.base_model)
    if price is None or price.train is None:
        raise ConfigError(
            f"the price of {config.base_model} is unknown (table of {table.as_of}), so a cap cannot be held",
            where=where,
            fix="Add the model to prices.yaml (see ML_RESEARCHER_PRICES), or remove max_cost_usd",
        )
