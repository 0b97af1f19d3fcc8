"""Where a list of models comes from: the live backend first, a dated table where it cannot be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.names import BackendName

if TYPE_CHECKING:
    from sota_ml_researcher.training.prices import PriceTable


class ModelLine(BaseModel):
    """One model. None means that nobody said; ``retired`` is from the dated table.

    ``usd_per_million`` holds train, prefill, cached_prefill and sample prices as of ``prices_of``;
    ``learning_rate`` is the SFT start of the rules ``lora.lr.*``.
    """

    name: str
    context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    hidden_size: int | None = None
    renderers: list[str] = []
    ranks: str = "any from 1"
    learning_rate: float | None = None
    usd_per_million: dict[str, float | None] | None = None
    prices_of: str | None = None
    retired: str | None = None


def models_of(backend: BackendName, base_url: str | None) -> tuple[str, list[ModelLine]]:
    """The source of the list, and the models.

    Raises:
        BackendError: If a cluster does not answer, or a key is refused.
    """
    from sota_ml_researcher.training.model_catalog import load_catalog

    if backend == "embedded":
        return _embedded()
    if backend == "tinker":
        try:
            connection = backends.remote(backend, base_url)
        except BackendError:
            return _table(f"{backends.TINKER_KEY} is not set, so this is the table of {load_catalog().as_of}")
        return "the live service", _live(connection)
    return "the live service", _live(backends.remote(backend, base_url))


def with_advice(lines: list[ModelLine], backend: BackendName) -> list[ModelLine]:
    """The same models with accepted ranks, the recommended learning rate and the prices of the dated table.

    Raises:
        ConfigError: If the price file is broken.
    """
    from sota_ml_researcher.training.prices import load_prices

    table = load_prices()
    ranks = "powers of two" if backend == "tinker" else "any from 1"
    return [line.model_copy(update={"ranks": ranks, **_rate(line), **_prices(line, table, backend)}) for line in lines]


def _rate(line: ModelLine) -> dict[str, float]:
    from sota_ml_researcher.training.hyperparameters import recommended_learning_rate
    from sota_ml_researcher.training.model_configs import ModelConfig

    if line.hidden_size is None:
        return {}
    config = ModelConfig(line.name, {"hidden_size": line.hidden_size}, "table")
    return {"learning_rate": float(f"{recommended_learning_rate(config).value:.3g}")}


def _prices(line: ModelLine, table: PriceTable, backend: BackendName) -> dict[str, object]:
    price = table.model(backend, line.name)
    if price is None:
        return {}
    rates = price.model_dump(include={"train", "prefill", "cached_prefill", "sample"})
    return {"usd_per_million": rates, "prices_of": str(price.as_of)}


def _embedded() -> tuple[str, list[ModelLine]]:
    """The engine trains any causal LM folder; what it has loaded now is named, the demo model always."""
    from sota_ml_researcher.training.engine_process import running_engine
    from sota_ml_researcher.training.models import DEMO_NAME

    demo = ModelLine(name=DEMO_NAME, trainable=True, sampleable=True, renderers=["chat_template"])
    url = running_engine()
    loaded = _live(backends.Backend("embedded", url, backends.LOCAL_KEY)) if url else []
    source = "any Hugging Face causal LM folder on this machine, by its path; ids if they are in the local cache"
    return source, [demo, *(m for m in loaded if not m.name.endswith("demo/model"))]


def _live(connection: backends.Backend) -> list[ModelLine]:
    return [_line(served) for served in backends.supported_models(connection)]


def _line(served: backends.SupportedModel) -> ModelLine:
    from sota_ml_researcher.training.model_catalog import catalog_entry

    entry = catalog_entry(served.name)
    return ModelLine(
        name=served.name,
        context_length=served.max_context_length or (entry.context_length if entry else None),
        trainable=served.trainable,
        sampleable=served.sampleable,
        hidden_size=entry.hidden_size if entry else None,
        renderers=list(entry.renderers) if entry else [],
        retired=str(entry.retired) if entry and entry.retired else None,
    )


def _table(source: str) -> tuple[str, list[ModelLine]]:
    from sota_ml_researcher.training.model_catalog import load_catalog

    names = [backends.SupportedModel(entry.name, None, None, None) for entry in load_catalog().models]
    return source, [_line(name) for name in names]
