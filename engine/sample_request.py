"""Reading a sampling request, and bounding what it asks for before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tinker import types

from .interface import IntArray, RequestRejectedError, SampleSettings
from .json_fields import MOST_SEED, MOST_TOKEN, Fields, integers_of, shown, tokens_of
from .wire import MOST_CELLS, SparseLayout, sparse_shape

_MOST_SAMPLES = 1 << 16
_MOST_DRAWS = 128
_MOST_STOPS, _LONGEST_STOP = 256, 1024


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What a ``SampleRequest`` body asks for.

    ``settings`` are complete but for the stop tokens where ``ends_implicitly``: then the model's own ends stop it.
    ``target_layout`` is that of ``target_prompt_logprobs`` where it came sparse, and is answered so.
    """

    settings: SampleSettings
    ends_implicitly: bool
    target_layout: SparseLayout | None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> SampleRequest:
        """Read a body by hand: validating a long prompt token by token would cost more than sending it.

        Raises:
            RequestRejectedError: If something in it is unknown, of the wrong type, or out of range.
        """
        asked = Fields(body, "the request", types.SampleRequest.model_fields)
        params = Fields(asked.mapping("sampling_params"), "sampling_params", types.SamplingParams.model_fields)
        if asked.flag("record_stability_info"):
            raise RequestRejectedError(
                "this engine records no stability information: it has no stable_reinforce. Leave record_stability_info "
                "out"
            )
        prompt = _prompt(asked.mapping("prompt"))
        stop_tokens, stop_strings = _stops(params.get("stop"))
        target, layout = _target(asked.get("target_prompt_logprobs"), len(prompt))
        settings = SampleSettings(
            prompt_T=prompt,
            num_samples=asked.whole("num_samples", 1, 1, _MOST_SAMPLES),
            max_tokens=params.optional_whole("max_tokens", 1, MOST_TOKEN),
            temperature=params.number("temperature", 1.0),
            top_p=params.number("top_p", 1.0),
            top_k=params.whole("top_k", -1, -1, MOST_TOKEN),
            seed=params.optional_whole("seed", -(2**63), MOST_SEED),
            stop_tokens=stop_tokens,
            stop_strings=stop_strings,
            prompt_logprobs=asked.flag("prompt_logprobs"),
            prompt_logprobs_last_n=asked.optional_whole("prompt_logprobs_last_n", 1, MOST_TOKEN),
            topk_prompt_logprobs=asked.whole("topk_prompt_logprobs", 0, 0, MOST_TOKEN),
            topk_sample_logprobs=asked.whole("topk_sample_logprobs", 0, 0, MOST_TOKEN),
            target_prompt_TK=target,
            prompt_alt_tokens_k=asked.whole("prompt_alt_tokens_k", 0, 0, _MOST_DRAWS),
        )
        return cls(settings, params.get("stop") is None, layout)


def _prompt(prompt: Mapping[str, Any]) -> IntArray:
    chunks = Fields(prompt, "the prompt", types.ModelInput.model_fields).get("chunks")
    if not isinstance(chunks, list):
        raise RequestRejectedError("the prompt must have 'chunks', a list")
    parts = [_chunk(chunk) for chunk in cast("list[Any]", chunks)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _chunk(chunk: Any) -> IntArray:
    fields = cast("dict[str, Any]", chunk) if isinstance(chunk, dict) else {}
    if "tokens" not in fields:
        raise RequestRejectedError("the prompt has an image or audio chunk; this engine samples text")
    if not fields.keys() <= {"tokens", "type"} or fields.get("type", "encoded_text") != "encoded_text":
        raise RequestRejectedError("a chunk of the prompt has tokens and what belongs to another kind of chunk")
    return tokens_of(fields["tokens"], "the prompt")


def _stops(stop: object) -> tuple[frozenset[int], tuple[str, ...]]:
    every = cast("list[Any]", [stop] if isinstance(stop, str) else [] if stop is None else stop)
    if not isinstance(cast("object", every), list) or not all(type(one) in (str, int) for one in every):
        raise RequestRejectedError("'stop' must be text, a list of texts, or a list of token ids")
    strings = tuple(one for one in every if isinstance(one, str))
    if len(strings) > _MOST_STOPS or any(len(text.encode()) > _LONGEST_STOP for text in strings):
        raise RequestRejectedError(f"'stop' takes at most {_MOST_STOPS} texts, each of at most {_LONGEST_STOP} bytes")
    tokens = tokens_of([one for one in every if not isinstance(one, str)], "'stop'")
    return frozenset(tokens.tolist()), strings


def _target(tensor: object, prompt: int) -> tuple[IntArray | None, SparseLayout | None]:
    if tensor is None:
        return None, None
    where = "target_prompt_logprobs"
    if not isinstance(tensor, dict):
        raise RequestRejectedError(f"'{where}' must be a tensor, got {shown(tensor)}")
    fields = Fields(cast("dict[str, Any]", tensor), where, ("data", "dtype", "shape", *_SPARSE))
    if fields.get("dtype") not in (None, "int64"):
        raise RequestRejectedError(f"{where} must be int64")
    values = integers_of(fields.get("data"), f"{where}: data", -1)
    shape = tuple(integers_of(fields.get("shape"), f"{where}: shape", 0).tolist()) if fields.get("shape") else None
    rows, columns = (fields.get(key) for key in _SPARSE)
    if (rows is None) != (columns is None):
        raise RequestRejectedError(f"{where}: {_SPARSE[0]} and {_SPARSE[1]} belong together")
    if rows is None:
        shape = values.shape if shape is None else shape
        if math.prod(shape) != values.size:
            raise RequestRejectedError(f"{where}: its data do not fit its shape {list(shape)}")
        return values.reshape(shape), None
    if shape is None or shape[:1] != (prompt - 1,):
        raise RequestRejectedError(f"{where}: the shape must be [{prompt - 1}, K], K targets for each place")
    layout = SparseLayout(integers_of(rows, where, 0), integers_of(columns, where, 0), sparse_shape(shape, where))
    return layout.dense(values, -1, where), layout


_SPARSE = ("sparse_crow_indices", "sparse_col_indices")


def check_answer(settings: SampleSettings, context: int) -> None:
    """Refuse a request whose answer would not fit: every sampled token, and what is asked of the prompt's.

    Args:
        settings: The request.
        context: Positions of the model, where the request leaves the length to it.

    Raises:
        RequestRejectedError: If so.
    """
    length = len(settings.prompt_T)
    sampled = settings.num_samples * min(settings.max_tokens or context, context)
    target = settings.target_prompt_TK
    of_prompt = settings.topk_prompt_logprobs + settings.prompt_alt_tokens_k + (0 if target is None else 1)
    cells = sampled * (1 + settings.topk_sample_logprobs) + length * of_prompt + (0 if target is None else target.size)
    if cells > MOST_CELLS:
        raise RequestRejectedError(
            f"the answer could have {cells:,} entries, at most {MOST_CELLS:,} are sent: ask for fewer samples, "
            "shorter ones, or fewer log-probabilities"
        )
