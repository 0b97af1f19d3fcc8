"""Which models there are, and trying one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from ..backends.connection import TINKER_KEY, Backend, SupportedModel, connect, remote, supported_models
from ..core.errors import BackendError, ConfigError, ModelError
from ..core.foreign_text import foreign, named
from ..core.names import BackendName
from ..jobs.job_results import checkpoint_path, job_of, require_place_of_job, trained_model
from ..jobs.registry import Registry
from .answers import answer, number

if TYPE_CHECKING:
    from ..backends.prices import PriceTable
    from ..backends.published_prices import PublishedModel
    from ..core.memory import Room

_SHOWN_PROMPTS = 3
_MAX_PROMPTS = 256


class ModelLine(BaseModel):
    """One model. None means that nobody said; ``retired`` is from the dated table, unless the service serves it.

    ``usd_per_million`` holds train, prefill, cached_prefill and sample prices as of ``prices_of``;
    ``learning_rate`` is the SFT start of the rules ``lora.lr.*``; ``memory_gib`` what training takes here, by default.
    """

    name: str
    context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    hidden_size: int | None = None
    renderers: list[str] = []
    ranks: str = "any from 1"
    learning_rate: float | None = None
    memory_gib: float | None = None
    usd_per_million: dict[str, float | None] | None = None
    prices_of: str | None = None
    retired: str | None = None
    replacement: str | None = None


def models_of(backend: BackendName, base_url: str | None) -> tuple[str, list[ModelLine]]:
    """The source of the list, and the models.

    Raises:
        BackendError: If a cluster does not answer, or a key is refused.
    """
    if backend == "embedded":
        return _embedded()
    try:
        connection = remote(backend, base_url)
        return _from_cluster(connection) if backend == "cluster" else ("the live service", _live(connection))
    except BackendError:
        if backend != "tinker" or os.environ.get(TINKER_KEY):
            raise
    return _tabled()


def _tabled() -> tuple[str, list[ModelLine]]:
    """Hosted Tinker's models without asking it: the dated table, and what is on the published list besides."""
    from ..backends.published_prices import published_prices
    from ..models.model_catalog import load_catalog

    catalog, published = load_catalog(), published_prices(refresh=True)
    listed: Mapping[str, PublishedModel] = published.models if published else {}
    contexts: dict[str, int | None] = dict.fromkeys(entry.name for entry in catalog.models)
    contexts |= {name: model.context for name, model in listed.items()}
    of_list = f" and Tinker's published list, read {published.checked:%Y-%m-%d}" if published and listed else ""
    source = f"{TINKER_KEY} is not set, so this is the table of {catalog.as_of}{of_list}"
    return source, [_line(SupportedModel(name, context, None, None)) for name, context in contexts.items()]


def _embedded() -> tuple[str, list[ModelLine]]:
    """The engine trains any causal LM folder; what it has loaded now is named, the demo model always."""
    from ..backends.embedded import engine_key, running_engine
    from ..backends.embedded_memory import embedded_room
    from ..models.model_ref import DEMO_NAME

    demo = ModelLine(name=DEMO_NAME, trainable=True, sampleable=True, renderers=["chat_template"])
    url = running_engine()
    loaded = _live(Backend("embedded", url, engine_key())) if url else []
    source = "any Hugging Face causal LM folder or .gguf file of this machine, by its path; ids if in the local cache"
    lines = [demo, *(m for m in loaded if not m.name.endswith("demo/model"))]
    room = embedded_room()
    return source, [line.model_copy(update={"memory_gib": _memory_gib(line.name, room)}) for line in lines]


def _memory_gib(name: str, room: Room) -> float | None:
    """What training by the engine's defaults takes on this machine; None where it is not known."""
    from ..core.memory import GIB, estimate
    from ..models.configs import load_model_config
    from ..models.lora_params import model_shape
    from ..models.model_ref import resolve_model

    try:
        shape = model_shape(load_model_config(resolve_model(name)))
    except ModelError:
        return None
    return round(estimate(shape, room).total / GIB, 2)


def _from_cluster(connection: Backend) -> tuple[str, list[ModelLine]]:
    """What its server is and can do, and its models."""
    from ..backends.servers import described, server_of

    models = _live(connection)
    server = server_of(connection)
    return described(server), [model.model_copy(update={"ranks": server.abilities.ranks}) for model in models]


def _live(connection: Backend) -> list[ModelLine]:
    """What the backend says it serves; that it does weighs more than a notice of its retirement."""
    lines = [_line(served) for served in supported_models(connection)]
    return [line.model_copy(update={"retired": None, "replacement": None}) for line in lines]


