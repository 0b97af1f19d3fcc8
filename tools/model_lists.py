"""Where a list of models comes from: the live backend first, a dated table where it cannot be asked."""

from __future__ import annotations

from pydantic import BaseModel

from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.model_catalog import catalog_entry, load_catalog
from sota_ml_researcher.training.models import DEMO_NAME
from sota_ml_researcher.training.sft_config import BackendName


class ModelLine(BaseModel):
    """One model. None means that nobody said; ``retired`` is from the dated table."""

    name: str
    context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    hidden_size: int | None = None
    renderers: list[str] = []
    retired: str | None = None


def models_of(backend: BackendName, base_url: str | None) -> tuple[str, list[ModelLine]]:
    """The source of the list, and the models.

    Raises:
        BackendError: If a cluster does not answer, or a key is refused.
    """
    if backend == "embedded":
        return _embedded()
    if backend == "tinker":
        try:
            connection = backends.remote(backend, base_url)
        except BackendError:
            return _table(f"{backends.TINKER_KEY} is not set, so this is the table of {load_catalog().as_of}")
        return "the live service", _live(connection)
    return "the live service", _live(backends.remote(backend, base_url))


def _embedded() -> tuple[str, list[ModelLine]]:
    """The engine trains any causal LM folder; what it has loaded now is named, the demo model always."""
    from sota_ml_researcher.training.engine_process import running_engine

    demo = ModelLine(name=DEMO_NAME, trainable=True, sampleable=True, renderers=["chat_template"])
    url = running_engine()
    loaded = _live(backends.Backend("embedded", url, backends.LOCAL_KEY)) if url else []
    source = "any Hugging Face causal LM folder on this machine, by its path; ids if they are in the local cache"
    return source, [demo, *(m for m in loaded if not m.name.endswith("demo/model"))]


def _live(connection: backends.Backend) -> list[ModelLine]:
    return [_line(served) for served in backends.supported_models(connection)]


def _line(served: backends.SupportedModel) -> ModelLine:
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
    names = [backends.SupportedModel(entry.name, None, None, None) for entry in load_catalog().models]
    return source, [_line(name) for name in names]
