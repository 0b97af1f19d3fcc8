"""Which models there are, and trying one."""

from __future__ import annotations

from typing import Annotated, Any

from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.jobs.checkpoints import checkpoint_path, trained_model
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.tools.answers import answer, number
from sota_ml_researcher.tools.model_lists import ModelLine, models_of, with_advice
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.names import BackendName

_SHOWN_PROMPTS = 3
_MAX_PROMPTS = 256


class ModelList(BaseModel):
    """The models of a backend, and where the list comes from."""

    backend: str
    source: str
    models: list[ModelLine]
    next: str


class SampleAnswer(BaseModel):
    """For each prompt its completions: text, why it stopped, tokens, and total log-probability in nats."""

    model: str
    backend: str
    samples: list[dict[str, Any]]
    next: str


def list_models(
    backend: Annotated[BackendName, Field(description="Whose models")] = "embedded",
    base_url: Annotated[str | None, Field(description="For backend cluster")] = None,
    search: Annotated[str | None, Field(description="Only names that contain this")] = None,
) -> Annotated[CallToolResult, ModelList]:
    """List a backend's base models with context length, renderers, ranks, learning rate, prices and retirement.

    For hosted Tinker it asks the live service when a key is set, and says so when it falls back to the dated table.
    Use it for "what can I train?" or to find an id; for "which rank?" use validate_capacity, for answers sample_model.
    """
    source, models = models_of(backend, base_url)
    shown = with_advice([m for m in models if search is None or search.lower() in m.name.lower()], backend)
    shown.sort(key=lambda m: m.retired is not None)
    following = f"validate_capacity(base_model='{shown[0].name}', ...)" if shown else "list_models without search"
    content = ModelList(backend=backend, source=source, models=shown, next=following)
    lines = [f"{len(shown)} models on {backend} ({source})."]
    lines += [_model_line(m) for m in shown[:25]]
    return answer(content, "\n".join([*lines, f"Next: {following}"]))


def sample_model(
    model: Annotated[
        str, Field(description="A base model, a job id (its final checkpoint), job_id:best, or tinker://")
    ],
    prompts: Annotated[list[str] | None, Field(description="User messages, answered each on its own")] = None,
    messages: Annotated[list[dict[str, Any]] | None, Field(description="Or one conversation [{role, content}]")] = None,
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 256,
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.7,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    num_samples: Annotated[int, Field(ge=1, le=64)] = 1,
    seed: int | None = None,
    backend: Annotated[BackendName | None, Field(description="Default: the job's, else embedded")] = None,
    base_url: Annotated[str | None, Field(description="For backend cluster")] = None,
) -> Annotated[CallToolResult, SampleAnswer]:
    """Try a base model or a checkpoint on a few prompts, with the chat format it was trained with.

    Use it to look at answers before and after training. Not for "is it better?": a few samples prove nothing.
    """
    from sota_ml_researcher.training.rendering import load_renderer
    from sota_ml_researcher.training.sampling_client import SampleOptions, base_model_of, sample

    conversations = _conversations(prompts, messages)
    target = resolve_target(model, backend, base_url)
    connection = backends.connect(target.backend, target.base_url)
    base_model = target.base_model or base_model_of(connection, target.wire_name)
    renderer = load_renderer(base_model, target.renderer)
    options = SampleOptions(max_tokens, temperature, top_p, num_samples, seed)
    found = sample(connection, renderer, target.wire_name, conversations, options)
    samples = [
        {"prompt": c[-1]["content"], "completions": [_completion(s) for s in answers]}
        for c, answers in zip(conversations, found, strict=True)
    ]
    following = (
        "start_sft(...) to train" if not target.is_checkpoint else "compare with the base model on the same prompts"
    )
    content = SampleAnswer(model=target.wire_name, backend=target.backend, samples=samples, next=following)
    return answer(content, _sample_text(samples, following))