def _line(served: SupportedModel) -> ModelLine:
    from ..models.model_catalog import catalog_entry

    entry = catalog_entry(served.name)
    return ModelLine(
        name=served.name,
        context_length=served.max_context_length or (entry.context_length if entry else None),
        trainable=served.trainable,
        sampleable=served.sampleable,
        hidden_size=entry.hidden_size if entry else None,
        renderers=list(entry.renderers) if entry else [],
        retired=str(entry.retired) if entry and entry.retired else None,
        replacement=entry.replacement if entry else None,
    )


def with_advice(line: ModelLine, backend: BackendName, table: PriceTable) -> ModelLine:
    """The same model with accepted ranks, the recommended learning rate and its prices."""
    from ..models.configs import ModelConfig
    from ..models.hyperparameters import recommended_learning_rate

    advice: dict[str, object] = {"ranks": "powers of two"} if backend == "tinker" else {}
    if line.hidden_size is not None:
        config = ModelConfig(line.name, {"hidden_size": line.hidden_size}, "table")
        advice["learning_rate"] = float(f"{recommended_learning_rate(config).value:.3g}")
    if price := table.model(backend, line.name):
        advice["usd_per_million"] = price.model_dump(include={"train", "prefill", "cached_prefill", "sample"})
        advice["prices_of"] = str(price.as_of)
    return line.model_copy(update=advice)


class ModelList(BaseModel):
    """The models of a backend, and where the list comes from."""

    backend: str
    source: str
    models: list[ModelLine]
    next: str


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Answered(BaseModel):
    """A sampled completion: its text, why it stopped, its tokens, and its total log-probability in nats."""

    text: str
    stop_reason: str
    tokens: int
    logprob: float | None


class PromptSamples(BaseModel):
    """A prompt (the conversation's last message) and its completions."""

    prompt: str
    completions: list[Answered]


class SampleAnswer(BaseModel):
    """For each prompt its completions."""

    model: str
    backend: str
    samples: list[PromptSamples]
    next: str


def list_models(
    backend: Annotated[BackendName, Field(description="Whose models")] = "embedded",
    base_url: Annotated[str | None, Field(description="For backend cluster")] = None,
    search: Annotated[str | None, Field(description="Only names that contain this")] = None,
) -> Annotated[CallToolResult, ModelList]:
    """List a backend's base models with context length, renderers, ranks, learning rate, prices and retirement.

    Returns what the live service says (hosted Tinker: with a key), else the dated table, and says which.
    Use it for "what can I train?" or to find an id; for "which rank?" use validate_capacity, for answers sample_model.
    """
    from ..backends.prices import load_prices

    source, models = models_of(backend, base_url)
    table = load_prices(asking=backend)
    models = [with_advice(m, backend, table) for m in models if search is None or search.lower() in m.name.lower()]
    models.sort(key=lambda m: m.retired is not None)
    following = (
        f"validate_capacity(base_model={named(models[0].name)!r}, ...)" if models else "list_models without search"
    )
    content = ModelList(backend=backend, source=source, models=models, next=following)
    lines = [f"{len(models)} models on {backend} ({source}).", *_price_lines(backend, table)]
    lines += map(_model_line, models[:25])
    return answer(content, "\n".join([*lines, f"Next: {following}"]))


def sample_model(
    model: Annotated[
        str, Field(description="A base model, a job id (its final checkpoint), job_id:best, or tinker://")
    ],
    prompts: Annotated[list[str] | None, Field(description="User messages, answered each on its own")] = None,
    messages: Annotated[list[Turn] | None, Field(description="Or one conversation")] = None,
    max_tokens: Annotated[int, Field(ge=1, le=8192, description="Per answer")] = 256,
    temperature: Annotated[float, Field(ge=0, le=5, description="0: greedy")] = 0.7,
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus")] = 1.0,
    num_samples: Annotated[int, Field(ge=1, le=64, description="Answers per prompt")] = 1,
    seed: Annotated[int | None, Field(description="Repeats answers")] = None,
    backend: Annotated[BackendName | None, Field(description="Default: the job's, else embedded")] = None,
    base_url: Annotated[str | None, Field(description="For backend cluster")] = None,
) -> Annotated[CallToolResult, SampleAnswer]:
    """Try a base model or a checkpoint on a few prompts, with the chat format it was trained with.

    Returns texts with stop reason and log-probability. Use it to see what the plain base model says to some prompts
    before training, and the tuned one after. Not for "is it better?": a few samples prove nothing.
    """
    from ..backends.sampling_client import SampleOptions, base_model_of, renderer_of, sample
    from ..models.renderers import load_renderer

    conversations = _conversations(prompts, messages)
    target = resolve_target(model, backend, base_url)
    connection = connect(target.backend, target.base_url)
    base_model = target.base_model or base_model_of(connection, target.wire_name)
    trained_with = target.renderer or (renderer_of(connection, target.wire_name) if target.is_checkpoint else None)
    renderer = load_renderer(base_model, trained_with)
    options = SampleOptions(max_tokens, temperature, top_p, num_samples, seed)
    completions = sample(connection, renderer, target.wire_name, conversations, options)
    samples = [
        PromptSamples(
            prompt=c[-1]["content"], completions=[Answered.model_validate(a, from_attributes=True) for a in answers]
        )
        for c, answers in zip(conversations, completions, strict=True)
    ]
    following = (
        "start_sft(...) to train" if not target.is_checkpoint else "compare with the base model on the same prompts"
    )
    content = SampleAnswer(model=target.wire_name, backend=target.backend, samples=samples, next=following)
    return answer(content, _sample_text(samples, following))


