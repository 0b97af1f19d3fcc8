# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""What a request asks about its prompt: log-probabilities, top candidates, given candidates, alternatives.

Row i of the hidden states predicts token i + 1; nothing predicts token 0. Axes: ``T`` prompt tokens, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import RequestRejectedError, SampleOutput, SampleSettings
from .head import LoraHead
from .packing import ModelLimits
from .sampling_choice import Cuts, RandomRow, choose, uniforms


def wants_prompt(request: SampleSettings) -> bool:
    """Whether anything about the prompt is asked."""
    return bool(
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.prompt_alt_tokens_k
        or request.target_prompt_TK is not None
    )


def check_prompt_questions(request: SampleSettings, limits: ModelLimits, where: str) -> None:
    """Refuse questions that cannot be answered.

    Raises:
        RequestRejectedError: Naming the setting.
    """
    length = len(request.prompt_T)
    last = request.prompt_logprobs_last_n
    if last is not None and not (request.prompt_logprobs and 1 <= last <= length - 1):
        raise RequestRejectedError(
            f"{where}: prompt_logprobs_last_n needs prompt_logprobs and a value from 1 to {length - 1}, got {last}"
        )
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        value = getattr(request, name)
        if not 0 <= value <= limits.vocabulary:
            raise RequestRejectedError(f"{where}: {name} must be from 0 to {limits.vocabulary}, got {value}")
    target = request.target_prompt_TK
    if target is None:
        return
    if target.ndim != 2 or target.shape[0] != length - 1:
        raise RequestRejectedError(f"{where}: target_prompt_logprobs has shape {target.shape}, not [{length - 1}, K]")
    if ((target < -1) | (target >= limits.vocabulary)).any():
        raise RequestRejectedError(f"{where}: target_prompt_logprobs has a token outside the vocabulary")


def prompt_answers(
    asked: Sequence[tuple[SampleSettings, NDArray[np.int64]]], hidden_ND: Tensor, head: LoraHead
) -> list[SampleOutput]:
    """What is asked about each prompt, whose tokens' hidden states are at the given places of N; no continuations.

    Log-probabilities, which is all that most ask, are computed for all at once.
    """
    answers = [_empty_answers(request) for request, _ in asked]
    plain = [index for index, (request, _) in enumerate(asked) if _wants_logprobs_alone(request)]
    if plain:
        rows = [asked[index][1][_first(asked[index][0]) : -1] for index in plain]
        targets = [asked[index][0].prompt_T[_first(asked[index][0]) + 1 :] for index in plain]
        rows_M, targets_M = (
            torch.from_numpy(np.concatenate(each).astype(np.int64)).to(hidden_ND.device) for each in (rows, targets)
        )
        logprobs_M = head.score(hidden_ND, rows_M, targets_M, keep=False).logprobs_M
        for index, values in zip(plain, torch.split(logprobs_M, [len(each) for each in rows]), strict=True):
            _array(answers[index].prompt_logprobs_T)[_first(asked[index][0]) + 1 :] = values.cpu().numpy()
    for index, (request, place) in enumerate(asked):
        if index not in plain:
            _fill_all(request, answers[index], hidden_ND[torch.from_numpy(place).to(hidden_ND.device)], head)
    return answers


def _wants_logprobs_alone(request: SampleSettings) -> bool:
    return wants_prompt(request) and not wants_prompt(replace(request, prompt_logprobs=False))


def _first(request: SampleSettings) -> int:
    """The first row whose prediction is scored."""
    last = request.prompt_logprobs_last_n
    return 0 if last is None else len(request.prompt_T) - 1 - last


def _empty_answers(request: SampleSettings) -> SampleOutput:
    """Arrays for what is asked: nan (and token 0) where there is no value."""
    length, topk, alternatives = len(request.prompt_T), request.topk_prompt_logprobs, request.prompt_alt_tokens_k
    target = request.target_prompt_TK
    return SampleOutput(
        [],
        prompt_logprobs_T=np.full(length, np.nan, np.float32) if request.prompt_logprobs else None,
        topk_prompt_tokens_TK=np.zeros((length, topk), np.int64) if topk else None,
        topk_prompt_logprobs_TK=np.full((length, topk), np.nan, np.float32) if topk else None,
        target_prompt_logprobs_TK=None if target is None else np.full(target.shape, np.nan, np.float32),
        alt_tokens_TK=np.zeros((length - 1, alternatives), np.int64) if alternatives else None,
        alt_logprobs_TK=np.zeros((length - 1, alternatives), np.float32) if alternatives else None,
    )


def _fill_all(request: SampleSettings, answers: SampleOutput, hidden_TD: Tensor, head: LoraHead) -> None:
    """Write the values of every position, a block at a time."""
    last = len(request.prompt_T) - 1
    random = RandomRow(request.seed, -1 & 0xFFFF_FFFF)
    everywhere = request.target_prompt_TK is not None or request.prompt_alt_tokens_k
    for start in range(0 if everywhere else _first(request), last, head.block_rows):
        logits = head.logits(hidden_TD[start : min(start + head.block_rows, last)]).float()
        _fill(request, answers, logits, start, random)


def _fill(request: SampleSettings, answers: SampleOutput, logits: Tensor, start: int, random: RandomRow) -> None:
    """Answer for the predictions of rows ``start`` and on; those before ``_first`` are not scored."""
    logprobs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    stop = start + len(logprobs)
    skip = max(0, _first(request) - start)
    scored = slice(start + 1 + skip, stop + 1)
    if answers.prompt_logprobs_T is not None and skip < len(logprobs):
        actual = torch.from_numpy(request.prompt_T[scored].astype(np.int64)).to(logprobs.device)
        answers.prompt_logprobs_T[scored] = logprobs[skip:].gather(1, actual.unsqueeze(-1)).squeeze(-1).cpu().numpy()
    if request.topk_prompt_logprobs and skip < len(logprobs):
        best = logprobs[skip:].topk(request.topk_prompt_logprobs, dim=-1)
        _array(answers.topk_prompt_tokens_TK)[scored] = best.indices.cpu().numpy()
        _array(answers.topk_prompt_logprobs_TK)[scored] = best.values.cpu().numpy()
    if request.target_prompt_TK is not None:
        wanted = request.target_prompt_TK[start:stop]
        values = logprobs.gather(1, torch.from_numpy(np.maximum(wanted, 0)).to(logprobs.device)).cpu().numpy()
        _array(answers.target_prompt_logprobs_TK)[start:stop] = np.where(wanted >= 0, values, np.nan)
    if request.prompt_alt_tokens_k:
        tokens, values = _alternatives(logits, request.prompt_alt_tokens_k, request.temperature, random)
        _array(answers.alt_tokens_TK)[start:stop] = tokens.cpu().numpy()
        _array(answers.alt_logprobs_TK)[start:stop] = values.cpu().numpy()


def _array(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None
    return array


def _alternatives(logits: Tensor, k: int, temperature: float, random: RandomRow) -> tuple[Tensor, Tensor]:
    """K independent draws per position, at the request's temperature and uncut."""
    rows = len(logits)
    cuts = Cuts.of([temperature] * rows, [1.0] * rows, [-1] * rows, logits.shape[1], logits.device)
    drawn = [choose(logits, cuts, uniforms([random] * rows, logits.device)) for _ in range(k)]
    return torch.stack([tokens for tokens, _ in drawn], dim=1), torch.stack([values for _, values in drawn], dim=1)
