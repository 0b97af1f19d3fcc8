"""What was sampled, in the shapes of the OpenAI API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from ..interface import Continuation, SampleOutput, SampleSettings


class CompletionUsage(BaseModel):
    """The ``usage`` of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def add(self, prompt_tokens: int, output: SampleOutput) -> None:
        """Count one prompt and all its continuations."""
        made = sum(len(one.tokens_T) for one in output.continuations)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += made
        self.total_tokens += prompt_tokens + made


class ScoredToken(BaseModel):
    """A token's text with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class SampledToken(ScoredToken):
    """A token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a choice of ``chat/completions``."""

    content: list[SampledToken]


class ChatMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """A choice of ``chat/completions``."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None


class TextLogprobs(BaseModel):
    """Log-probabilities of a choice of ``completions``; None for a prompt's first token, which nothing predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """A choice of ``completions``."""

    index: int
    text: str
    finish_reason: str
    logprobs: TextLogprobs | None


@dataclass(frozen=True, slots=True)
class Choices:
    """What all choices of one prompt share."""

    tokenizer: Any
    settings: SampleSettings
    logprobs: bool = False
    echo: bool = False

    def chat(self, index: int, one: Continuation) -> ChatChoice:
        """A choice of ``chat/completions``."""
        logprobs = None
        if self.logprobs:
            tokens = zip(one.tokens_T.tolist(), one.logprobs_T.tolist(), _best(one), strict=True)
            content = [
                SampledToken(**dict(self._scored(token, logprob)), top_logprobs=[self._scored(*each) for each in best])
                for token, logprob, best in tokens
            ]
            logprobs = ChatLogprobs(content=content)
        message = ChatMessage(content=self._ended(one))
        return ChatChoice(index=index, message=message, finish_reason=one.stop_reason, logprobs=logprobs)

    def text(self, index: int, one: Continuation, output: SampleOutput) -> TextChoice:
        """A choice of ``completions``; with ``echo`` the prompt comes first, and its log-probabilities too."""
        prompt: list[int] = self.settings.prompt_T.tolist() if self.echo else []
        logprobs = None
        if self.logprobs:
            before = output.prompt_logprobs_T
            scores = [None if before is None or math.isnan(before[i]) else float(before[i]) for i in range(len(prompt))]
            tokens = [self._raw(token) for token in [*prompt, *one.tokens_T.tolist()]]
            tops: list[dict[str, float] | None] = [None] * len(prompt)
            tops += [{self._raw(token): value for token, value in best} for best in _best(one)]
            logprobs = TextLogprobs(
                tokens=tokens,
                token_logprobs=[*scores, *one.logprobs_T.tolist()],
                top_logprobs=tops if one.topk_tokens_TK is not None else None,
                text_offset=[sum(map(len, tokens[:place])) for place in range(len(tokens))],
            )
        text = (self._text_of(prompt) if prompt else "") + self._ended(one)
        return TextChoice(index=index, text=text, finish_reason=one.stop_reason, logprobs=logprobs)

    def _text_of(self, tokens: Sequence[int]) -> str:
        """Decoded text without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _raw(self, token: int) -> str:
        """One token's own text."""
        return str(self.tokenizer.decode([int(token)], skip_special_tokens=False))

    def _scored(self, token: int, logprob: float) -> ScoredToken:
        text = self._raw(token)
        return ScoredToken(token=text, logprob=logprob, bytes=list(text.encode()))

    def _ended(self, one: Continuation) -> str:
        """The text of a continuation up to its stop string or stop token, which is left out."""
        tokens = one.tokens_T.tolist()
        if tokens and tokens[-1] in self.settings.stop_tokens:
            tokens = tokens[:-1]
        text = self._text_of(tokens)
        places = [text.find(stop) for stop in self.settings.stop_strings if stop in text]
        return text[: min(places)] if places else text


def _best(one: Continuation) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each position with their log-probabilities; none where they were not asked for."""
    if one.topk_tokens_TK is None or one.topk_logprobs_TK is None:
        return [[] for _ in one.tokens_T]
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(one.topk_tokens_TK.tolist(), one.topk_logprobs_TK.tolist(), strict=True)
    ]
