"""Whether prompts and answers fit the contexts of the models that are to answer, known before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, cast

from pydantic import BaseModel

from ..core.errors import ConfigError
from ..core.names import BackendName
from ..core.settings import Origin, Settings
from ..judges.prompt import EvalItem
from ..models.chat import Message
from ..models.configs import load_model_config
from ..models.hyperparameters import derive_max_seq_len
from ..models.model_ref import resolve_model
from ..models.renderers import load_renderer

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_KEY = "max_response_tokens"


class Answering(Protocol):
    """What a config says of the answers of its models."""

    @property
    def backend(self) -> BackendName: ...  # noqa: D102
    @property
    def renderer(self) -> str | None: ...  # noqa: D102
    @property
    def max_response_tokens(self) -> int: ...  # noqa: D102


def with_room(
    settings: Settings[ConfigT], sampled: Sequence[str], bases: Mapping[str, str], items: Sequence[EvalItem] | None
) -> tuple[Settings[ConfigT], list[str]]:
    """The settings with answers that fit beside every prompt, and what was changed for that.

    A length of answers that nobody set is lowered; one that the user set is refused.

    Args:
        settings: Resolved settings, of a config that is `Answering`.
        sampled: The models that will answer: base models, or ``tinker://`` paths.
        bases: The base models of such paths, as far as they are known here.
        items: The prompts; None where only the task knows them, which leaves half of the context to them.

    Raises:
        ConfigError: If an answer as long as the user allows does not fit beside a prompt, or a prompt fills a context.
        ModelError: If a model or its chat format cannot be had.
    """
    config = cast("Answering", settings.config)
    base_models = dict.fromkeys(base for model in sampled if (base := _base(model, bases)) is not None)
    rooms = [room for base in base_models if (room := _room(config, base, items)) is not None]
    if not rooms:
        return settings, []
    room, what = min(rooms)
    if room >= config.max_response_tokens or (items is None and settings.origins[_KEY].kind != "default"):
        return settings, []
    if settings.origins[_KEY].kind != "default" or room < 1:
        fix = f"Set it to {room} or less, or leave the prompt out" if room > 0 else "Leave the prompt out or shorten it"
        raise ConfigError(
            f"{what}; with {_KEY} {config.max_response_tokens} an answer does not fit",
            where=settings.place(_KEY),
            fix=fix,
        )
    lowered = settings.derived({_KEY: (room, Origin(kind="derived", reason=what))})
    return lowered, [f"answers may have {room} tokens, not {config.max_response_tokens}: {what}"]


def _base(model: str, bases: Mapping[str, str]) -> str | None:
    return bases.get(model) if model.startswith("tinker://") else model


def _room(config: Answering, base_model: str, items: Sequence[EvalItem] | None) -> tuple[int, str] | None:
    """Tokens left for an answer in the tightest case, and why; None where the model's context is not known here."""
    renderer = load_renderer(base_model, config.renderer)
    context = derive_max_seq_len(load_model_config(resolve_model(base_model)), config.backend).value
    if context is None:
        return None
    if items is None:
        return int(context) // 2, f"the context of {base_model} is {context}, and its prompts are not known yet"
    around = len(renderer.generation_prompt([Message(role="user", content="x")]))
    # A token is a byte at least, so only what might not fit is tokenized.
    crowded = [item for item in items if _bytes(item, around) + config.max_response_tokens > context]
    lengths = [(len(renderer.generation_prompt(item.messages)), item.line) for item in crowded]
    longest, line = max(lengths, default=(0, 0))
    return int(context) - longest, f"the prompt of line {line} has {longest} of the {context} tokens of {base_model}"


def _bytes(item: EvalItem, around: int) -> int:
    return sum(len(message["content"].encode()) + around for message in item.messages)