class Target(BaseModel):
    """What a ``model`` argument means."""

    wire_name: str
    backend: BackendName
    base_url: str | None
    base_model: str | None
    renderer: str | None
    is_checkpoint: bool


def resolve_target(model: str, backend: BackendName | None, base_url: str | None) -> Target:
    """Find the weights that ``model`` names.

    Raises:
        JobError: If it names a job without a checkpoint.
        ModelError: If it names no model.
    """
    from sota_ml_researcher.jobs.worker import RECIPES
    from sota_ml_researcher.training.models import resolve_model

    if model.startswith("tinker://"):
        where: BackendName = backend or "embedded"
        return Target(
            wire_name=model, backend=where, base_url=base_url, base_model=None, renderer=None, is_checkpoint=True
        )
    job_id, _, which = model.partition(":")
    if job_id.rpartition("-")[0] in RECIPES and which in {"", "best", "final"}:
        return _job_target(job_id, which or "final")
    name = resolve_model(model).wire_name
    return Target(
        wire_name=name,
        backend=backend or "embedded",
        base_url=base_url,
        base_model=model,
        renderer=None,
        is_checkpoint=False,
    )


def _job_target(job_id: str, which: str) -> Target:
    job = Registry().get(job_id)
    trained = trained_model(job)
    return Target(
        wire_name=checkpoint_path(job, "sampler_path", which),
        backend=trained.backend,
        base_url=trained.base_url,
        base_model=trained.base_model,
        renderer=trained.renderer,
        is_checkpoint=True,
    )


def _conversations(prompts: list[str] | None, messages: list[dict[str, Any]] | None) -> list[list[Any]]:
    if (prompts is None) == (messages is None):
        raise ConfigError("give either prompts or messages", where="sample_model")
    if prompts is not None:
        if not prompts or len(prompts) > _MAX_PROMPTS:
            raise ConfigError(f"give 1 to {_MAX_PROMPTS} prompts, not {len(prompts)}", where="prompts")
        if any(not prompt.strip() for prompt in prompts):
            raise ConfigError("a prompt is empty", where="prompts")
        return [[{"role": "user", "content": prompt}] for prompt in prompts]
    bad = [m for m in messages or [{}] if not isinstance(m.get("content"), str) or not isinstance(m.get("role"), str)]
    if bad or not messages or messages[-1]["role"] != "user":
        raise ConfigError("messages must be [{role, content}, ...] and end with a user's turn", where="messages")
    return [list(messages)]


def _completion(completion: Any) -> dict[str, Any]:
    return {
        "text": completion.text,
        "stop_reason": completion.stop_reason,
        "tokens": completion.tokens,
        "logprob": completion.logprob,
    }


def _model_line(model: ModelLine) -> str:
    facts = [f"context {model.context_length:,}" if model.context_length else "", ", ".join(model.renderers[:2])]
    if model.learning_rate is not None:
        facts.append(f"learning rate {number(model.learning_rate)}")
    if model.usd_per_million is not None:
        prices = [f"{kind} ${usd:g}" for kind, usd in model.usd_per_million.items() if usd is not None]
        facts.append(f"{', '.join(prices)} a million tokens ({model.prices_of})")
    facts.append(f"retired {model.retired}" if model.retired else "")
    return f"{model.name}: " + ("; ".join(f for f in facts if f) or "no further facts")


def _sample_text(samples: list[dict[str, Any]], following: str) -> str:
    lines: list[str] = []
    for one in samples[:_SHOWN_PROMPTS]:
        lines.append(f"> {one['prompt'][:120]}")
        lines += [f"{c['text'][:240]} [{c['stop_reason']}, {c['tokens']} tokens]" for c in one["completions"][:2]]
    if len(samples) > _SHOWN_PROMPTS:
        lines.append(f"({len(samples) - _SHOWN_PROMPTS} more prompts in the structured answer)")
    return "\n".join([*lines, f"Next: {following}"])
