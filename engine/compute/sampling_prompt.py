# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""What a request asks about its prompt: log-probabilities, top candidates, given candidates, alternatives.

Row i of the hidden states predicts token i + 1; nothing predicts token 0. Axes: ``T`` prompt tokens, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import RequestRejectedError, SampleSettings
from .backbone import Head, Pair
from .head import block_rows, logits_of, score
from .packing import Limits
from .sampling_choice import Cuts, RandomRow, choose, uniforms


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
    asked: Sequence[tuple[SampleSettings, NDArray[np.int64]]],
    hidden_ND: Tensor,
    head: Head,
    pair: Pair | None,
    scaling: float,
) -> list[dict[str, Any]]:
    """Fields of ``SampleOutput`` about each prompt, whose tokens' hidden states are at the given places of N.

    Log-probabilities, which is all that most ask, are computed for all at once.
    """
    answers = [_empty_answers(request, len(request.prompt_T)) for request, _ in asked]
    plain = [index for index, answer in enumerate(answers) if list(answer) == ["prompt_logprobs_T"]]
    if plain:
        rows = [asked[index][1][_first(asked[index][0]) : -1] for index in plain]
        targets = [asked[index][0].prompt_T[_first(asked[index][0]) + 1 :] for index in plain]
        rows_M, targets_M = (
            torch.from_numpy(np.concatenate(each).astype(np.int64)).to(hidden_ND.device) for each in (rows, targets)
        )
        scored = score(hidden_ND, rows_M, targets_M, head, pair, scaling, keep=False)
        for index, values in zip(plain, torch.split(scored.logprobs_M, [len(each) for each in rows]), strict=True):
            answers[index]["prompt_logprobs_T"][_first(asked[index][0]) + 1 :] = values.cpu().numpy()
    for index, (request, place) in enumerate(asked):
        if index not in plain:
            hidden_TD = hidden_ND[torch.from_numpy(place).to(hidden_ND.device)]
            _fill_all(request, answers[index], hidden_TD, head, pair, scaling)
    return answers


def _first(request: SampleSettings) -> int:
    """The first row whose prediction is scored."""
    last = request.prompt_logprobs_last_n
    return 0 if last is None else len(request.prompt_T) - 1 - last


def _fill_all(
    request: SampleSettings, answers: dict[str, Any], hidden_TD: Tensor, head: Head, pair: Pair | None, scaling: float
) -> None:
    """Values where there are any; nan (and token 0) stay where there is none."""
    length = len(request.prompt_T)
    first = _first(request)
    random = RandomRow(request.seed, -1 & 0xFFFF_FFFF)
    start_all = 0 if request.target_prompt_TK is not None or request.prompt_alt_tokens_k else first
    size = block_rows(head)
    for start in range(start_all, length - 1, size):
        stop = min(start + size, length - 1)
        logits = logits_of(hidden_TD[start:stop], head, pair, scaling).float()
        logprobs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        _fill(request, answers, logprobs, logits, start, first, random)


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
