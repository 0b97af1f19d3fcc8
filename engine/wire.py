"""Between the SDK's wire format and the engine's own types: protobuf and JSON on one side, numpy on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from .interface import (
    AdamSettings,
    Continuation,
    LossResult,
    RequestRejectedError,
    SampleOutput,
    SampleSettings,
    TrainItem,
)

PROTOBUF = "application/x-protobuf"
_DTYPES: dict[int, type[Any]] = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64, pb.DTYPE_INT32: np.int32}
_MASK_LOGPROB = -99999.0


@dataclass(frozen=True, slots=True)
class LossRequest:
    """A forward-backward request: its address read, its data still as they came.

    The data are decoded when their turn comes: a request that cannot be decoded then fails in its place in the order
    of its adapter, and the ones after it still run.
    """

    message: Any
    model_id: str
    seq_id: int
    loss: str
    forward_only: bool

    @classmethod
    def parse(cls, body: bytes) -> LossRequest:
        """Read a ``ForwardBackwardRequest``.

        Raises:
            RequestRejectedError: If the bytes are not such a message.
        """
        message = pb.ForwardBackwardRequest()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise RequestRejectedError("the body is not a ForwardBackwardRequest message") from error
        return cls(message, message.model_id, message.seq_id, message.loss_fn, message.forward_only)

    def config(self) -> dict[str, Any]:
        """The loss's settings.

        Raises:
            RequestRejectedError: If one is text that no loss takes.
        """
        config: dict[str, Any] = {name: float(value) for name, value in self.message.loss_fn_config.items()}
        for name, value in self.message.loss_fn_config_v2.items():
            kind = value.WhichOneof("value")
            if kind != "number" and not (self.loss == "custom" and name == "loss_id"):
                raise RequestRejectedError(f"the loss setting '{name}' is text; this engine knows numbers only")
            config[name] = getattr(value, kind)
        return config

    def items(self) -> list[TrainItem]:
        """The data.

        Raises:
            RequestRejectedError: If they carry what a text model cannot take.
        """
        return [_item(datum, index) for index, datum in enumerate(self.message.data)]


def _item(datum: Any, index: int) -> TrainItem:
    chunks: list[NDArray[Any]] = []
    for chunk in datum.model_input:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise RequestRejectedError(f"datum {index} has an image or audio chunk; this engine trains on text")
        chunks.append(np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32))
    tokens = np.concatenate(chunks).astype(np.int64) if chunks else np.zeros(0, np.int64)
    return TrainItem(tokens, {name: _tensor(t, f"datum {index}: {name}") for name, t in datum.loss_fn_inputs.items()})


def _tensor(message: Any, where: str) -> NDArray[Any]:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise RequestRejectedError(f"{where} has an unknown data type")
    shape = tuple(message.shape)
    try:
        if message.WhichOneof("encoding") == "sparse_csr":
            return _from_csr(message.sparse_csr, dtype, shape)
        flat = np.frombuffer(message.dense, dtype=dtype)
        return flat.reshape(shape) if shape else flat
    except ValueError as error:
        raise RequestRejectedError(f"{where}: its bytes do not fit its shape {shape}") from error


def _from_csr(csr: Any, dtype: type[Any], shape: tuple[int, ...], fill: float = 0) -> NDArray[Any]:
    values = np.frombuffer(csr.values, dtype=dtype)
    rows = np.frombuffer(csr.crow_indices, dtype=np.int64)
    columns = np.frombuffer(csr.col_indices, dtype=np.int64)
    dense = np.full(shape, fill, dtype=dtype)
    dense[np.repeat(np.arange(len(rows) - 1), np.diff(rows)), columns] = values
    return dense


def encode_loss_result(result: LossResult) -> bytes:
    """Write a ``ForwardBackwardOutput``: one record per datum where shapes differ, else one for all."""
    message = pb.ForwardBackwardOutput()
    message.loss_fn_output_type = "ArrayRecord"
    for name, value in result.metrics.items():
        message.metrics[name] = value
    if result.outputs:
        record = message.loss_fn_outputs.add()
        record.num_datums = len(result.outputs)
        for name in result.outputs[0]:
            _write_batched(record.fields[name], [output[name] for output in result.outputs])
    return message.SerializeToString()


def _write_batched(message: Any, arrays: Sequence[NDArray[np.float32]]) -> None:
    flat = [np.ascontiguousarray(a, dtype=np.float32) for a in arrays]
    message.dtype = pb.DTYPE_FLOAT32
    message.data = b"".join(a.tobytes() for a in flat)
    message.offsets = np.cumsum([0, *(a.nbytes for a in flat)], dtype=np.int64).tobytes()
    message.trailing_shape.extend(flat[0].shape[1:])


def adam_settings(params: types.AdamParams) -> AdamSettings:
    """The SDK's AdamW parameters as ours."""
    return AdamSettings(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def sample_settings(body: Mapping[str, Any]) -> SampleSettings:
    """Read a ``SampleRequest`` body.

    Read by hand: validating a long prompt token by token would cost more than sending it.

    Raises:
        RequestRejectedError: If something in it cannot be used.
    """
    params: Mapping[str, Any] = body.get("sampling_params") or {}
    stop = params.get("stop")
    stop_list = [stop] if isinstance(stop, str) else list(stop or [])
    target = body.get("target_prompt_logprobs")
    try:
        return SampleSettings(
            prompt_T=_prompt(body["prompt"]),
            num_samples=int(body.get("num_samples", 1)),
            max_tokens=params.get("max_tokens"),
            temperature=float(params.get("temperature", 1.0)),
            top_p=float(params.get("top_p", 1.0)),
            top_k=int(params.get("top_k", -1)),
            seed=params.get("seed"),
            stop_tokens=frozenset(int(s) for s in stop_list if not isinstance(s, str)),
            stop_strings=tuple(s for s in stop_list if isinstance(s, str)),
            prompt_logprobs=bool(body.get("prompt_logprobs")),
            prompt_logprobs_last_n=body.get("prompt_logprobs_last_n"),
            topk_prompt_logprobs=int(body.get("topk_prompt_logprobs", 0)),
            topk_sample_logprobs=int(body.get("topk_sample_logprobs", 0)),
            target_prompt_TK=None if target is None else _target(target),
            prompt_alt_tokens_k=int(body.get("prompt_alt_tokens_k", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RequestRejectedError):
            raise
        raise RequestRejectedError(f"not a usable sample request: {error}") from error


def _prompt(prompt: Mapping[str, Any]) -> NDArray[np.int64]:
    tokens: list[int] = []
    for chunk in prompt["chunks"]:
        if "tokens" not in chunk:
            raise RequestRejectedError("the prompt has an image or audio chunk; this engine samples text")
        tokens += chunk["tokens"]
    return np.asarray(tokens, dtype=np.int64)


def _target(tensor: Mapping[str, Any]) -> NDArray[np.int64]:
    values = np.asarray(tensor["data"], dtype=np.int64)
    shape = tuple(tensor.get("shape") or values.shape)
    if tensor.get("sparse_crow_indices") is None:
        return values.reshape(shape)
    rows = np.asarray(tensor["sparse_crow_indices"], dtype=np.int64)
    dense = np.full(shape, -1, dtype=np.int64)
    dense[np.repeat(np.arange(len(rows) - 1), np.diff(rows)), np.asarray(tensor["sparse_col_indices"])] = values
    return dense


def encode_sample_output(output: SampleOutput) -> bytes:
    """Write a ``SampleResponse``."""
    message = pb.SampleResponse()
    for continuation in output.continuations:
        _write_sequence(message.sequences.add(), continuation)
    if output.prompt_logprobs_T is not None:
        message.prompt_logprobs = output.prompt_logprobs_T.astype(np.float32).tobytes()
    if output.topk_prompt_tokens_TK is not None and output.topk_prompt_logprobs_TK is not None:
        _write_topk(message.topk_prompt_logprobs, output.topk_prompt_tokens_TK, output.topk_prompt_logprobs_TK)
    if output.target_prompt_logprobs_TK is not None:
        _write_tensor(message.target_prompt_logprobs, np.nan_to_num(output.target_prompt_logprobs_TK, nan=0.0))
    if output.alt_tokens_TK is not None and output.alt_logprobs_TK is not None:
        _write_tensor(message.prompt_alt_tokens.tokens, output.alt_tokens_TK)
        _write_tensor(message.prompt_alt_tokens.logprobs, output.alt_logprobs_TK)
    return message.SerializeToString()


def _write_sequence(message: Any, continuation: Continuation) -> None:
    message.stop_reason = pb.STOP_REASON_STOP if continuation.stop_reason == "stop" else pb.STOP_REASON_LENGTH
    message.tokens = continuation.tokens_T.astype(np.int32).tobytes()
    message.logprobs = continuation.logprobs_T.astype(np.float32).tobytes()
    if continuation.topk_tokens_TK is not None and continuation.topk_logprobs_TK is not None:
        _write_topk(message.topk_sampled_logprobs, continuation.topk_tokens_TK, continuation.topk_logprobs_TK)


def _write_topk(message: Any, tokens_TK: NDArray[Any], logprobs_TK: NDArray[Any]) -> None:
    missing = np.isnan(logprobs_TK)
    message.length, message.k = tokens_TK.shape
    message.token_ids = np.where(missing, 0, tokens_TK).astype(np.int32).tobytes()
    message.logprobs = np.where(missing, _MASK_LOGPROB, logprobs_TK).astype(np.float32).tobytes()


def _write_tensor(message: Any, array: NDArray[Any]) -> None:
    floating = array.dtype.kind == "f"
    message.dtype = pb.DTYPE_FLOAT32 if floating else pb.DTYPE_INT64
    message.shape.extend(array.shape)
    message.dense = array.astype(np.float32 if floating else np.int64).tobytes()
