# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""What a request asks about its prompt: log-probabilities, top candidates, given candidates, alternatives.

Row i of the hidden states predicts token i + 1; nothing predicts token 0. Axes: ``T`` prompt tokens, ``K`` candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sota_ml_researcher.engine.interface import RequestRejectedError, SampleSettings
from sota_ml_researcher.engine.model_head import block_rows, logits_of, score
from sota_ml_researcher.engine.model_parts import Head, Pair
from sota_ml_researcher.engine.packing import Limits
from sota_ml_researcher.engine.sampling_choice import Cuts, RandomRow, choose, uniforms


def wants_prompt(request: SampleSettings) -> bool:
    """Whether anything about the prompt is asked."""
    return bool(
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.prompt_alt_tokens_k
        or request.target_prompt_TK is not None
    )


def check_prompt_questions(request: SampleSettings, limits: Limits, where: str) -> None:
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
    request: SampleSettings, hidden_TD: Tensor, head: Head, pair: Pair | None, scaling: float
) -> dict[str, Any]:
    """Fields of ``SampleOutput`` about the prompt, nan (and token 0) where there is no value."""
    length = len(request.prompt_T)
    first = 0 if request.prompt_logprobs_last_n is None else length - 1 - request.prompt_logprobs_last_n
    answers = _empty_answers(request, length)
    if list(answers) == ["prompt_logprobs_T"]:
        rows_M = torch.arange(length - 1 - first, device=hidden_TD.device)
        targets_M = torch.from_numpy(request.prompt_T[first + 1 :].astype(np.int64)).to(hidden_TD.device)
        scored = score(hidden_TD[first : length - 1], rows_M, targets_M, head, pair, scaling, keep=False)
        answers["prompt_logprobs_T"][first + 1 :] = scored.logprobs_M.cpu().numpy()
        return answers
    random = RandomRow(request.seed, -1 & 0xFFFF_FFFF)
    start_all = 0 if request.target_prompt_TK is not None or request.prompt_alt_tokens_k else first
    size = block_rows(head)
    for start in range(start_all, length - 1, size):
        stop = min(start + size, length - 1)
        logits = logits_of(hidden_TD[start:stop], head, pair, scaling).float()
        logprobs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        _fill(request, answers, logprobs, logits, start, first, random)
    return answers


def _empty_answers(request: SampleSettings, length: int) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    if request.prompt_logprobs:
        answers["prompt_logprobs_T"] = np.full(length, np.nan, dtype=np.float32)
    if k := request.topk_prompt_logprobs:
        answers["topk_prompt_tokens_TK"] = np.zeros((length, k), dtype=np.int64)
        answers["topk_prompt_logprobs_TK"] = np.full((length, k), np.nan, dtype=np.float32)
    if request.target_prompt_TK is not None:
        answers["target_prompt_logprobs_TK"] = np.full(request.target_prompt_TK.shape, np.nan, dtype=np.float32)
    if k := request.prompt_alt_tokens_k:
        answers["alt_tokens_TK"] = np.zeros((length - 1, k), dtype=np.int64)
        answers["alt_logprobs_TK"] = np.zeros((length - 1, k), dtype=np.float32)
    return answers


def _fill(
    request: SampleSettings,
    answers: dict[str, Any],
    logprobs: Tensor,
    logits: Tensor,
    start: int,
    first: int,
    random: RandomRow,
) -> None:
    """Answer for the predictions of rows ``start`` and on; those before ``first`` are not scored."""
    stop = start + len(logprobs)
    skip = max(0, first - start)
    if "prompt_logprobs_T" in answers and skip < len(logprobs):
        actual = torch.from_numpy(request.prompt_T[start + 1 + skip : stop + 1].astype(np.int64)).to(logprobs.device)
        scored = logprobs[skip:].gather(1, actual.unsqueeze(-1)).squeeze(-1)
        answers["prompt_logprobs_T"][start + 1 + skip : stop + 1] = scored.cpu().numpy()
    if "topk_prompt_tokens_TK" in answers and skip < len(logprobs):
        best = logprobs[skip:].topk(request.topk_prompt_logprobs, dim=-1)
        answers["topk_prompt_tokens_TK"][start + 1 + skip : stop + 1] = best.indices.cpu().numpy()
        answers["topk_prompt_logprobs_TK"][start + 1 + skip : stop + 1] = best.values.cpu().numpy()
    if request.target_prompt_TK is not None:
        wanted = request.target_prompt_TK[start:stop]
        found = logprobs.gather(1, torch.from_numpy(np.maximum(wanted, 0)).to(logprobs.device)).cpu().numpy()
        answers["target_prompt_logprobs_TK"][start:stop] = np.where(wanted >= 0, found, np.nan)
    if k := request.prompt_alt_tokens_k:
        tokens, values = _alternatives(logits, k, request.temperature, random)
        answers["alt_tokens_TK"][start:stop] = tokens.cpu().numpy()
        answers["alt_logprobs_TK"][start:stop] = values.cpu().numpy()


def _alternatives(logits: Tensor, k: int, temperature: float, random: RandomRow) -> tuple[Tensor, Tensor]:
    """K independent draws a position, at the request's temperature and uncut."""
    rows = len(logits)
    cuts = Cuts.of([temperature] * rows, [1.0] * rows, [-1] * rows, logits.shape[1]).to(logits.device)
    drawn = [choose(logits, cuts, uniforms([random] * rows, logits.device)) for _ in range(k)]
    return torch.stack([tokens for tokens, _ in drawn], dim=1), torch.stack([values for _, values in drawn], dim=1)
