"""Models that write text: a base model or checkpoint on a backend, or one behind a service."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..backends.connection import Connect, backend_errors
from ..backends.estimate import CHARS_PER_TOKEN
from ..backends.prices import load_prices
from ..core.errors import BackendError
from ..judges.base import JudgeCallError, JudgeUsage, Reply
from ..judges.judge_catalog import JudgePrice, JudgeRef, Price, catalog, judge_price
from ..judges.services import CallLimits, ServiceModel, service_judge
from ..models.chat import Message, control_pattern
from ..models.model_ref import resolve_model

if TYPE_CHECKING:
    from ..backends.sampling_client import Sampler
    from .generation_config import GenerationConfig

# Of a message's role and its ends in a chat template.
_MARKUP_TOKENS = 8
_BYTES_PER_TOKEN = 3
# Where the model is behind a service, and its tokenizer is not known.
_USUAL_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>")


class Writer(ABC):
    """A model that answers conversations in text.

    Attributes:
        identity: Everything besides conversation and seed that decides its answers.
        price: Per million tokens; None where it is free or not known.
        metered: Whether the backend's meter counts its tokens.
        control: Matches what spells a control token of its chat format, or one of the usual formats.
        samples_at_once: Whether one request gives several samples, so that its prompt is paid once.
    """

    identity: Sequence[Any]
    price: Price | None
    metered: bool
    control: re.Pattern[str] = _USUAL_CONTROL
    samples_at_once: bool

    def __init__(self, config: GenerationConfig) -> None:
        self._max_tokens = config.max_response_tokens
        self._temperature = config.temperature

    @abstractmethod
    async def check(self) -> None:
        """See that it can be asked. Costs nothing.

        Raises:
            ResearcherError: If it cannot; the message says what to do.
        """

    @abstractmethod
    async def write(self, messages: Sequence[Message], seed: int, samples: int = 1) -> list[Reply]:
        """Answer a conversation, several times where `samples_at_once`; the first reply's usage has the prompt.

        Raises:
            JudgeCallError: If this call failed and others may not.
            ResearcherError: If no call can work.
        """

    async def close(self) -> None:  # noqa: B027 (a backend's session ends with its process)
        """Close connections."""

    def cost(self, usage: JudgeUsage) -> float:
        """US dollars of one answer; 0 where no price is known."""
        if self.price is None:
            return 0.0
        table = catalog()
        cached = usage.cache_read_tokens * table.cache_read_share + usage.cache_write_tokens * table.cache_write_share
        return self.price.cost(usage.input_tokens + cached, usage.output_tokens)

    def most(self, messages: Sequence[Message], samples: int = 1) -> float:
        """US dollars that a request can cost: as many tokens as answers may have, after a prompt of this length."""
        return self.cost(JudgeUsage(self.most_tokens(messages), samples * self._max_tokens))

    def most_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens that a conversation has at most, by its bytes: other scripts have a token for every character."""
        return sum(len(m["content"].encode("utf-8", "replace")) // _BYTES_PER_TOKEN + _MARKUP_TOKENS for m in messages)


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation, estimated from its characters."""
    return round(sum(len(m["content"]) / CHARS_PER_TOKEN + _MARKUP_TOKENS for m in messages))


class BackendWriter(Writer):
    """A base model or checkpoint on a Tinker backend, the embedded engine among them."""

    metered = True
    samples_at_once = True

    def __init__(self, config: GenerationConfig, connect: Connect) -> None:
        """Find the model and its chat format.

        Raises:
            ResearcherError: If there is no such model or checkpoint, or the backend does not answer.
        """
        from ..backends.sampling_client import renderer_of
        from ..models.renderers import load_renderer

        super().__init__(config)
        self._backend = connect(config.backend, config.base_url)
        base, weights = str(config.base_model), config.weights
        is_checkpoint = weights.startswith("tinker://")
        self._weights = weights if is_checkpoint else resolve_model(weights).wire_name
        # A checkpoint is asked in the chat format that it was trained with.
        trained_with = renderer_of(self._backend, weights) if is_checkpoint else None
        self._renderer = load_renderer(base, config.renderer or trained_with)
        self.control = control_pattern(self._renderer.text_of([token]) for token in self._renderer.special_tokens)
        self._sampler: Sampler | None = None
        place = [config.backend, config.base_url or ""]
        self.identity = [*place, self._weights, self._renderer.name, config.max_response_tokens, config.temperature]
        self.price = backend_price(config.backend, base)

    def most_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation, counted."""
        return len(self._renderer.generation_prompt(messages))

    async def check(self) -> None:
        """Open a session for the weights (see `Writer.check`)."""
        from ..backends.sampling_client import open_sampler

        with backend_errors(self._backend):
            self._sampler = await open_sampler(self._backend, self._weights)

    async def write(self, messages: Sequence[Message], seed: int, samples: int = 1) -> list[Reply]:
        """Sample in one request (see `Writer.write`)."""
        import tinker

        assert self._sampler is not None, "check opens it"
        prompt = self._renderer.generation_prompt(messages)
        params = tinker.SamplingParams(
            max_tokens=self._max_tokens, temperature=self._temperature or 0.0, seed=seed, stop=self._renderer.stop
        )
        try:
            with backend_errors(self._backend):
                sequences = await self._sampler.sample(tinker.ModelInput.from_ints(prompt), samples, params)
        except BackendError as error:
            # The backend answers and refuses this one request, for example because it exceeds the model's context.
            if isinstance(error.__cause__, tinker.RequestFailedError):
                raise JudgeCallError(str(error.problem)[:200], transient=False) from error
            raise
        replies: list[Reply] = []
        for sequence in sequences:
            usage = JudgeUsage(0 if replies else len(prompt), len(sequence.tokens))
            text = self._renderer.decode(sequence.tokens)
            replies.append(Reply(None, text, str(sequence.stop_reason), self._weights, usage))
        return replies


class ServiceWriter(Writer):
    """A model of Anthropic or behind an OpenAI-compatible endpoint."""

    metered = False
    samples_at_once = False

    def __init__(self, config: GenerationConfig, ref: JudgeRef) -> None:
        """Make the client.

        Raises:
            BackendError: If its key is not set.
            MissingDependencyError: If the evals extra is not installed.
        """
        super().__init__(config)
        limits = CallLimits(config.max_response_tokens, config.model_timeout_s)
        self._model: ServiceModel = service_judge(ref, {}, limits, base_url=config.model_base_url)
        self.identity = [ref.kind, ref.model, config.model_base_url, config.max_response_tokens, config.temperature]
        self.price = judge_price(ref, config.model_price)
        self._caches = ref.kind == "anthropic"

    def most(self, messages: Sequence[Message], samples: int = 1) -> float:
        """US dollars that a request can cost (see `Writer.most`); writing a system prompt to a cache costs more."""
        told = self.most_tokens(messages)
        cached = told if self._caches and messages[0]["role"] == "system" else 0
        return self.cost(JudgeUsage(told - cached, samples * self._max_tokens, cache_write_tokens=cached))

    async def check(self) -> None:
        """Look the model up with the key at hand (see `Writer.check`)."""
        await self._model.check()

    async def write(self, messages: Sequence[Message], seed: int, samples: int = 1) -> list[Reply]:
        """Ask for one answer (see `Writer.write`)."""
        assert samples == 1, "a service is asked for one at a time"
        if any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            raise JudgeCallError("a prompt with tool calls is not sent to a service", transient=False)
        plain = [Message(role=message["role"], content=message["content"]) for message in messages]
        return [await self._model.write(plain, temperature=self._temperature, seed=seed)]

    async def close(self) -> None:
        """Close connections."""
        await self._model.close()


def make_writer(config: GenerationConfig, connect: Connect) -> Writer:
    """The model that a resolved config names.

    Raises:
        ResearcherError: If it cannot be had.
    """
    return BackendWriter(config, connect) if config.service is None else ServiceWriter(config, config.service)


def backend_price(backend: str, base_model: str) -> Price | None:
    """What a backend charges for sampling a model; None where it is free or the price is not known."""
    price = load_prices().model(backend, base_model)
    if price is None or price.prefill is None or price.sample is None:
        return None
    return Price(price.prefill, price.sample, str(price.as_of))


def price_of_judge(ref: JudgeRef, configured: JudgePrice | None, backend: str) -> Price | None:
    """What a judge's tokens cost: a service's price, or the backend's for the model that is sampled there."""
    if ref.kind == "tinker":
        return (
            Price(configured.input, configured.output, "the config")
            if configured
            else backend_price(backend, ref.model)
        )
    return judge_price(ref, configured)