@dataclass(frozen=True, slots=True)
class Target:
    """What a ``model`` argument means: weights, where they are sampled, and how chats are rendered for them."""

    wire_name: str
    backend: BackendName
    base_url: str | None
    base_model: str | None = None
    renderer: str | None = None
    is_checkpoint: bool = True


def resolve_target(model: str, backend: BackendName | None, base_url: str | None) -> Target:
    """Find the weights that ``model`` names.

    Raises:
        ConfigError: If it names a job, and the place is not the job's.
        JobError: If it names a job that does not exist or has no checkpoint.
        ModelError: If it names no model.
    """
    from ..models.model_ref import resolve_model

    if model.startswith("tinker://"):
        return Target(model, backend or "embedded", base_url)
    if named := job_of(model):
        job = Registry().get(named[0])
        of = trained_model(job)
        require_place_of_job(job, of, backend, base_url)
        path = checkpoint_path(job, "sampler_path", named[1])
        return Target(path, of.backend, of.base_url, of.base_model, of.renderer)
    name = resolve_model(model).wire_name
    return Target(name, backend or "embedded", base_url, model, is_checkpoint=False)


def _conversations(prompts: list[str] | None, messages: list[Turn] | None) -> list[list[Any]]:
    if (prompts is None) == (messages is None):
        raise ConfigError("give either prompts or messages", where="sample_model")
    if prompts is not None:
        if not prompts or len(prompts) > _MAX_PROMPTS:
            raise ConfigError(f"give 1 to {_MAX_PROMPTS} prompts, not {len(prompts)}", where="prompts")
        if any(not prompt.strip() for prompt in prompts):
            raise ConfigError("a prompt is empty", where="prompts")
        return [[{"role": "user", "content": prompt}] for prompt in prompts]
    if not messages or messages[-1].role != "user":
        raise ConfigError("messages must be [{role, content}, ...] and end with a user's turn", where="messages")
    return [[turn.model_dump() for turn in messages]]


def _price_lines(backend: BackendName, table: PriceTable) -> list[str]:
    if backend != "tinker" or not table.problem:
        return []
    return [f"The published prices could not be read again: {table.problem}. Each price has its own day."]


def _model_line(model: ModelLine) -> str:
    renderers = ", ".join(map(named, model.renderers[:2]))
    facts = [f"context {model.context_length:,}" if model.context_length else "", renderers]
    if model.memory_gib is not None:
        facts.append(f"needs about {model.memory_gib:g} GiB here")
    if model.learning_rate is not None:
        facts.append(f"learning rate {number(model.learning_rate)}")
    if model.usd_per_million is not None:
        prices = [f"{kind} ${usd:g}" for kind, usd in model.usd_per_million.items() if usd is not None]
        facts.append(f"{', '.join(prices)} per million tokens ({model.prices_of})")
    instead = f", take {model.replacement}" if model.replacement else ""
    facts.append(f"retired {model.retired}{instead}" if model.retired else "")
    return f"{named(model.name)}: " + ("; ".join(f for f in facts if f) or "no further facts")


def _sample_text(samples: Sequence[PromptSamples], following: str) -> str:
    lines: list[str] = []
    for one in samples[:_SHOWN_PROMPTS]:
        lines.append(f"> {foreign(one.prompt, 120)}")
        lines += [f"{foreign(c.text, 240)} [{named(c.stop_reason)}, {c.tokens} tokens]" for c in one.completions[:2]]
    if len(samples) > _SHOWN_PROMPTS:
        lines.append(f"({len(samples) - _SHOWN_PROMPTS} more prompts in the structured answer)")
    return "\n".join([*lines, f"Next: {following}"])
