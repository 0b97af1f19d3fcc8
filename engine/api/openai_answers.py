"""What was sampled, in the shapes of the OpenAI API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..interface import Continuation, SampleOutput, SampleSettings


@dataclass(frozen=True, slots=True)
class Choices:
    """What all choices of one prompt share."""

    tokenizer: Any
    settings: SampleSettings
    logprobs: bool = False
    echo: bool = False

    def text_of(self, tokens: Sequence[int]) -> str:
        """Decoded text without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def raw(self, token: int) -> str:
        """One token's own text."""
        return str(self.tokenizer.decode([int(token)], skip_special_tokens=False))

    def ended(self, one: Continuation) -> str:
        """The text of a continuation up to its stop string or stop token, which is left out."""
        tokens = one.tokens_T.tolist()
        if tokens and tokens[-1] in self.settings.stop_tokens:
            tokens = tokens[:-1]
        text = self.text_of(tokens)
        places = [text.find(stop) for stop in self.settings.stop_strings if stop in text]
        return text[: min(places)] if places else text


def chat_choice(choices: Choices, index: int, one: Continuation) -> dict[str, Any]:
    """A choice of ``chat/completions``."""
    choice: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": choices.ended(one)},
        "finish_reason": one.stop_reason,
        "logprobs": None,
    }
    if choices.logprobs:
        content = [_scored(choices, token, logprob) for token, logprob in _pairs(one)]
        for entry, best in zip(content, _best(one), strict=True):
            entry["top_logprobs"] = [_scored(choices, token, logprob) for token, logprob in best]
        choice["logprobs"] = {"content": content}
    return choice


def _scored(choices: Choices, token: int, logprob: float) -> dict[str, Any]:
    text = choices.raw(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _pairs(one: Continuation) -> list[tuple[int, float]]:
    return list(zip(one.tokens_T.tolist(), one.logprobs_T.tolist(), strict=True))


def _best(one: Continuation) -> list[list[tuple[int, float]]]:
    if one.topk_tokens_TK is None or one.topk_logprobs_TK is None:
        return [[] for _ in one.tokens_T]
    return [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(one.topk_tokens_TK.tolist(), one.topk_logprobs_TK.tolist(), strict=True)
    ]


def text_choice(choices: Choices, index: int, one: Continuation, output: SampleOutput) -> dict[str, Any]:
    """A choice of ``completions``; with ``echo`` the prompt comes first, and its log-probabilities too."""
    prompt: list[int] = choices.settings.prompt_T.tolist() if choices.echo else []
    choice: dict[str, Any] = {
        "index": index,
        "text": choices.text_of(prompt) * bool(prompt) + choices.ended(one),
        "finish_reason": one.stop_reason,
        "logprobs": None,
    }
    if choices.logprobs:
        before = output.prompt_logprobs_T
        scores = [None if before is None or math.isnan(before[i]) else float(before[i]) for i in range(len(prompt))]
        tokens = [choices.raw(token) for token in [*prompt, *one.tokens_T.tolist()]]
        tops: list[dict[str, float] | None] = [None] * len(prompt)
        tops += [{choices.raw(token): value for token, value in best} for best in _best(one)]
        choice["logprobs"] = {
            "tokens": tokens,
            "token_logprobs": [*scores, *one.logprobs_T.tolist()],
            "top_logprobs": tops if one.topk_tokens_TK is not None else None,
            "text_offset": [sum(map(len, tokens[:place])) for place in range(len(tokens))],
        }
    return choice
